"""Where reading begins: now, with the oldest event that is kept, at a date, behind a position."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mailqueue.errors import ServerAnswer
from mailqueue.scripts import Shard
from mailqueue.trimming import trimmed_to
from streams import ids
from streams.archive import Archive
from streams.positions import FRESH, by_shard, date_ms, is_position


async def starts(shards: Sequence[Shard], archive: Archive | None, start: str) -> dict[int, str]:
    """Stream id to read behind, by shard, for "new", "oldest", a date or a position (which is of one shard alone). A date
    before the first event that is kept means that one. ValueError says what is allowed; QueueDown, OSError."""
    if start == "new":
        return {shard.number: await last_id(shard) for shard in shards}
    if is_position(start):
        return by_shard([start], len(shards))
    at = ids.NONE if start == "oldest" else ids.before(date_ms(start))
    return {shard.number: ids.text(max(await _oldest(shard, archive), at)) for shard in shards}


async def last_id(shard: Shard) -> str:
    """Of the last event there was, whether the stream still holds it or not."""
    try:
        facts = await shard.command("XINFO", "STREAM", shard.events)
    except ServerAnswer:  # no such key: nothing has ever been written
        return FRESH
    found: bytes = dict(zip(facts[::2], facts[1::2], strict=True))[b"last-generated-id"]
    return ids.text(max(ids.parse(found.decode()), ids.parse(FRESH)))


async def _oldest(shard: Shard, archive: Archive | None) -> ids.StreamId:
    """The first event that is kept comes next."""
    oldest = await asyncio.to_thread(archive.oldest, shard.number) if archive is not None else ""
    if oldest:
        return ids.preceding(ids.parse(oldest))
    return max(ids.parse(await trimmed_to(shard) or FRESH), ids.parse(FRESH))
