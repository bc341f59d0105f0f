"""Composition root of delivery: ``python -m delivery --config PATH``. Everything is made here and passed in by hand.

Exit codes: 0 drained; 1 the queue or an address did not serve; 2 configuration refused.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket

from prometheus_client import CollectorRegistry

from config.load import Loaded
from config.replies import Rules, load_rules
from config.settings import Settings
from config.start import Start, run
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
from mailqueue.processes import presence
from mailqueue.queue import Queue
from mailqueue.traces import tapped

REFUSALS = (QueueDown, QueueRefused)


def main() -> int:
    return run("delivery", "takes due mail to its next hops and says what became of it", serve, REFUSALS)


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


async def serve(start: Start) -> None:
    settings = start.settings
    registry = CollectorRegistry()
    reloader = start.reloader(registry)
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
        router = router_of(settings, start.loaded)
        workers = queue.workers()
        engine = Engine(
            settings.delivery,
            workers,
            router,
            start.loaded.providers,
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
            start.service(registry, reloader, ready) as service,
            presence(queue.shards[0], start, reloader, service, engine.live),
            tapped(queue.shards[0], doors.tap, "delivery"),
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
