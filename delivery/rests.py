"""Which source a site turns away, and until when. It outlasts the site's sessions: else each new mail would knock again."""

from __future__ import annotations

from collections.abc import Mapping

TIDY_SECONDS = 60.0


class Rests:
    """Of one process. Times are seconds of the loop's clock."""

    def __init__(self) -> None:
        self._until: dict[str, dict[str, float]] = {}
        self._why: dict[str, str] = {}
        self._tidied = 0.0

    def note(self, site: str, source: str, until: float, now: float, why: str = "") -> None:
        """``why``: the site's own words."""
        self._until.setdefault(site, {})[source] = until
        if why:
            self._why[site] = why
        if now >= self._tidied + TIDY_SECONDS:
            self._tidied = now
            self._until = {name: left for name in self._until if (left := self.at(name, now))}
            self._why = {name: why for name, why in self._why.items() if name in self._until}

    def end(self) -> None:
        """An operator has changed something: all may try again."""
        self._until.clear()
        self._why.clear()

    def why(self, site: str) -> str:
        """What the site said last of a source of ours; "" where it has said nothing."""
        return self._why.get(site, "")

    def at(self, site: str, now: float) -> dict[str, float]:
        """Source → until, of those that rest now."""
        return {source: until for source, until in self._until.get(site, {}).items() if until > now}

    def rests(self, site: str, source: str, now: float) -> bool:
        return self._until.get(site, {}).get(source, 0.0) > now

    def left(self, now: float) -> Mapping[str, dict[str, float]]:
        """Site → source → seconds left."""
        found = {site: self.at(site, now) for site in self._until}
        return {site: {one: until - now for one, until in here.items()} for site, here in found.items() if here}
