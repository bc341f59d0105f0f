"""Limits shared by all workers of all nodes: connection leases and paces, kept in Redis behind the hash tag ``{rep}``.

A connection lease is a member ``<worker>/<token>`` of one sorted set per ceiling, its score the expiry by the server's
clock. Leases are short and one heartbeat (``extend``) extends all of a worker: a crashed worker's slots are free again
after ``lease_seconds``. A pace is one TAT (see :mod:`ipreputation.throttle`). Keys carry names only, so that a changed
number counts from now and resets nothing. Who is refused waits: ``release`` wakes one waiter per freed slot
(:mod:`ipreputation.wakeups`); ``Wait.until`` is when to ask again at the latest.

What holds at every moment: no lease is granted under a ceiling that has ``most`` live leases. The store counts leases,
not sockets: an engine that cannot extend closes what it holds by ``valid_until``.

**When the clock of the server's host steps.** Forward by an hour: every lease counts as expired at once. The next
``connect`` prunes a ceiling and may grant its slots again, so until the heartbeat (call it every third of
``lease_seconds``) a ceiling can be exceeded, at worst doubled. ``extend`` makes the worker's own leases anew where there
still is room and returns the others as lost: the engine closes those. Paces become idle, one burst may go out early.
Backward by an hour: live leases get a right expiry by the next heartbeat; those of crashed workers seem to live an hour
longer, and the first refusal at that ceiling cuts them to ``lease_seconds``. A TAT in the future counts as a full
bucket, no more. The same holds for a server that lost its data: it forgets leases until the next heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from redis.asyncio import Redis

from ipreputation.limits import Limits
from ipreputation.plans import (
    FREED,
    Lease,
    Plan,
    connect_plan,
    extend_plan,
    message_plan,
    pass_on_plan,
    release_plan,
)
from ipreputation.scripts import LimitsDown, Scripts
from ipreputation.wakeups import OnFreed, Wakeups

__all__ = ["Granted", "Lease", "LimitStore", "LimitsDown", "Taken", "Wait"]

MOST_DOUBTFUL = 10_000
LONGEST_LEASE = 300.0  # the scripts take an expiry more than 600 s ahead for one from before a step of the clock


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again after ``until`` seconds at the latest (a wake-up may come sooner); ``limit`` is the name that binds.

    ``until`` 0: a slot was freed while the refusal was under way, and this caller has its wake-up: ask again at once.
    """

    until: float
    limit: str


@dataclass(frozen=True, slots=True)
class Granted:
    """``wait`` is None when all was granted, and when only ``each`` bound (ask again at once for more)."""

    leases: list[Lease]
    wait: Wait | None


@dataclass(frozen=True, slots=True)
class Taken:
    """``wait`` seconds until one more would fit and ``limit`` what binds; 0 and "" when all were granted."""

    count: int
    wait: float
    limit: str


class LimitStore:
    """One per worker process. ``async with`` it, or call ``open`` and ``close``: they run the listener for wake-ups.

    ``on_freed(name)`` is called in the loop when a slot under the ceiling ``name`` is free for this worker; it returns
    whether somebody here will ask for it now. False passes the wake-up on. It must not raise.
    Every verb raises ``LimitsDown`` and nothing else when the server does not answer within ``answer_seconds``.
    """

    def __init__(
        self,
        redis: Redis,
        worker: str,
        lease_seconds: float = 30.0,
        *,
        on_freed: OnFreed | None = None,
        answer_seconds: float = 5.0,
    ) -> None:
        """``redis`` without automatic retries, with room for one connection more than calls at a time: it listens."""
        if not 1.0 <= lease_seconds <= LONGEST_LEASE:
            raise ValueError(f"lease_seconds: 1 to {LONGEST_LEASE:g} are allowed")
        self.worker = worker
        self.lease_seconds = lease_seconds
        self.valid_until = time.monotonic() + lease_seconds
        self._scripts = Scripts(redis, answer_seconds)
        self._wakeups = Wakeups(redis, FREED + worker, on_freed, self._pass_on, lease_seconds / 3)
        self._listener: asyncio.Task[None] | None = None
        self._held: dict[str, Lease] = {}
        self._doubtful: dict[
            str, Lease
        ] = {}  # perhaps in the server, not held here: the next heartbeat gives them back
        self._epoch = secrets.token_hex(4)  # a dead worker of the same name had other tokens
        self._numbers = itertools.count()

    async def open(self) -> None:
        """Starts to listen; does not wait for the server."""
        self._listener = asyncio.create_task(self._wakeups.listen(), name=f"wake-ups of {self.worker}")

    async def listening(self) -> None:
        """Returns when the wake-ups of other workers arrive here."""
        await self._wakeups.subscribed.wait()

    async def close(self) -> None:
        """Stops to listen and gives back what is still held, if the server answers."""
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
            self._listener = None
        self._wakeups.close()
        with contextlib.suppress(LimitsDown):
            await self.release([*self._held.values(), *self._doubtful.values()])

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def held(self) -> int:
        """Leases of this worker."""
        return len(self._held)

    async def connect(self, candidates: Sequence[tuple[str, Limits]], want: int, each: int = 1) -> Granted:
        """Up to ``want`` leases from ``candidates`` (source, its Limits) in their order, at most ``each`` per source.

        A lease counts under all its ceilings and pays one of each ``opening`` pace. Who gets fewer than ``want`` is
        registered at the ceilings that bind, until a wake-up; a worker that no longer wants says so by ``on_freed``.
        """
        if want <= 0 or not candidates:
            return Granted([], None)
        plan = connect_plan(candidates)
        tokens = [f"{self._epoch}{next(self._numbers):x}" for _ in range(want)]
        plan.body.update(worker=self.worker, lease=self._lease_ms, want=want, each=each, again=False)
        plan.body["members"] = [f"{self.worker}/{token}" for token in tokens]
        asking, started = self._wakeups.ask(plan.ceilings), time.monotonic()
        plan.body["keep"] = [i for i, name in enumerate(plan.ceilings, 1) if name in asking.keep]
        try:
            reply = await self._scripts.run("connect", plan, repeat=True)
        except BaseException:  # cancelled, too: the script may have run
            self._doubt(Lease("", token, _all_ceilings(candidates)) for token in tokens)
            self._wakeups.failed(asking)
            raise
        if not self._held:
            self.valid_until = started + self.lease_seconds
        woken = self._wakeups.asked(asking, granted=sum(map(bool, reply[0])), refused=reply[1] >= 0)
        return self._granted(plan, candidates, tokens, reply, woken)

    def _granted(
        self, plan: Plan, candidates: Sequence[tuple[str, Limits]], tokens: list[str], reply: list[Any], woken: bool
    ) -> Granted:
        """Reads the reply of connect.lua. No await from here to the caller: nobody can cancel what is granted."""
        grants, wait_us, binding, waiting, freed = reply
        leases = []
        for number, token in zip(grants, tokens, strict=True):
            if number:
                source, limits = candidates[number - 1]
                leases.append(Lease(source, token, limits))
        self._held.update((lease.token, lease) for lease in leases)
        self._wakeups.registered(plan.ceilings[i - 1] for i in waiting)
        self._wakeups.freed(plan.ceilings[i - 1] for i in freed)
        if wait_us < 0:
            return Granted(leases, None)
        limit = plan.ceilings[binding - 1] if binding > 0 else plan.paces[-binding - 1]
        return Granted(leases, Wait(0.0 if woken else wait_us / 1e6, limit))

    async def release(self, leases: Iterable[Lease]) -> None:
        """Frees the slots and wakes one waiter per slot. After LimitsDown the next ``extend`` does it: do not repeat."""
        leases = list(leases)
        if not leases:
            return
        for lease in leases:
            self._held.pop(lease.token, None)
            self._doubtful.pop(lease.token, None)  # now, not after: a heartbeat may raise a new doubt meanwhile
        plan = release_plan(leases, self.worker)
        plan.body["again"] = False
        try:
            woken = await self._scripts.run("release", plan, repeat=True)
        except BaseException:
            self._doubt(leases)
            raise
        self._wakeups.freed(plan.ceilings[i - 1] for i in woken)

    async def extend(self) -> list[Lease]:
        """The heartbeat: extends all leases of this worker in one script. Call it every third of ``lease_seconds``.

        Returns leases lost meanwhile (others have their slots): close those sessions, then ``release`` them as usual.
        """
        await self.release(self._doubtful.values())
        leases, started = list(self._held.values()), time.monotonic()
        lost: list[int] = []
        anew: list[int] = []
        if leases:
            plan = extend_plan(leases, self.worker, self._lease_ms)
            try:
                lost, anew = await self._scripts.run("extend", plan, repeat=True)
            except BaseException:  # it may have run, and made anew what was released meanwhile
                self._doubt(lease for lease in leases if lease.token not in self._held)
                raise
        self.valid_until = started + self.lease_seconds
        gone = [lease for n in lost if (lease := self._held.pop(leases[n - 1].token, None))]
        # released while the heartbeat was under way, and made anew by it
        self._doubt(leases[n - 1] for n in anew if leases[n - 1].token not in self._held)
        return gone

    async def take(self, requests: Sequence[tuple[Limits, int]]) -> list[Taken]:
        """Of each request as many messages as fit under all its paces now, in the order given; one script for all."""
        plan = message_plan(requests)
        if not plan.keys:
            return [Taken(max(0, count), 0.0, "") for _, count in requests]
        reply = iter(await self._scripts.run("take", plan))
        return [
            Taken(count, wait_us / 1e6, plan.paces[binding - 1] if binding else "")
            for count, wait_us, binding in zip(reply, reply, reply, strict=True)
        ]

    async def give_back(self, requests: Sequence[tuple[Limits, int]]) -> None:
        """Messages taken and not sent. Soon after ``take``: a pace that ran idle in between may exceed by what comes back."""
        plan = message_plan((limits, count) for limits, count in requests if count > 0)
        if plan.keys:
            await self._scripts.run("give_back", plan)

    @property
    def _lease_ms(self) -> int:
        return round(self.lease_seconds * 1000)

    async def _pass_on(self, names: list[str]) -> list[str]:
        plan = pass_on_plan(names, self.worker)
        return [plan.ceilings[i - 1] for i in await self._scripts.run("pass_on", plan)]

    def _doubt(self, leases: Iterable[Lease]) -> None:
        self._doubtful.update((lease.token, lease) for lease in leases)
        while len(self._doubtful) > MOST_DOUBTFUL:  # they expire by themselves
            del self._doubtful[next(iter(self._doubtful))]


def _all_ceilings(candidates: Iterable[tuple[str, Limits]]) -> Limits:
    ceilings = {ceiling.name: ceiling for _, limits in candidates for ceiling in limits.connections}
    return Limits(connections=tuple(ceilings.values()))
