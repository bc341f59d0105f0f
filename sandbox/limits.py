"""Hidden limits on how much one source may send to one site: per minute, hour and day, growing, and by reputation.

Windows open with the first message and last their time; a day's limit may grow with each day on which the source has
sent (warm-up); and where too many of a source's recipients are unknown, all of its limits shrink in proportion. Pure:
time comes in as an argument, nothing is left to chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from config.settings import Seconds, Section
from sandbox.behaviour import Reply

Rate = Literal["messages_per_minute", "messages_per_hour", "messages_per_day"]
Limit = Literal[Rate, "connections_per_source", "messages_per_connection", "recipients_per_message", "reputation"]

ASKED_AT_LEAST = 20  # recipients, before a share of unknown ones says anything
LEAST_FACTOR = 0.1  # a bad reputation leaves a tenth of a limit
_SAID: Mapping[Limit, str] = {
    "connections_per_source": "421 4.7.0 {host} Too many concurrent connections",
    "messages_per_connection": "421 4.7.0 Too many messages in this connection",
    "recipients_per_message": "452 4.5.3 Too many recipients",
    "messages_per_minute": "450 4.2.1 {host} receives mail from {source} too quickly",
    "messages_per_hour": "451 4.7.1 Too many messages from {source} in an hour, try again later",
    "messages_per_day": "451 4.7.1 Too many messages from {source} today",
    "reputation": "421 4.7.0 Messages from {source} deferred: low reputation of the address",
}


class Limits(Section):
    """Hidden limits per source address; 0 = none. They are recorded, and enforced only with ``refuse``."""

    connections_per_source: int = Field(0, ge=0)
    messages_per_connection: int = Field(0, ge=0)
    recipients_per_message: int = Field(0, ge=0)
    messages_per_minute: int = Field(0, ge=0)
    messages_per_hour: int = Field(0, ge=0)
    messages_per_day: int = Field(0, ge=0, description="with first_day: where the growth ends; 0 = nowhere")
    first_day: int = Field(0, ge=0, description="messages on the first day with mail; later days grow")
    growth: float = Field(2.0, ge=1, le=10, description="each further day with mail takes so many times as many")
    day_seconds: Seconds = Field(86_400.0, gt=0, description="a day, which may be short to see it grow")
    unknown_share: float = Field(0.0, ge=0, lt=1, description="above this share of unknown recipients limits shrink")
    refuse: bool = Field(False, description="refuse beyond the limits")
    replies: Mapping[Limit, Reply] = Field(default_factory=dict, description="said in place of the usual words")

    @property
    def counted(self) -> bool:
        """Whether messages need counting at all."""
        return bool(self.messages_per_minute or self.messages_per_hour or self.messages_per_day or self.first_day)

    def says(self, limit: Limit) -> str:
        return self.replies.get(limit) or _SAID[limit]

    def of_day(self, day: int) -> int:
        """Messages on the ``day``-th day with mail, from 1; 0 = without limit."""
        if not self.first_day:
            return self.messages_per_day
        grown = int(min(self.first_day * self.growth ** min(day - 1, 100), 1e9))
        return min(grown, self.messages_per_day) if self.messages_per_day else grown


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that a message would break; ``limit`` is ``reputation`` where only reputation makes it one."""

    limit: Limit
    most: int
    seen: int


@dataclass(slots=True)
class _Window:
    opened: float = -math.inf
    count: int = 0

    def at(self, now: float, lasts: float) -> int:
        """Messages in the window that is open now; a new one is opened where the last is over."""
        if now - self.opened >= lasts:
            self.opened, self.count = now, 0
        return self.count


@dataclass(slots=True)
class Account:
    """What one source has sent to one site."""

    minute: _Window = field(default_factory=_Window)
    hour: _Window = field(default_factory=_Window)
    day: _Window = field(default_factory=_Window)
    days: int = 0  # with mail
    asked: int = 0  # recipients, of this day and half of those before
    unknown: int = 0

    def factor(self, limits: Limits) -> float:
        """What is left of the limits: 1 for a good reputation, down to :data:`LEAST_FACTOR`."""
        most = limits.unknown_share
        if not most or self.asked < ASKED_AT_LEAST or self.unknown <= most * self.asked:
            return 1.0
        return max(LEAST_FACTOR, most * self.asked / self.unknown)

    def excess(self, limits: Limits, now: float) -> Excess | None:
        """The first limit that one more message would break."""
        factor = self.factor(limits)
        for limit, most, seen in self._counts(limits, now):
            if most and seen >= (allowed := max(1, math.ceil(most * factor))):
                return Excess("reputation" if seen < most else limit, allowed, seen + 1)
        return None

    def took(self, limits: Limits, now: float) -> None:
        """One more message."""
        for _ in self._counts(limits, now):
            pass
        if not self.day.count:
            self.days += 1
        for window in (self.minute, self.hour, self.day):
            window.count += 1

    def recipient(self, known: bool) -> None:
        self.asked += 1
        self.unknown += not known

    def _counts(self, limits: Limits, now: float) -> Iterator[tuple[Rate, int, int]]:
        """(limit, most, seen) of each window, those that are over opened anew."""
        yield "messages_per_minute", limits.messages_per_minute, self.minute.at(now, 60.0)
        yield "messages_per_hour", limits.messages_per_hour, self.hour.at(now, 3600.0)
        opened = self.day.opened
        seen = self.day.at(now, limits.day_seconds)
        if opened not in (self.day.opened, -math.inf):  # a new day half forgives the old ones
            self.asked, self.unknown = self.asked // 2, self.unknown // 2
        yield "messages_per_day", limits.of_day(self.days + (seen == 0)), seen


class Accounts:
    """Of all sources at all sites, by (site, source)."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, str], Account] = {}

    def of(self, site: str, source: str) -> Account:
        found = self._accounts.get((site, source))
        if found is None:
            found = self._accounts[site, source] = Account()
        return found

    def __iter__(self) -> Iterator[tuple[str, str, Account]]:
        return ((site, source, account) for (site, source), account in sorted(self._accounts.items()))
