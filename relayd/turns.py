"""One password at a time, and whose turn it is: who has got in before goes first, and no address holds all the places.

argon2 is dear on purpose; this is what keeps a guesser from making it dear for others.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

STRANGERS = 32  # waiting at once; at 20 ms each the last one waits two thirds of a second
KNOWN = 16
PER_ADDRESS = 2
KNOWN_PER_ADDRESS = 8  # the accounts of one application server


class TooManyWaiting(Exception):
    """No place: come back later."""


class Turns:
    """One per process, used from its loop only."""

    def __init__(
        self,
        strangers: int = STRANGERS,
        known: int = KNOWN,
        per_address: int = PER_ADDRESS,
        known_per_address: int = KNOWN_PER_ADDRESS,
    ) -> None:
        self._most = {False: strangers, True: known}
        self._most_of_address = {False: per_address, True: known_per_address}
        self._queues: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}
        self._by_address: Counter[tuple[bool, str]] = Counter()
        self._busy = False

    def full(self, address: str, known: bool) -> bool:
        """The queue, or this address's share of it."""
        waiting, share = len(self._queues[known]), self._by_address[known, address]
        return waiting >= self._most[known] or share >= self._most_of_address[known]

    @asynccontextmanager
    async def turn(self, address: str, known: bool) -> AsyncIterator[None]:
        """Waits for it. Raises TooManyWaiting at once when the queue, or this address's share of it, is full."""
        if self.full(address, known):
            raise TooManyWaiting
        queue, whose = self._queues[known], (known, address)
        self._by_address[whose] += 1
        try:
            await self._wait(queue)
            try:
                yield
            finally:
                self._next()
        finally:
            self._by_address[whose] -= 1
            if self._by_address[whose] <= 0:
                del self._by_address[whose]

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        if not self._busy:
            self._busy = True
            return
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place in queue:
                queue.remove(place)
            elif not place.cancelled():  # the turn was ours already: hand it on
                self._next()
            raise

    def _next(self) -> None:
        for queue in (self._queues[True], self._queues[False]):
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(None)
                    return
        self._busy = False


class Shared:
    """What is asked for again while it is under way is done once, and all hear the same: a pool that connects anew comes
    with one password many times. It ends early when nobody waits for it any more."""

    def __init__(self) -> None:
        self._under_way: dict[bytes, asyncio.Task[int]] = {}
        self._waiting: Counter[asyncio.Task[int]] = Counter()

    async def ask(self, key: bytes, begin: Callable[[], Coroutine[Any, Any, int]]) -> int:
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(begin())
        self._waiting[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task], self._under_way[key]
                task.cancel()
