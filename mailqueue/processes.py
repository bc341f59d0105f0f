"""Which processes work on this queue: each says so every few seconds, and who stops saying so is forgotten.

Hash ``processes`` of shard 0: "<role>@<host>:<pid>" → JSON of :class:`Process`, with the server's time of the last word.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from typing import Any

import orjson
import structlog

from config.process import Service
from config.reload import Reloader
from config.start import Start, version
from mailqueue import keys
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.scripts import Shard

EVERY_SECONDS = 3.0
BELIEVED_SECONDS = 15.0  # silent for longer = gone
FAREWELL_SECONDS = 2.0
MOST_SAID = 50  # problems and changes: a word every few seconds must stay small

log = structlog.get_logger("queue")


@dataclass(frozen=True, slots=True)
class Process:
    """``status``: host:port of /metrics, "" = none. ``generation``: configurations taken over since the start;
    ``digest``: of the configuration in force, the same for processes that agree. ``reloads``: asked for since the start,
    ``refused``: problems of the last one, ``changes``: what it changed. ``restart``: keys whose new value waits for one.
    ``trouble``: why it is not ready. Times are Unix seconds."""

    role: str
    host: str
    pid: int
    instance: str
    started: float
    version: str
    schema: int
    status: str = ""
    generation: int = 1
    digest: str = ""
    reloads: int = 0
    refused: tuple[str, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)
    restart: tuple[str, ...] = ()
    trouble: str = ""
    config: str = ""  # the file it reads
    live: Mapping[str, Any] = field(default_factory=dict)  # figures of its work: rates, sessions (see relayctl top)

    @property
    def name(self) -> str:
        return f"{self.role}@{self.host}:{self.pid}"


@dataclass(frozen=True, slots=True)
class Waits:
    """A session that a delivery process would open: in which phase, and for how many seconds nothing was heard.
    ``domains``: some of those whose mail waits for it; ``again``: seconds until one more is tried there, -1 = none is."""

    site: str
    domains: tuple[str, ...]
    peer: str
    source: str
    phase: str
    seconds: int
    again: int = -1

    def __str__(self) -> str:
        what = {"connect": "to take the connection", "greeting": "to greet"}.get(self.phase, f"to answer {self.phase}")
        return f"for {self.peer} {what}, {self.seconds} s by now" + (f", from {self.source}" if self.source else "")


def opening(processes: Iterable[Process]) -> list[Waits]:
    """What they said of it, some seconds ago; the longest first."""
    said = [one for process in processes if process.role == "delivery" for one in process.live.get("opening", ())]
    names = {field.name for field in fields(Waits)}  # a newer relay may say more than this one knows
    known = [Waits(**{key: one[key] for key in names & one.keys()}) for one in said if names - {"again"} <= one.keys()]
    return sorted((replace(one, domains=tuple(one.domains)) for one in known), key=lambda one: -one.seconds)


@asynccontextmanager
async def presence(
    shard: Shard, start: Start, reloader: Reloader, service: Service, live: Callable[[], Mapping[str, Any]] = dict
) -> AsyncIterator[None]:
    """This process says that it is there, from its first moment to the end of its drain."""
    status = f"{service.port[0]}:{service.port[1]}" if service.port else ""
    born = Process(
        role=start.role,
        host=socket.gethostname(),
        pid=os.getpid(),
        instance=str(start.instance),
        started=time.time(),
        version=version(),
        schema=keys.SCHEMA,
        status=status,
        config=str(start.path.absolute()),
    )

    def facts() -> Process:
        return replace(
            born,
            generation=reloader.generation,
            digest=reloader.digest,
            reloads=reloader.asked,
            refused=_bounded(reloader.refused),
            changes=dict(islice(reloader.changes.items(), MOST_SAID)),
            restart=_bounded(reloader.restart),
            trouble="; ".join(service.reasons()),
            live=live(),
        )

    said = Presence(shard, facts)
    reloader.watch(said.changed)
    said.start()
    try:
        yield
    finally:
        await said.stop()


class Presence:
    """``facts`` is asked at each word. A server that is away is said again when it is back."""

    def __init__(self, shard: Shard, facts: Callable[[], Process]) -> None:
        self._shard = shard
        self._facts = facts
        self._task: asyncio.Task[None] | None = None
        self._now = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._beat(), name="presence")

    def changed(self) -> None:
        """Says so at once: somebody may wait for it (``relayctl config reload``)."""
        self._now.set()

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        with suppress(QueueDown, ServerAnswer, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._shard.command("HDEL", self._shard.prefix + "processes", self._facts().name)

    async def _beat(self) -> None:
        while True:
            try:
                await self._say()
            except (QueueDown, ServerAnswer) as down:
                log.debug("presence not said", why=str(down))
            self._now.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._now.wait()

    async def _say(self) -> None:
        facts = self._facts()
        said = {**asdict(facts), "at": await self._shard.time()}
        await self._shard.command("HSET", self._shard.prefix + "processes", facts.name, orjson.dumps(said))


async def present(shard: Shard) -> list[Process]:
    """Those that spoke lately, by role and name; the silent are taken out. Raises QueueDown."""
    now = await shard.time()
    rows = await shard.command("HGETALL", shard.prefix + "processes")
    found: list[Process] = []
    for name, value in zip(rows[::2], rows[1::2], strict=True):
        said = orjson.loads(value)
        if now - said.pop("at") > BELIEVED_SECONDS:
            await shard.command("HDEL", shard.prefix + "processes", name)
        else:
            found.append(_read(said))
    return sorted(found, key=lambda process: (process.role, process.name))


def _read(said: dict[str, Any]) -> Process:
    """A newer relay may say more than this one knows."""
    known = {key: value for key, value in said.items() if key in Process.__slots__}
    return Process(**{**known, **{key: tuple(known.get(key, ())) for key in ("refused", "restart")}})


def _bounded(lines: tuple[str, ...]) -> tuple[str, ...]:
    return lines if len(lines) <= MOST_SAID else (*lines[:MOST_SAID], f"… and {len(lines) - MOST_SAID} more")
