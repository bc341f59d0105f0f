"""What tests of the queue share: messages, a conservation check, an opened queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from config.settings import QueueSettings
from mailqueue import keys
from mailqueue.consumer import follow
from mailqueue.events import Event
from mailqueue.message import Envelope, Message, domain_of, new_id
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from mailqueue.worker import ClaimRequest, Worker

DAY = 86_400_000


def now_ms() -> int:
    return int(time.time() * 1000)


def message(*recipients: str, content: bytes = b"Subject: hola\r\n\r\ntexto\r\n", **changes: Any) -> Message:
    facts: dict[str, Any] = {
        "id": new_id(),
        "account": "rrhh",
        "reverse_path": "aviso@entidad.test",
        "recipients": recipients or ("uno@gmail.test",),
        "received_at": now_ms(),
        "expires_at": now_ms() + 5 * DAY,
    }
    return Message(Envelope(**{**facts, **changes}), content)


def id_in(shard: int, shards: int) -> str:
    """An id of a message that lies in this shard of so many."""
    return next(one for one in iter(new_id, "") if keys.shard_of(one, shards) == shard)


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Queue]:
    queue = await Queue.open(QueueSettings(url=url, **settings), "test", patience=5)
    try:
        yield queue
    finally:
        await queue.close()


@asynccontextmanager
async def working(queue: Queue, shard: int = 0, **_: Any) -> AsyncIterator[Worker]:
    worker = queue.workers()[shard]
    await worker.start(lambda epoch: None)
    try:
        yield worker
    finally:
        await worker.stop()


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Returns when it holds; for what no event announces."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


async def events(queue: Queue) -> list[Event]:
    return [event async for event in follow(queue.shards, "0", end=True)]


async def claim_all(worker: Worker, most: int = 1000, recipients: int = 1) -> list[Any]:
    """Everything due now, by tickets."""
    found: list[Any] = []
    while True:
        tickets, _, _ = await worker.due({"emergency": 100, "transactional": 100, "bulk": 100})
        if not tickets:
            return found
        for ticket in tickets:
            claimed = await worker.claim(ClaimRequest(ticket, most, recipients))
            found += claimed.items


async def places(shards: Sequence[Shard]) -> dict[bytes, list[str]]:
    """Every item the server knows of, with each place it lies in: the conservation law says exactly one."""
    found: dict[bytes, list[str]] = {}
    for shard in shards:
        for key in await shard.command("KEYS", shard.prefix + "q:*"):
            for item in await shard.command("ZRANGE", key, 0, -1):
                found.setdefault(item, []).append(key.decode())
        for key in await shard.command("KEYS", shard.prefix + "w:*"):
            for item in await shard.command("HKEYS", key):
                if item != b"#":
                    found.setdefault(item, []).append(key.decode())
        for item in await shard.command("HKEYS", shard.prefix + "hold"):
            found.setdefault(item, []).append("hold")
    return found


async def check_index(shard: Shard) -> None:
    """The scheduling index agrees with the queues: whoever is due will be found."""
    prefix = shard.prefix
    for key in await shard.command("KEYS", prefix + "q:*"):
        _, flow, destination = key.decode()[len(prefix) :].split(":", 2)
        letter = (await shard.command("HGET", f"{prefix}f:{flow}", "class")).decode()
        group = (await shard.command("HGET", prefix + "dest", destination) or b"default").decode()
        lane = f"{letter}:{group}"
        assert await shard.command("ZSCORE", f"{prefix}r:{lane}:{flow}", destination) is not None, key
        score = await shard.command("ZSCORE", f"{prefix}lf:{lane}", flow)
        assert score is not None, key
        if float(score) < 4e15:
            assert await shard.command("ZSCORE", prefix + "g:" + letter, lane) is not None, key


async def is_empty(shard: Shard) -> list[bytes]:
    """Keys that should be gone when every recipient is final."""
    patterns = ("m:*", "n:*", "s:*", "q:*", "r:*", "f:*", "lf:*", "x", "bd", "b:*", "hold", "poison", "g:*")
    left = []
    for pattern in patterns:
        left += await shard.command("KEYS", shard.prefix + pattern)
    return left


__all__ = ["domain_of", "keys"]
