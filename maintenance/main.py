"""Composition root of maintenance: ``python -m maintenance --config PATH``. Exit codes as delivery's."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from config.load import Loaded
from config.process import Service
from config.reload import Reloader
from delivery.main import run
from mailqueue.queue import Queue
from maintenance.rounds import Maintenance
from signing.keys import load as load_keys

log = structlog.get_logger("maintenance")


async def serve(path: Path, loaded: Loaded) -> None:
    registry = CollectorRegistry()
    reloader = Reloader(path, os.environ, loaded, log, registry)
    queue = await Queue.open(loaded.settings.queue, role="maintenance")
    try:
        work = Maintenance(queue, reloader, registry, load_keys(loaded.settings.signing.directory))
        reloader.guard(work.read_keys)
        reloader.subscribe(work.take_over)

        def ready() -> list[str]:
            return [work.trouble] if work.trouble else []

        address = loaded.settings.metrics.maintenance
        async with Service("maintenance", address, registry, ready, reload=reloader.reload) as service:
            service.started()
            await work.run(service.stop)
    finally:
        await queue.close()


def main() -> None:
    run("maintenance", "reaps, expires, notifies, archives, watches", serve)
