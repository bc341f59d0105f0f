"""Composition root of maintenance: ``python -m maintenance --config PATH``. Exit codes as delivery's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from config.start import Start, run
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.processes import presence
from mailqueue.queue import Queue
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

        def ready() -> list[str]:
            return [work.trouble] if work.trouble else []

        async with (
            start.service(registry, reloader, ready) as service,
            presence(queue.shards[0], start, reloader, service),
        ):
            service.started()
            await work.run(service.stop)
    finally:
        await queue.close()


def main() -> int:
    return run("maintenance", "reaps, expires, notifies, archives, watches", serve, (QueueDown, QueueRefused))
