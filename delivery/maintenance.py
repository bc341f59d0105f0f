"""The maintenance process: dead workers' items, delay notices, expiry, DSNs, trimming. ``python -m delivery.maintenance``.

Several may run; each step is taken by one of them. None may be missing for long: while none runs, mail is delivered
but nobody hears of what failed, and a dead worker's items wait.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from config.load import Loaded
from config.process import Service
from config.reload import Reloader
from delivery.main import run
from delivery.notify import notify, record_of
from mailqueue.errors import QueueDown
from mailqueue.inspect import summary
from mailqueue.queue import Queue
from mailqueue.reaper import Reaper

PAUSE_SECONDS = 1.0  # between rounds
EACH = {"look": 5, "count": 10, "tidy": 300}  # rounds

log = structlog.get_logger("maintenance")


class Maintenance:
    """Rounds over all shards."""

    def __init__(self, queue: Queue, reloader: Reloader, registry: CollectorRegistry) -> None:
        self._queue = queue
        self._reloader = reloader
        self._reapers = [Reaper(shard, record_of) for shard in queue.shards]
        self._reaped = Counter("tambo_items_reaped", "Items put back from dead workers", registry=registry)
        self._dsns = Counter("tambo_dsns_queued", "DSNs queued", registry=registry)
        self._queued = Gauge("scheduled_count_total", "Recipients not yet final", registry=registry)
        self._held = Gauge("tambo_held_count", "Items on hold", registry=registry)
        self._workers = Gauge("tambo_workers", "Delivery workers with a lease", registry=registry)
        self.trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            try:
                await self._round(number)
                self.trouble = ""
            except QueueDown as down:
                self.trouble = str(down)
                log.warning("queue away", why=str(down))
            number += 1
            try:
                async with asyncio.timeout(PAUSE_SECONDS):
                    await stop.wait()
            except TimeoutError:
                continue

    async def _round(self, number: int) -> None:
        # The queue is what it was when opened, whatever a reloaded file says of its shards.
        settings = self._reloader.settings.model_copy(update={"queue": self._queue.settings})
        for reaper in self._reapers:
            self._reaped.inc(await reaper.reap())
            if number % EACH["look"] == 0:
                await reaper.look()
            self._dsns.inc(await notify(reaper, settings))
            if number % EACH["tidy"] == 0:
                await reaper.tidy(settings.queue.events_keep)
        if number % EACH["count"] == 0:
            facts = await summary(self._queue.shards)
            self._queued.set(facts.open)
            self._held.set(facts.held)
            self._workers.set(len(facts.workers))


async def serve(path: Path, loaded: Loaded) -> None:
    registry = CollectorRegistry()
    reloader = Reloader(path, os.environ, loaded, log, registry)
    queue = await Queue.open(loaded.settings.queue, role="maintenance")
    try:
        work = Maintenance(queue, reloader, registry)

        def ready() -> list[str]:
            return [work.trouble] if work.trouble else []

        address = loaded.settings.metrics.maintenance
        async with Service("maintenance", address, registry, ready, reload=reloader.reload) as service:
            service.started()
            await work.run(service.stop)
    finally:
        await queue.close()


if __name__ == "__main__":
    run("maintenance", "reaps, expires, notifies, trims", serve)
