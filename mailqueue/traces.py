"""Live dialogues for who asks: ``relayctl trace`` registers here what it wants to hear, processes publish lines of it.

Hash ``traces`` of shard 0: token → "<until, ms> <kind> <value>". Who listens renews his entry every few seconds; a listener
that was killed is forgotten by all within :data:`LEASE_SECONDS`. Lines go by the channel ``trace:<token>`` of the same
slot, are kept nowhere, and are dropped, and counted, where there are more than :data:`MOST_WAITING` in a moment.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Literal

import orjson
import structlog

from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.scripts import FOREIGN, Shard, translated

LOOK_EVERY_SECONDS = 1.0
LEASE_SECONDS = 10.0
RENEW_EVERY_SECONDS = 3.0
PUBLISH_EVERY_SECONDS = 0.1
MOST_WAITING = 300  # lines of one process between two publications
LONGEST_TEXT = 1000  # characters

Kind = Literal["account", "domain", "client"]

log = structlog.get_logger("queue")


@dataclass(frozen=True, slots=True)
class Wanted:
    token: str
    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Line:
    """``who``: "C" the client, "S" the server, "*" a remark. ``subject``: account of a submission, domain of a delivery;
    ``peer``: the other host. No content and no secret ever stands in ``text``."""

    at: int  # Unix ms
    session: str
    who: str
    phase: str
    text: str
    peer: str
    subject: str = ""
    place: str = ""  # listener, or source address
    process: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    lines: tuple[Line, ...]
    dropped: int = 0  # lines that there was no room for, since the batch before


class Tap:
    """The tap of one process: ``on`` while anybody listens to anything, which is all that a session looks at otherwise."""

    def __init__(self) -> None:
        self.on = False
        self._wanted: tuple[Wanted, ...] = ()
        self._waiting: deque[tuple[Collection[str], Line]] = deque()
        self._dropped: dict[str, int] = {}

    def turn(self, wanted: Sequence[Wanted]) -> None:
        self._wanted = tuple(wanted)
        self.on = bool(wanted)

    def wants(self, kind: Kind) -> bool:
        return any(one.kind == kind for one in self._wanted)

    def listeners(self, kind: Kind, values: Collection[str]) -> list[str]:
        """Tokens of those who want to hear of any of these."""
        return [one.token for one in self._wanted if one.kind == kind and one.value in values]

    def say(self, tokens: Collection[str], line: Line) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append((tokens, line))
            return
        for token in tokens:
            self._dropped[token] = self._dropped.get(token, 0) + 1

    def drain(self) -> dict[str, Batch]:
        """What was said since, by token."""
        lines: dict[str, list[Line]] = {token: [] for token in self._dropped}
        for tokens, line in self._waiting:
            for token in tokens:
                lines.setdefault(token, []).append(line)
        self._waiting.clear()
        dropped, self._dropped = self._dropped, {}
        return {token: Batch(tuple(found), dropped.get(token, 0)) for token, found in lines.items()}


@asynccontextmanager
async def tapped(shard: Shard, tap: Tap, role: str) -> AsyncIterator[None]:
    """While inside, ``tap`` follows who listens, and what it is told is published. ``shard``: the first one."""
    name = f"{role}@{socket.gethostname()}:{os.getpid()}"
    task = asyncio.create_task(_serve(shard, tap, name), name="traces")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _serve(shard: Shard, tap: Tap, name: str) -> None:
    clock, looked = asyncio.get_running_loop().time, 0.0
    while True:
        try:
            if clock() - looked >= LOOK_EVERY_SECONDS:
                looked = clock()
                tap.turn(await _wanted(shard))
            for token, batch in tap.drain().items():
                lines = [{**asdict(line), "process": name} for line in batch.lines]
                said = orjson.dumps({"lines": lines, "dropped": batch.dropped})
                await shard.command("PUBLISH", _channel(shard, token), said)
        except (QueueDown, ServerAnswer) as down:
            tap.turn(())
            log.debug("traces not served", why=str(down))
        await asyncio.sleep(PUBLISH_EVERY_SECONDS if tap.on else LOOK_EVERY_SECONDS)


async def _wanted(shard: Shard) -> list[Wanted]:
    rows = await shard.command("HGETALL", shard.prefix + "traces")
    if not rows:
        return []
    now = await _now(shard)
    found = []
    for token, row in zip(rows[::2], rows[1::2], strict=True):
        until, kind, value = row.decode().split(" ", 2)
        if int(until) > now:
            found.append(Wanted(token.decode(), kind, value))
    return found


async def _now(shard: Shard) -> int:
    """Unix ms by the server's clock."""
    return int(await shard.time() * 1000)


def _channel(shard: Shard, token: str) -> str:
    return f"{shard.prefix}trace:{token}"


# ── the listener's side ───────────────────────────────────────────────────────────────────────────────────────────


async def listen(shard: Shard, channel: Shard, kind: Kind, value: str, seconds: float) -> AsyncIterator[Batch]:
    """What is said of ``value`` for so long, as it is said; an empty batch first, when every process has heard of it.
    ``channel``: shard 0 on a connection without time-outs. Raises QueueDown."""
    token = os.urandom(6).hex()
    subscription = channel.client.pubsub()
    until = time.monotonic() + seconds
    renewing: asyncio.Task[None] | None = None
    try:
        await subscription.subscribe(_channel(shard, token))
        await _register(shard, token, kind, value)
        renewing = asyncio.create_task(_renew(shard, token, kind, value))
        await asyncio.sleep(LOOK_EVERY_SECONDS * 1.2)
        yield Batch(())
        while (left := until - time.monotonic()) > 0 and not renewing.done():
            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=min(left, 1.0))
            if message is not None:
                said = orjson.loads(message["data"])
                yield Batch(tuple(Line(**line) for line in said["lines"]), said["dropped"])
        if renewing.done():
            renewing.result()
    except FOREIGN as error:
        raise translated(error) from error
    finally:
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        with suppress(QueueDown, ServerAnswer):
            await shard.command("HDEL", shard.prefix + "traces", token)
        with suppress(Exception):
            await subscription.aclose()  # type: ignore[no-untyped-call]


async def _register(shard: Shard, token: str, kind: Kind, value: str) -> None:
    key, until = shard.prefix + "traces", await _now(shard) + int(LEASE_SECONDS * 1000)
    await shard.command("HSET", key, token, f"{until} {kind} {value}")
    await shard.command("PEXPIRE", key, int(LEASE_SECONDS * 1000))


async def _renew(shard: Shard, token: str, kind: Kind, value: str) -> None:
    while True:
        await asyncio.sleep(RENEW_EVERY_SECONDS)
        await _register(shard, token, kind, value)
