"""Rates of accounts: accepted recipients per calendar minute, hour and day, counted in one place for all processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from config.accounts import AccountSettings
from mailqueue.batch import Batch
from mailqueue.calendar import Moment
from mailqueue.errors import QueueDown
from mailqueue.scripts import Argument, Slot

MOST_WAITING = 5000  # as many as may wait for a commit
NAMES = ("minute", "hour", "day")


@dataclass(frozen=True, slots=True)
class Take:
    """``count`` recipients of an account at a moment; a count below none gives back."""

    account: str
    count: int
    limits: tuple[int, int, int]  # a minute, an hour, a day; 0 = none
    at: Moment

    def arguments(self) -> list[Argument]:
        words: list[Argument] = [self.account, self.count]
        for begin, limit in zip(self.at.windows, self.limits, strict=True):
            words += [begin, limit]
        return words


@dataclass(frozen=True, slots=True)
class Reached:
    """``limit`` "1000/hour" has no room before ``until`` (Unix s), or never for so large a message (0)."""

    limit: str
    until: int


def limits(account: AccountSettings) -> tuple[int, int, int] | None:
    """None for an account without a rate."""
    found = (account.rate_minute, account.rate_hour, account.rate_day)
    return found if any(found) else None


def too_large(take: Take) -> Reached | None:
    """A message that no window has room for."""
    for name, limit in zip(NAMES, take.limits, strict=True):
        if 0 < limit < take.count:
            return Reached(f"{limit}/{name}", 0)
    return None


@dataclass(slots=True, eq=False)
class _Asked:
    take: Take
    waited_for: bool = True


class Rates:
    """One per process. A call whose answer was lost is repeated and may count twice: towards less mail, never more."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._batch: Batch[_Asked, int] = Batch(
            self._call,
            most=100,
            give_up=lambda entries: not any(entry.waited_for for entry in entries),
            skip=lambda entry: not entry.waited_for,
        )

    async def _call(self, _number: int, entries: list[_Asked]) -> list[int | Exception]:
        words = [word for entry in entries for word in entry.take.arguments()]
        answer: Sequence[int] = await self._slot.run("rate", words)
        return [int(number) for number in answer]

    async def take(self, take: Take) -> Reached | None:
        """None: counted. To be awaited under a time-out: what is counted after it is given back. Raises QueueDown."""
        if (never := too_large(take)) is not None:
            return never
        if len(self._batch) >= MOST_WAITING:
            raise QueueDown("too many messages wait for a rate")
        asked = _Asked(take)
        answer = self._batch.add(asked)
        try:
            window = await asyncio.shield(answer)
        except asyncio.CancelledError:
            asked.waited_for = False
            answer.add_done_callback(lambda done: self._too_late(take, done))
            raise
        if not window:
            return None
        at = window - 1
        return Reached(f"{take.limits[at]}/{NAMES[at]}", take.at.ends[at])

    def give_back(self, take: Take, count: int) -> None:
        """Of what was counted, ``count`` were not accepted after all. Best effort."""
        if len(self._batch) < MOST_WAITING:
            given = _Asked(Take(take.account, -count, take.limits, take.at))
            self._batch.add(given).add_done_callback(lambda done: done.exception() if not done.cancelled() else None)

    def _too_late(self, take: Take, done: asyncio.Future[int]) -> None:
        if not done.cancelled() and done.exception() is None and done.result() == 0:
            self.give_back(take, take.count)

    async def close(self) -> None:
        await self._batch.close(1.0)
