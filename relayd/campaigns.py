"""How many campaigns an account has open: a view of the queue's own books, kept per process and read when it matters.

A campaign that is known costs one look into a set. Another one asks the queue, at most once a second for all sessions
together; so several processes may together let a few more through than the account's cap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from config.settings import AccountSettings

Read = Callable[[], Awaitable[Mapping[str, set[str]]]]  # account → its campaigns with mail in the queue

_FRESH_SECONDS = 1.0  # the view counts for a campaign that it does not have
_STALE_SECONDS = 30.0  # nor any longer for one that it has


class OpenCampaigns:
    def __init__(self, read: Read, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._read = read
        self._clock = clock
        self._open: dict[str, set[str]] = {}
        self._read_at = -_STALE_SECONDS
        self._reading: asyncio.Task[None] | None = None

    async def admits(self, account: AccountSettings, campaign: str) -> bool:
        """Whether mail of this campaign may come in; mail of none always may. Raises QueueDown."""
        if not campaign:
            return True
        age = self._clock() - self._read_at
        if age < _STALE_SECONDS and campaign in self._open.get(account.name, ()):
            return True
        if age >= _FRESH_SECONDS:
            await self._renew()
        known = self._open.setdefault(account.name, set())
        if campaign not in known and len(known) >= account.max_campaigns:
            return False
        known.add(campaign)
        return True

    async def _renew(self) -> None:
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._take())
            self._reading.add_done_callback(self._taken)
        await asyncio.shield(self._reading)  # one session's end is not the end of the reading

    async def _take(self) -> None:
        began = self._clock()
        self._open = {account: set(campaigns) for account, campaigns in (await self._read()).items()}
        self._read_at = began

    def _taken(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        with suppress(asyncio.CancelledError):
            reading.exception()  # whoever waited has it
