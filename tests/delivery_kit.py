"""A whole delivery in the test's own process: real queue, real limits, the sandbox as the rest of the internet."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from config.providers import SANDBOX, Providers
from config.replies import load_rules
from config.settings import Settings
from delivery.attempt import Judge
from delivery.away import Absences
from delivery.doors import Doors
from delivery.engine import Engine
from delivery.metrics import DeliveryMetrics
from delivery.notify import notify, record_of
from delivery.resolver import Resolver
from delivery.router import NextHopPolicy, Router
from delivery.routes import Routes
from ipreputation.store import LimitStore
from mailqueue import scripts
from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.reaper import Reaper
from sandbox.scenario import load
from sandbox.server import Sandbox
from tests.queue_kit import events

FAST = {"retry": {"steps_seconds": [1]}, "timeouts": {"idle": 1, "connect": 2, "greeting": 2, "ehlo": 2}}


@dataclass
class Rig:
    """One delivery process' worth of parts."""

    queue: Queue
    engine: Engine
    sandbox: Sandbox
    settings: Settings
    work: asyncio.Task[None]

    async def until(self, kinds: dict[str, int] | None = None, *, seconds: float = 20.0) -> Counter[str]:
        """Waits until at least so many events of each kind are there; returns all counts."""
        async with asyncio.timeout(seconds):
            while True:
                found = Counter(event.kind for event in await events(self.queue))
                if all(found[kind] >= count for kind, count in (kinds or {}).items()):
                    return found
                await asyncio.sleep(0.02)

    async def events(self, kind: str) -> list[Event]:
        return [event for event in await events(self.queue) if event.kind == kind]

    @property
    def reaper(self) -> Reaper:
        return Reaper(self.queue.shards[0], record_of)

    async def notify(self) -> int:
        return await notify(self.reaper, self.settings)


def settings_for(url: str, sandbox: Sandbox, **delivery: Any) -> Settings:
    tree: dict[str, Any] = {
        "queue": {"url": url},
        "delivery": {
            "hostname": "relay.entidad.test",
            "sandbox": True,
            "port": sandbox.port,
            "nameservers": [sandbox.dns_address],
            "pools": [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.4"}]}],
            **FAST,
            **delivery,
        },
    }
    return Settings.model_validate(tree)


def providers(text: str | None = None) -> Providers:
    path = Path(__file__).resolve().parent.parent / "config" / SANDBOX
    return Providers.parse(text) if text is not None else Providers.load(path)


async def make_engine(
    queue: Queue, settings: Settings, rules_text: str | None, store: LimitStore, routes: Routes | None = None
) -> Engine:
    delivery = settings.delivery
    known = providers(rules_text)
    router = Router(
        Resolver(
            delivery.nameservers, ipv6=False, timeout=0.5, total=1.5, failure_ttl=0.1, negative_ttl=0.2, least_ttl=0.1
        ),
        known,
        NextHopPolicy(port=delivery.port, sandbox=True),
        own_names={delivery.hostname},
        ipv6=False,
        rng=random.Random(1),
        routes=routes,
    )
    rules = load_rules()
    judge = Judge(rules, delivery.retry, int(delivery.dsn_window_seconds * 1000))
    doors = Doors(delivery.timeouts, delivery.port, rules)
    return Engine(
        delivery,
        queue.workers(),
        router,
        known,
        store,
        judge,
        doors,
        DeliveryMetrics(CollectorRegistry()),
        Absences(random.Random(1), (0.5,)),
    )


@asynccontextmanager
async def rig(
    url: str,
    directory: Path,
    *,
    scenario: Path | None = None,
    rules: str | None = None,
    queue: dict[str, Any] | None = None,
    store: bool = False,
    before: Callable[[Queue], Any] | None = None,
    routes: Routes | None = None,
    **delivery: Any,
) -> AsyncIterator[Rig]:
    """``rules``: text of a providers file; ``before``: awaited with the queue before delivery starts."""
    async with Sandbox(directory, load(scenario), store=store) as sandbox:
        settings = settings_for(url, sandbox, **delivery)
        settings = settings.model_copy(update={"queue": settings.queue.model_copy(update=queue or {})})
        opened = await Queue.open(settings.queue, "test", patience=5)
        redis = scripts.connect(url, timeout=None, most=64)
        if before is not None:
            await before(opened)
        holder: list[Engine] = []
        limits = LimitStore(redis, "test", settings.queue.lease_seconds, on_freed=lambda n: holder[0].limit_freed(n))
        try:
            async with limits:
                holder.append(await make_engine(opened, settings, rules, limits, routes))
                engine = holder[0]
                work = asyncio.create_task(engine.run())
                try:
                    yield Rig(opened, engine, sandbox, settings, work)
                finally:
                    engine.stop()
                    await asyncio.wait_for(work, 30)
        finally:
            await opened.close()
            await redis.aclose()


def player(url: str, directory: Path, **defaults: Any) -> Callable[..., None]:
    """``play(story, **options of rig)``: a story is a coroutine function of the rig."""

    def play(story: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
        async def whole() -> None:
            async with rig(url, directory, **{**defaults, **options}) as it:
                await story(it)

        uvloop.run(whole())

    return play
