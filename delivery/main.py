"""Composition root of delivery: ``python -m delivery --config PATH``. Everything is made here and passed in by hand.

Exit codes: 0 drained; 1 the queue or an address did not serve; 2 configuration refused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from config import logs
from config.load import ConfigError, Loaded, default_path, load
from config.process import Service
from config.reload import Reloader
from config.replies import Rules, load_rules
from config.settings import Settings
from delivery.attempt import Judge
from delivery.away import Absences
from delivery.doors import Doors
from delivery.engine import Engine
from delivery.metrics import DeliveryMetrics
from delivery.pool import pools_of
from delivery.resolver import Resolver
from delivery.router import NextHopPolicy, Router
from delivery.routes import Routes
from ipreputation.store import LimitStore
from mailqueue import scripts
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.queue import Queue

log = structlog.get_logger("delivery")

Serve = Callable[[Path, Loaded], Coroutine[Any, Any, None]]


def run(role: str, purpose: str, serve: Serve) -> None:
    """Arguments, configuration, logs, loop; leaves by SystemExit. Shared by the two processes of this package."""
    parser = argparse.ArgumentParser(prog=role, description=purpose)
    parser.add_argument("--config", type=Path, default=default_path(os.environ), help="TOML file (%(default)s)")
    path: Path = parser.parse_args().config
    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    logs.configure(loaded.settings.log, role)
    for warning in loaded.warnings:
        log.warning("configuration warning", text=warning)
    try:
        uvloop.run(serve(path, loaded))
    except (QueueDown, QueueRefused, OSError, ValueError) as error:
        log.error(f"{role} cannot run", error=type(error).__name__, text=str(error))
        raise SystemExit(1) from None


def router_of(settings: Settings, loaded: Loaded) -> Router:
    delivery = settings.delivery
    sources = [source for pool in pools_of(delivery).values() for source in pool]
    ipv6 = delivery.ipv6 and any(source.version != 4 for source in sources)
    return Router(
        Resolver(delivery.nameservers, ipv6=ipv6),
        loaded.providers,
        NextHopPolicy(
            port=delivery.port,
            sandbox=delivery.sandbox,
            allow_private=delivery.allow_private,
            own=frozenset((listener.address, listener.port) for listener in settings.relayd.listeners),
        ),
        own_names={delivery.hostname, settings.relayd.hostname},
        ipv6=ipv6,
        routes=Routes(settings.routes, loaded.passwords),
    )


def judge_of(settings: Settings, rules: Rules) -> Judge:
    return Judge(rules, settings.delivery.retry, int(settings.delivery.dsn_window_seconds * 1000))


async def serve(path: Path, loaded: Loaded) -> None:
    settings = loaded.settings
    registry = CollectorRegistry()
    reloader = Reloader(path, os.environ, loaded, log, registry)
    queue = await Queue.open(settings.queue, role="delivery")
    password = settings.queue.password.get_secret_value() if settings.queue.password else None
    redis = scripts.connect(settings.queue.url, password, timeout=None, most=256)  # as many sites as ask at once
    try:
        rules = load_rules()
        worker_name = f"{socket.gethostname()}:{os.getpid()}"
        store = LimitStore(
            redis,
            worker_name,
            settings.queue.lease_seconds,
            on_freed=lambda name: engine.limit_freed(name),  # noqa: PLW0108 made below
        )
        doors = Doors(settings.delivery.timeouts, settings.delivery.port, rules)
        router = router_of(settings, loaded)
        workers = queue.workers()
        engine = Engine(
            settings.delivery,
            workers,
            router,
            loaded.providers,
            store,
            judge_of(settings, rules),
            doors,
            DeliveryMetrics(registry),
            Absences(random.Random()),
        )

        def take_over(_old: Loaded, new: Loaded) -> None:
            engine.judge = judge_of(new.settings, rules)
            doors.timeouts = new.settings.delivery.timeouts
            router.routes = Routes(new.settings.routes, new.passwords)
            engine.configure(new.settings.delivery, new.providers)

        reloader.subscribe(take_over)

        def ready() -> list[str]:
            return [f"no lease in shard {worker.shard.number}" for worker in workers if not worker.alive]

        async with (
            store,
            Service("delivery", settings.metrics.delivery, registry, ready, reload=reloader.reload) as service,
        ):
            work = asyncio.create_task(engine.run())
            stop = asyncio.create_task(service.stop.wait())
            service.started()
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            engine.stop()
            await work
            stop.cancel()
    finally:
        await queue.close()
        await redis.aclose()
