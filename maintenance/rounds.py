"""The rounds of maintenance: dead workers' items, delay notices, expiry, DSNs, trimming.

Several may run; each step is taken by one of them. None may be missing for long: while none runs, mail is delivered
but nobody hears of what failed, and a dead worker's items wait.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from config.load import Loaded
from config.reload import Reloader
from config.settings import Settings
from delivery.notify import notify, record_of
from mailqueue import lease
from mailqueue.errors import QueueDown
from mailqueue.events import Event
from mailqueue.inspect import summary
from mailqueue.mark_metrics import MarkMetrics
from mailqueue.paces import Paces
from mailqueue.queue import Queue
from mailqueue.reaper import Reaper
from maintenance.alarms import Alarms
from maintenance.census import Census
from maintenance.checks import Checks
from maintenance.groups import GroupWatch
from maintenance.room import Room
from maintenance.watch import Watch
from signing.dkim import Signer
from signing.keys import load as load_keys

PAUSE_SECONDS = 1.0  # between rounds
EACH = {
    "alarms": 5,
    "look": 5,
    "count": 10,
    "checks": 10,
    "groups": 10,
    "census": 15,
    "quotas": 60,
    "tidy": 300,
}  # rounds

log = structlog.get_logger("maintenance")


class Maintenance:
    """Rounds over all shards. ``signer``: of the DSNs."""

    def __init__(
        self, queue: Queue, reloader: Reloader, registry: CollectorRegistry, signer: Signer | None = None
    ) -> None:
        self._queue = queue
        self._reloader = reloader
        self._signer = self._next_signer = signer or Signer()
        self._reapers = [Reaper(shard, record_of, self._told) for shard in queue.shards]
        self._reaped = Counter("tambo_items_reaped", "Items put back from dead workers", registry=registry)
        self._expired = Counter("tambo_items_expired", "Recipients given up as their time was over", registry=registry)
        self._dsns = Counter("tambo_dsns_queued", "DSNs queued", registry=registry)
        self._queued = Gauge("scheduled_count_total", "Recipients not yet final", registry=registry)
        self._held = Gauge("tambo_held_count", "Items on hold", registry=registry)
        self._workers = Gauge("tambo_workers", "Delivery workers with a lease", registry=registry)
        self._room = Room(queue.shards[0], queue.marks)
        MarkMetrics(lambda: queue.marks.figures, registry)
        self.alarms = Alarms(queue.shards[0], registry)
        self._watch = Watch(queue, self.alarms, registry, reloader.loaded)
        self._census = Census(queue.shards, registry)
        self._paces = Paces()
        self._checks = Checks(queue, self.alarms, registry)
        self._groups = GroupWatch(queue, self.alarms, registry)
        self._host = socket.gethostname()
        # As for the archiver, until the next start: else nobody would trim, or somebody what is not archived.
        self._archives = bool(reloader.settings.archive.directory)
        self.trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            try:
                self.trouble = await self._round(number)
                self.alarms.without_queue("queue-away", False)
            except QueueDown as down:
                self.trouble = str(down)
                self.alarms.without_queue("queue-away", True, str(down))
                log.warning("queue away", why=str(down))
            number += 1
            try:
                async with asyncio.timeout(PAUSE_SECONDS):
                    await stop.wait()
            except TimeoutError:
                continue

    async def _round(self, number: int) -> str:
        """What went wrong, "" when nothing did: a step that fails holds up neither the others nor the next round."""
        troubles: dict[str, str] = {}
        for name, step in self._steps(number):
            troubles.setdefault(name, "")
            try:
                await step
            except QueueDown:
                raise
            except Exception as error:
                log.exception("step failed", step=name)
                troubles[name] = f"{name} failed: {type(error).__name__}"
        for name, trouble in troubles.items():
            await self.alarms.set(f"step-failed:{name}@{self._host}", bool(trouble), trouble)
        return next(filter(None, troubles.values()), "")

    def _steps(self, number: int) -> Iterator[tuple[str, Coroutine[Any, Any, object]]]:
        # The queue is what it was when opened, whatever a reloaded file says of its shards.
        settings = self._reloader.settings.model_copy(update={"queue": self._queue.settings})
        if number % EACH["alarms"] == 0:
            yield "alarms", self.alarms.refresh()
        yield "room", self._room.look()
        for reaper in self._reapers:
            yield "reap", self._reap(reaper)
            if number % EACH["look"] == 0:
                yield "look", reaper.look()
            yield "notify", self._notify(reaper, settings)
            if number % EACH["tidy"] == 0:
                yield "tidy", self._tidy(reaper, settings.queue.events_keep)
        if number % EACH["count"] == 0:
            yield "count", self._count()
        yield "watch", self._watch.look(settings)
        if number % EACH["checks"] == 0:
            yield "checks", self._checks.look()
        if number % EACH["census"] == 0:
            yield "census", self._census.take()
        if number % EACH["groups"] == 0:
            yield "groups", self._groups.look(settings.streams)
        if number % EACH["quotas"] == 0:
            yield "quotas", self._checks.quotas()

    async def _reap(self, reaper: Reaper) -> None:
        self._reaped.inc(await reaper.reap())

    async def _notify(self, reaper: Reaper, settings: Settings) -> None:
        self._dsns.inc(await notify(reaper, settings, self._signer))

    async def _tidy(self, reaper: Reaper, events_keep: int) -> None:
        """What another process archives is not ours to trim, whatever our own configuration says."""
        archived = self._archives or await lease.is_held(self._queue.shards[0], "archive")
        await reaper.tidy(None if archived else events_keep)

    async def _count(self) -> None:
        facts = await summary(self._queue.shards)
        self._queued.set(facts.open)
        self._held.set(facts.held)
        self._workers.set(len(facts.workers))

    def read_keys(self, new: Loaded) -> Sequence[str]:
        """Guard of the reload: OSError and ValueError for keys that do not do."""
        self._next_signer = load_keys(new.settings.signing.directory)
        return ()

    def take_over(self, _old: Loaded, new: Loaded) -> None:
        self._signer = self._next_signer
        self._watch.take_over(new)

    def _told(self, event: Event) -> None:
        if event.kind == "expired":
            self._expired.inc()
            self._paces.add("expired")

    def live(self) -> dict[str, object]:
        """For who looks at all processes at once: recipients expired a second, and the last census."""
        queued: dict[str, dict[str, int]] = {}
        for (provider, class_), count in self._census.last.items():
            if count:
                queued.setdefault(provider, {})[class_] = count
        return {"rates": self._paces.rates(), "queued": queued}
