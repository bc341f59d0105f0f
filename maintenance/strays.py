"""Events of a stream that was begun anew while its clock stood before the archive's end: their ids count as archived, and
they are not. They are written again behind all others, so that they are archived and read."""

from __future__ import annotations

import asyncio

import structlog

from mailqueue.scripts import Shard
from streams import ids
from streams.archive import Archive
from streams.segment import Entry, SegmentDamaged

PAGE = 500

log = structlog.get_logger("archive")


async def bring_behind(shard: Shard, archive: Archive, archived: str) -> int:
    """How many there were up to the id ``archived``. Where the stream still has that entry, or the last one before it is
    archived, there are none: one look says so. Raises QueueDown, ServerAnswer, OSError."""
    last = await _entries(shard, "XREVRANGE", archived, "-", 1)
    if not last or not await asyncio.to_thread(_strays, archive, shard.number, last):
        return 0
    moved, start = 0, "-"
    while rows := await _entries(shard, "XRANGE", start, archived, PAGE):
        strays = await asyncio.to_thread(_strays, archive, shard.number, rows)
        await shard.commands([("XADD", shard.events, "*", "e", event) for _, event in strays])
        await shard.commands([("XDEL", shard.events, place) for place, _ in strays])
        moved += len(strays)
        start = f"({rows[-1][0]}"
    log.error("events lay before the archive's end: written again", shard=shard.number, count=moved, after=archived)
    return moved


async def _entries(shard: Shard, verb: str, begin: str, end: str, most: int) -> list[Entry]:
    rows = await shard.command(verb, shard.events, begin, end, "COUNT", most)
    return [(place.decode(), fields[1]) for place, fields in rows]


def _strays(archive: Archive, shard: int, rows: list[Entry]) -> list[Entry]:
    """Those that the archive does not have, byte by byte. In a thread. What can't be read there counts as archived."""
    after, last = ids.text(ids.preceding(ids.parse(rows[0][0]))), ids.parse(rows[-1][0])
    known: set[Entry] = set()
    try:
        for entry in archive.read(shard, after):
            if ids.parse(entry[0]) > last:
                break
            known.add(entry)
    except SegmentDamaged:
        return []
    return [entry for entry in rows if entry not in known]
