"""Composition root of relayd: ``python -m relayd --config PATH``. Everything is made here and passed in by hand.

Exit codes: 0 drained; 1 the queue, a certificate or an address did not serve; 2 configuration refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from config.activation import inherited_sockets
from config.start import Start, run
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.failures import FailureLimits, Failures
from mailqueue.mark_metrics import MarkMetrics
from mailqueue.processes import presence
from mailqueue.queue import Queue
from mailqueue.traces import Tap, tapped
from relayd.accounts import follow
from relayd.server import Relayd


def main(arguments: Sequence[str] | None = None) -> int:
    purpose = "accepts mail from accounts and keeps it in the queue"
    return run("relayd", purpose, serve, (QueueDown, QueueRefused), arguments)


async def serve(start: Start) -> None:
    """Queue, listeners, status port; until SIGTERM; then the drain, and the queue last."""
    settings = start.settings
    registry = CollectorRegistry()
    reloader = start.reloader(registry)
    queue = await Queue.open(settings.queue, role="relayd", quota=settings.quota)
    try:
        await queue.watch()
        store = queue.accounts()
        stored = await store.read()
        await queue.set_weights({each.name: each.weight for each in (*stored.accounts, *settings.accounts)})
        failures = Failures(queue.shards[0], FailureLimits.of(settings.relayd))
        tap = Tap()
        relayd = Relayd(settings, queue, registry, failures, tap)
        relayd.keep(stored)
        MarkMetrics(lambda: queue.marks.figures, registry)

        def ready() -> list[str]:
            return queue.refusals

        reloader.guard(lambda new: relayd.check(new.settings))
        reloader.subscribe(lambda _old, new: relayd.reload(new.settings))
        async with (
            start.service(registry, reloader, ready) as service,
            presence(queue.shards[0], start, reloader, service, relayd.live),
            tapped(queue.shards[0], tap, "relayd"),
        ):
            await relayd.start(handed=inherited_sockets())
            following = asyncio.create_task(follow(lambda: store.watch(stored.version), relayd.keep), name="accounts")
            service.started()
            await service.stop.wait()
            await relayd.drain()
            following.cancel()
    finally:
        await queue.close()
