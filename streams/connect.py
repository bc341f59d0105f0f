"""What the configuration says of queue and archive, opened for a reader that is no process of the relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from config.settings import Settings
from mailqueue import scripts, server
from mailqueue.scripts import Shard
from streams.archive import Archive


def archive_of(settings: Settings) -> Archive | None:
    return Archive(Path(settings.archive.directory)) if settings.archive.directory else None


@asynccontextmanager
async def connected(settings: Settings, patience: float = 30.0) -> AsyncIterator[list[Shard]]:
    """All shards on connections of their own. Raises QueueRefused, QueueDown."""
    queue = settings.queue
    password = queue.password.get_secret_value() if queue.password else None
    sources = scripts.load_sources(("group", "behind"))
    shards = [Shard(scripts.connect(queue.url, password), number, sources) for number in range(queue.shards)]
    try:
        await server.await_server(shards[0], queue, patience)
        yield shards
    finally:
        for shard in shards:
            with suppress(Exception):
                await shard.client.aclose()
