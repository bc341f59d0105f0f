"""Looking at limits without taking anything: what the alarm and ``relayctl queue explain`` ask.

Read-only and on the caller's connection: ``command(*words)`` gives the server's raw answer, its exceptions are the
caller's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ipreputation.limits import Limits
from ipreputation.plans import LEASE, PACE
from ipreputation.throttle import Rate, gcra

Command = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit at one moment. ``free``: how many more fit now; ``wait``: seconds until one does, at the latest (0 = now)."""

    name: str
    kind: str  # connections | opening | messages
    most: int  # of a rate: its burst
    free: int
    wait: float
    refill: float = 0.0  # of a rate: seconds in which a bucket that was used up is full again
    rate: tuple[int, float] = (0, 0.0)  # so many in so many seconds

    @property
    def binds(self) -> bool:
        return self.free <= 0

    @property
    def used(self) -> int:
        return max(self.most - self.free, 0)

    @property
    def patience(self) -> float:
        """Seconds until one more fits for sure: a connection ends when it ends, whatever its lease says."""
        return 0.0 if not self.binds else float("inf") if self.kind == "connections" else self.wait


def binding(found: Sequence[Standing]) -> Standing | None:
    """The limit that keeps the next message back, None when none does. Pure.

    A pace of messages holds whoever has a session. Else a full ceiling does, for its sessions are at work; a pace of new
    connections only where there is none yet. Of several the one that holds longest.
    """
    full = [one for one in found if one.binds]
    open_ = any(one.used for one in found if one.kind == "connections")
    messages = [one for one in full if one.kind == "messages"]
    opening = [one for one in full if one.kind == "opening" and not open_]
    ceilings = [one for one in full if one.kind == "connections"]
    return max(messages + opening or ceilings, key=lambda one: one.patience, default=None)


async def standings(command: Command, limits: Limits, now: float) -> list[Standing]:
    """Of every limit in ``limits``. ``now``: the server's clock, Unix seconds."""
    found = [await _ceiling(command, ceiling.name, ceiling.most, now) for ceiling in limits.connections]
    for kind, paces in (("opening", limits.opening), ("messages", limits.messages)):
        for pace in paces:
            tat = await command("GET", PACE + pace.name)
            found.append(_pace(pace.name, kind, pace.rate, int(tat or 0) / 1e6, now))
    return found


async def _ceiling(command: Command, name: str, most: int, now: float) -> Standing:
    """Leases that have expired are free, whoever prunes them."""
    key = LEASE + name
    held = int(await command("ZCOUNT", key, int(now * 1000), "+inf"))
    wait = 0.0
    if held >= most:
        first = await command(
            "ZRANGEBYSCORE", key, int(now * 1000), "+inf", "WITHSCORES", "LIMIT", max(held - most, 0), 1
        )
        wait = max(float(first[1]) / 1000 - now, 0.001) if first else 0.0
    return Standing(name, "connections", most, max(most - held, 0), wait)


def _pace(name: str, kind: str, rate: Rate, tat: float, now: float) -> Standing:
    fitting = gcra(tat, now, rate.burst, rate).granted
    refill = rate.burst * rate.period / rate.limit if rate.limit else float("inf")
    wait = gcra(tat, now, 1, rate).wait if not fitting else 0.0
    return Standing(name, kind, rate.burst, fitting, wait, refill, (rate.limit, rate.period))
