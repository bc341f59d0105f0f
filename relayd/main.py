"""Composition root of relayd: ``python -m relayd --config PATH``. Everything is made here and passed in by hand.

Exit codes: 0 drained; 1 the queue, a certificate or an address did not serve; 2 configuration refused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from config import logs
from config.activation import inherited_sockets
from config.load import ConfigError, Loaded, default_path, load
from config.process import Service
from config.reload import Reloader
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.failures import FailureLimits, Failures
from mailqueue.queue import Queue
from relayd.accounts import follow
from relayd.server import Relayd

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="relayd", description="accepts mail from accounts and keeps it in the queue")
    parser.add_argument("--config", type=Path, default=default_path(os.environ), help="TOML file (%(default)s)")
    path: Path = parser.parse_args(arguments).config
    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(loaded.settings.log, "relayd")
    try:
        uvloop.run(serve(path, loaded))
    except (QueueDown, QueueRefused, OSError, ssl.SSLError, ValueError) as error:
        log.error("relayd cannot run", error=type(error).__name__, text=str(error))
        return 1
    return 0


async def serve(path: Path, loaded: Loaded) -> None:
    """Queue, listeners, status port; until SIGTERM; then the drain, and the queue last."""
    settings = loaded.settings
    for warning in loaded.warnings:
        log.warning("configuration warning", text=warning)
    registry = CollectorRegistry()
    reloader = Reloader(path, os.environ, loaded, log, registry)
    queue = await Queue.open(settings.queue, role="relayd", quota=settings.quota)
    try:
        queue.watch()
        store = queue.accounts()
        stored = await store.read()
        await queue.set_weights({each.name: each.weight for each in (*stored.accounts, *settings.accounts)})
        failures = Failures(queue.shards[0], FailureLimits.of(settings.relayd))
        relayd = Relayd(settings, queue, registry, failures)
        relayd.keep(stored)

        def ready() -> list[str]:
            return [] if queue.accepting else ["the queue does not accept mail"]

        reloader.guard(lambda new: relayd.check(new.settings))
        reloader.subscribe(lambda _old, new: relayd.reload(new.settings))
        async with Service("relayd", settings.metrics.relayd, registry, ready, reload=reloader.reload) as service:
            await relayd.start(handed=inherited_sockets())
            following = asyncio.create_task(follow(lambda: store.watch(stored.version), relayd.keep), name="accounts")
            service.started()
            await service.stop.wait()
            await relayd.drain()
            following.cancel()
    finally:
        await queue.close()
