"""Which events somebody wants to see. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from mailqueue.events import KINDS, Event
from streams.taken import kind_of


@dataclass(frozen=True, slots=True)
class Filter:
    """Empty = whatever it is. ``recipient``: an address, or a domain (without @, or with it in front), in lower case."""

    kinds: frozenset[str] = frozenset()
    account: str = ""
    campaign: str = ""
    recipient: str = ""
    id: str = ""

    @classmethod
    def of(
        cls, kinds: Collection[str] = (), *, account: str = "", campaign: str = "", recipient: str = "", id: str = ""
    ) -> Self:
        """ValueError for a kind that there is not."""
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"no kind of event: {', '.join(unknown)}; there are {', '.join(KINDS)}")
        return cls(frozenset(kinds), account, campaign, recipient.lower(), id)

    def may_match(self, data: bytes) -> bool:
        """Cheap: False only when :meth:`matches` would say so of the event in this JSON."""
        kind = kind_of(data)
        return (not self.kinds or not kind or kind in self.kinds) and (not self.id or self.id.encode() in data)

    def matches(self, event: Event) -> bool:
        return (
            (not self.kinds or event.kind in self.kinds)
            and self.account in ("", event.account)
            and self.campaign in ("", event.campaign)
            and self.id in ("", event.id)
            and (not self.recipient or any(self._is_meant(one) for one in (event.recipient, *event.recipients)))
        )

    def _is_meant(self, address: str) -> bool:
        address = address.lower()
        local, at, domain = self.recipient.rpartition("@")
        return address == self.recipient if at and local else address.rpartition("@")[2] == domain
