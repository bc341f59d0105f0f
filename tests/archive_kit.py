"""What tests of the archive share: events with running numbers, an archiver at work, also as a process of its own
(``python -m tests.archive_kit URL DIRECTORY SHARDS``) that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from config.settings import Settings
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from maintenance.alarms import Alarms
from maintenance.archiving import Archiving
from streams import ids
from streams.merged import replay
from tests.queue_kit import opened

DAY = 1_767_225_600_000  # 2026-01-01 UTC


class Fixed:
    """A reloader that never reloads."""

    def __init__(self, **archive: Any) -> None:
        self.settings = Settings.model_validate({"archive": archive})


def archiver(
    queue: Queue, directory: Path, linger_seconds: float = 0.05, **settings: Any
) -> tuple[Archiving, CollectorRegistry]:
    registry = CollectorRegistry()
    reloader: Any = Fixed(directory=str(directory), **({"keep_in_stream": 1000} | settings))
    alarms = Alarms(queue.shards[0], registry)
    return Archiving(queue, reloader, registry, alarms, linger_seconds=linger_seconds, lease_seconds=1.0), registry


@contextlib.asynccontextmanager
async def archiving(queue: Queue, directory: Path, **settings: Any) -> AsyncIterator[CollectorRegistry]:
    work, registry = archiver(queue, directory, **settings)
    stop = asyncio.Event()
    task = asyncio.create_task(work.run(stop))
    try:
        yield registry
    finally:
        stop.set()
        await task


def event(number: int, **facts: Any) -> bytes:
    return orjson.dumps({"kind": "delivered", "at": DAY + number, "n": number, "id": f"m{number}", "v": 1} | facts)


async def add(shard: Shard, first: int, count: int, **facts: Any) -> None:
    async with shard.client.pipeline(transaction=False) as pipe:
        for number in range(first, first + count):
            pipe.xadd(shard.events, {"e": event(number, **facts)})
        await pipe.execute()


async def length(shard: Shard) -> int:
    return int(await shard.command("XLEN", shard.events))


async def numbers(shards: Sequence[Shard], archive: Any) -> dict[int, list[int]]:
    """Shard → running numbers as they are replayed, alarms left out; asserts that ids only grow."""
    found: dict[int, list[int]] = {shard.number: [] for shard in shards}
    last = dict.fromkeys(found, ids.NONE)
    async for record in replay(shards, archive, end=True):
        place = ids.parse(record.stream_id)
        assert place > last[record.shard]
        last[record.shard] = place
        if "n" in (told := orjson.loads(record.data)):
            found[record.shard].append(told["n"])
    return found


def value(registry: Any, name: str) -> float:
    return float(registry.get_sample_value(name) or 0.0)


async def holds(condition: Any) -> bool:
    return bool(condition())


async def main(url: str, directory: str, shards: str) -> None:
    async with opened(url, shards=int(shards)) as queue:
        work, _ = archiver(queue, Path(directory))
        await work.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
