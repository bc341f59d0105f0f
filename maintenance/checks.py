"""The step of the rounds that looks after what mail rests on: routes, clocks, configurations, quotas."""

from __future__ import annotations

import socket
import time

from prometheus_client import CollectorRegistry, Counter, Gauge

from mailqueue import intake
from mailqueue.overdue import stops
from mailqueue.processes import Process, present
from mailqueue.queue import Queue
from mailqueue.quota import Bag
from maintenance.alarms import Alarms

OFFSET_SECONDS = 5.0  # between the queue server's clock and ours: due times are set by both
STEP_SECONDS = 2.0  # of the wall clock against the monotonic one, between two looks
STEP_TOLD_SECONDS = 900.0  # for so long after a step the alarm stays on
DIFFER_SECONDS = 120.0  # a reload goes from process to process
QUOTA_SHARE = 0.05  # of all that was ever credited


class Checks:
    """One per maintenance process; :meth:`look` about every ten seconds, :meth:`quotas` more seldom."""

    def __init__(self, queue: Queue, alarms: Alarms, registry: CollectorRegistry) -> None:
        self._queue = queue
        self._shard = queue.shards[0]
        self._alarms = alarms
        self._offset = Gauge("tambo_clock_offset_seconds", "Clock of the queue's server, less ours", registry=registry)
        self._steps = Counter("tambo_clock_steps", "Steps of this host's clock", registry=registry)
        self._processes = Gauge("tambo_processes", "Processes that work on the queue", ["role"], registry=registry)
        self._host = socket.gethostname()
        self._clocks = (time.time(), time.monotonic())
        self._stepped: tuple[float, float] | None = None  # monotonic time, seconds
        self._differ_since: float | None = None

    async def look(self) -> None:
        """Raises QueueDown."""
        await self._look_at_intake()
        await self._look_at_routes()
        await self._look_at_clocks()
        await self._look_at_processes()

    async def _look_at_intake(self) -> None:
        """An operator's word that may be forgotten."""
        stopped = await intake.stopped(self._shard)
        await self._alarms.set("intake-stopped", stopped is not None, stopped.reason if stopped else "")

    async def _look_at_routes(self) -> None:
        """What delivery suspends has an end; an operator's word until further notice is no alarm."""
        now = time.time() * 1000
        found = {
            key.removeprefix("route:"): (reason, 0)
            for key, (until, reason) in (await stops(self._shard)).items()
            if key.startswith("route:") and until > now
        }
        await self._alarms.family("route-suspended", found)

    async def _look_at_clocks(self) -> None:
        before = time.time()
        there = await self._shard.time()
        wall, even = time.time(), time.monotonic()
        offset = there - (before + wall) / 2
        self._offset.set(offset)
        step = (wall - self._clocks[0]) - (even - self._clocks[1])
        self._clocks = (wall, even)
        if abs(step) > STEP_SECONDS:
            self._steps.inc()
            self._stepped = (even, step)
        reason = ""
        if abs(offset) > OFFSET_SECONDS:
            reason = "the clocks of this host and of the queue's server differ by seconds"
        elif self._stepped and even - self._stepped[0] < STEP_TOLD_SECONDS:
            reason = f"the clock of this host has stepped by {self._stepped[1]:+.0f} s"
        await self._alarms.set(f"clock@{self._host}", bool(reason), reason)

    async def _look_at_processes(self) -> None:
        found = await present(self._shard)
        for role in ("relayd", "inbound", "delivery", "maintenance"):
            self._processes.labels(role).set(sum(process.role == role for process in found))
        await self._forget_hosts({process.host for process in found if process.role == "maintenance"})
        if len({process.digest for process in found if process.digest}) < 2:
            self._differ_since = None
            await self._alarms.set("config-differs", False)
            return
        now = time.monotonic()
        self._differ_since = self._differ_since or now
        if now - self._differ_since >= DIFFER_SECONDS:
            await self._alarms.set("config-differs", True, _whose(found))

    async def _forget_hosts(self, hosts: set[str]) -> None:
        """Alarms about a host are its own maintenance's to end; one that has none any more cannot."""
        for name in [name for name in self._alarms.on if "@" in name]:
            host = name.rpartition("@")[2]
            if host != self._host and host not in hosts:
                await self._alarms.set(name, False, "its host has no maintenance any more")

    async def quotas(self) -> None:
        """Bags, that is what is bought once: a monthly allowance comes again by itself."""
        found = {}
        for account in await self._queue.ledger.accounts():
            book = await self._queue.ledger.look(account)
            if book.period or book.sum <= 0:
                continue
            bags = [Bag.read(await s.command("HGETALL", f"{s.prefix}bag:{account}")) for s in self._queue.shards]
            left = book.balance + sum(bag.left for bag in bags)
            if left < QUOTA_SHARE * book.sum:
                found[account] = (f"less than {QUOTA_SHARE:.0%} of its quota of {book.sum} recipients is left", left)
        await self._alarms.family("quota-low", found)


def _whose(processes: list[Process]) -> str:
    """Those in the minority, who are most likely to be behind."""
    digests = [process.digest for process in processes if process.digest]
    common = max(set(digests), key=digests.count)
    others = sorted(process.name for process in processes if process.digest and process.digest != common)
    return f"not all processes have the same configuration: look at {', '.join(others[:5])}"
