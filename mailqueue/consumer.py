"""A plain consumer of the events: all shards merged, from a position on, without groups or acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from mailqueue.errors import QueueDown
from mailqueue.events import Event
from mailqueue.scripts import Shard


async def follow(
    shards: Sequence[Shard], start: str = "$", *, block_seconds: float = 1.0, end: bool = False
) -> AsyncIterator[Event]:
    """Events from ``start`` ("0" = the oldest kept, "$" = from now on, or a stream id), in the order of arrival per
    shard. With ``end`` it stops when there is nothing more; else it waits, over restarts of the server too."""
    positions = {shard.number: start for shard in shards}
    if start == "$":
        for shard in shards:
            last = await shard.command("XREVRANGE", shard.events, "+", "-", "COUNT", 1)
            positions[shard.number] = last[0][0].decode() if last else "0"
    while True:
        found = False
        for shard in shards:
            try:
                rows = await _read(shard, positions[shard.number], 0 if end else block_seconds / len(shards))
            except QueueDown:
                await asyncio.sleep(0.2)
                continue
            for position, event in rows:
                found = True
                positions[shard.number] = position
                yield event
        if end and not found:
            return


async def _read(shard: Shard, position: str, block_seconds: float) -> list[tuple[str, Event]]:
    words: list[str | int] = ["XREAD", "COUNT", 1000]
    if block_seconds:
        words += ["BLOCK", max(int(block_seconds * 1000), 1)]
    answer = await shard.command(*words, "STREAMS", shard.events, position)
    if not answer:
        return []
    return [(row_id.decode(), Event.from_json(fields[1])) for row_id, fields in answer[0][1]]
