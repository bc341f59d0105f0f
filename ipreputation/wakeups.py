"""Wake-ups of one worker: hears that a ceiling has a free slot and finds somebody here who wants it.

A refused ``connect`` leaves the worker registered at the ceilings that held it back; whoever frees a slot takes one
registration off and publishes the ceiling's name on that worker's channel, ``{rep}freed:<worker>``. A wake-up that
nobody here wants is passed on, so that it is never lost while anybody waits. What a broken connection may have
swallowed is made up for when it is back: all ceilings at which this worker waits count as freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from ipreputation.scripts import LimitsDown

OnFreed = Callable[[str], bool]


class Asking:
    """A ``connect`` under way: a wake-up for one of its ceilings may overtake the reply that refuses it."""

    __slots__ = ("keep", "names", "woken")

    def __init__(self, names: Iterable[str], taken: set[str]) -> None:
        self.names = frozenset(names)
        self.keep = self.names & taken
        self.woken: set[str] = set()


class Wakeups:
    """``freed(names)`` takes what scripts of this worker report, ``listen()`` hears what other workers publish."""

    def __init__(
        self,
        redis: Redis,
        channel: str,
        on_freed: OnFreed | None,
        pass_on: Callable[[list[str]], Awaitable[list[str]]],
        check_seconds: float,
    ) -> None:
        self.subscribed = asyncio.Event()
        self._redis = redis
        self._channel = channel
        self._on_freed = on_freed
        self._pass_on = pass_on
        self._check_seconds = check_seconds
        self._asking: set[Asking] = set()
        self._waiting: dict[str, None] = {}  # ceilings at which this worker is registered
        self._taken: set[str] = set()  # ceilings whose last wake-up somebody here took: others here may still wait
        self._passing: set[asyncio.Task[None]] = set()

    def ask(self, names: Iterable[str]) -> Asking:
        """A connect begins that may be refused at ``names``; it registers this worker again at ``keep``."""
        asking = Asking(names, self._taken)
        self._taken -= asking.keep
        self._asking.add(asking)
        return asking

    def failed(self, asking: Asking) -> None:
        """It has no reply."""
        self._taken |= asking.keep
        self.asked(asking)

    def asked(self, asking: Asking, *, granted: int = 0, refused: bool = False) -> bool:
        """It has its reply. True: it got less than it wanted, but a slot was freed since: it should ask again at once.

        Only who got nothing can be relied on to do that; otherwise the slot is offered to others, too.
        """
        self._asking.discard(asking)
        self._waiting.update(dict.fromkeys(asking.keep))
        if granted or not refused:
            self.freed(asking.woken)
        return refused and bool(asking.woken)

    def registered(self, names: Iterable[str]) -> None:
        """This worker now waits at ``names``."""
        self._waiting.update(dict.fromkeys(names))

    def freed(self, names: Iterable[str]) -> None:
        """Offers each freed ceiling to somebody here at once, and to the next worker if nobody wants it."""
        unwanted = [name for name in list(names) if not self._offer(name)]
        if unwanted:
            task = asyncio.create_task(self._hand_on(unwanted))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    def close(self) -> None:
        for task in self._passing:
            task.cancel()

    def _offer(self, name: str) -> bool:
        self._waiting.pop(name, None)
        for asking in self._asking:
            if name in asking.names:
                asking.woken.add(name)
                self._taken.add(name)
                return True
        if self._on_freed is not None and self._on_freed(name):
            self._taken.add(name)
            return True
        return False

    async def _hand_on(self, names: list[str]) -> None:
        with contextlib.suppress(LimitsDown):  # the others still have their Wait.until
            while names:
                names = [name for name in await self._pass_on(names) if not self._offer(name)]

    async def listen(self) -> None:
        """Until cancelled: hears this worker's channel on a connection of its own; after a failure on a new one."""
        while True:
            pubsub = self._redis.pubsub(ignore_subscribe_messages=False)
            try:
                await pubsub.subscribe(self._channel)
                await self._hear(pubsub)
            except (RedisError, OSError):
                pass
            finally:
                self.subscribed.clear()
                await _closed(pubsub)
            await asyncio.sleep(random.uniform(0.05, 0.5))  # not all workers at once

    async def _hear(self, pubsub: PubSub) -> None:
        """Raises when the connection is lost, or when a silent one does not answer a ping either."""
        silent = False
        while True:
            message = await pubsub.get_message(timeout=self._check_seconds)
            if message is None:
                if silent:
                    raise TimeoutError("the listening connection is dead")
                silent = True
                await pubsub.ping()
                continue
            silent = False
            if message["type"] == "subscribe":
                self.subscribed.set()
                self.freed(list(self._waiting))
            elif message["type"] == "message":
                data = message["data"]
                self.freed([data.decode() if isinstance(data, bytes) else data])


async def _closed(pubsub: PubSub) -> None:
    try:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
    except (RedisError, OSError):
        return
