"""Composition root of maintenance: ``python -m maintenance --config PATH``. Exit codes as delivery's."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from config.start import Start, run
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.processes import presence
from mailqueue.queue import Queue
from maintenance.archiving import Archiving
from maintenance.rounds import Maintenance
from signing.keys import load as load_keys


async def serve(start: Start) -> None:
    registry = CollectorRegistry()
    reloader = start.reloader(registry)
    queue = await Queue.open(start.settings.queue, role="maintenance")
    try:
        work = Maintenance(queue, reloader, registry, load_keys(start.settings.signing.directory))
        reloader.guard(work.read_keys)
        reloader.subscribe(work.take_over)
        archiving = Archiving(queue, reloader, registry, work.alarms) if start.settings.archive.directory else None

        def ready() -> list[str]:
            return [part.trouble for part in (work, archiving) if part is not None and part.trouble]

        async with (
            start.service(registry, reloader, ready) as service,
            presence(queue.shards[0], start, reloader, service, work.live),
        ):
            service.started()
            worked = asyncio.Event()

            async def rounds() -> None:
                await work.run(service.stop)
                worked.set()

            async with asyncio.TaskGroup() as group:
                group.create_task(rounds())
                if archiving is not None:
                    group.create_task(archiving.run(worked))  # the last round's events are archived, too
    finally:
        await queue.close()


def main() -> int:
    return run("maintenance", "reaps, expires, notifies, archives, watches", serve, (QueueDown, QueueRefused))
