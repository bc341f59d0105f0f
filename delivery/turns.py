"""Which source opens the next session of a site, and under which limits. Pure: who rests or is stopped is passed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from config.providers import ProviderRule
from delivery.pool import Source
from ipreputation.choose import levelled, order, steadfast
from ipreputation.limits import Limits, limits_for

TURN = 5  # transactions by which a source may be ahead of one without a session


class Turns:
    """Of one site: what each source has served there, in transactions, and the site's own order of sources."""

    def __init__(self, site: str, rule: ProviderRule, sources: tuple[Source, ...]) -> None:
        self._site = site
        self._served: dict[str, float] = {}
        self.configure(rule, sources)

    def configure(self, rule: ProviderRule, sources: tuple[Source, ...]) -> None:
        self.rule, self.sources = rule, sources
        self._limits: dict[str, Limits] = {}
        self._own: dict[str, int] = {}  # source → its place in the site's own order

    def serve(self, source: Source, transactions: int) -> None:
        """It has been handed so many."""
        self._served[source.address] = self._served.get(source.address, 0.0) + transactions

    def level(self, source: Source) -> float:
        return self._served.get(source.address, 0.0) / max(source.weight, 1)

    def behind(self, having: Sequence[Source]) -> set[str]:
        """Sources without a session here that have sent a turn less than one of those ``having`` one: there are sessions
        enough, but the same few sources would send until each session is used up."""
        addresses = {source.address for source in having}
        level = max(map(self.level, having), default=0.0) - TURN
        return {one.address for one in self.sources if one.address not in addresses and self.level(one) < level}

    def candidates(self, found: Collection[Source], having: Sequence[str]) -> list[tuple[str, Limits]]:
        """``found`` by how few sessions they have here (``having``: an address for each), then by how little they have
        sent; at a site that is no provider's by its own order, so that the few mails it gets come from where it knows us."""
        count = Counter(having)
        if self.rule.roll_up:
            served = order([(source.address, source.weight) for source in found], self._served)
            turn = {address: place for place, address in enumerate(served)}
        else:
            turn = self._own_order()
        sources = sorted(found, key=lambda one: (count[one.address] / one.weight, turn[one.address]))
        return [(source.address, self._limits_of(source)) for source in sources]

    def foremost(self, found: Collection[Source]) -> list[Source]:
        """The first of them in the site's own order, alone."""
        own = self._own_order()
        return sorted(found, key=lambda source: own[source.address])[:1]

    def _own_order(self) -> dict[str, int]:
        if not self._own:
            ordered = steadfast(self._site, [(source.address, source.weight) for source in self.sources])
            self._own = {address: place for place, address in enumerate(ordered)}
        return self._own

    def _limits_of(self, source: Source) -> Limits:
        limits = self._limits.get(source.address)
        if limits is None:
            limits = self._limits[source.address] = limits_for(self.rule, self._site, source.address)
            self._served = levelled([(s.address, s.weight) for s in self.sources], self._served)
        return limits
