"""Reading a stream that is far ahead: several stretches of it at once.

A server sends 64 KB to a connection each time it has served all others, and with ``appendfsync always`` it syncs as often.
One connection then reads some 150 events a sync however many are written in it; several read as many times that.
"""

from __future__ import annotations

import asyncio

from mailqueue.scripts import Shard
from streams import ids
from streams.segment import Entry

STRETCHES = 4


async def read(shard: Shard, after: str, page: int, pace: float) -> tuple[list[Entry], bool]:
    """Entries behind ``after`` without a gap, and whether there are more. ``pace``: entries a millisecond, 0 = unknown, or
    little to read: then one page is read. Raises QueueDown."""
    if pace <= 0:
        rows = await _stretch(shard, f"({after}", "+", page)
        return rows, len(rows) == page
    # Only up to what is there now: later ids may be added to a stretch after it has been read.
    newest = await shard.command("XREVRANGE", shard.events, "+", "-", "COUNT", 1)
    last = ids.parse(newest[0][0].decode()) if newest else ids.NONE
    bounds = stretches(ids.parse(after), last, page / pace)
    parts = await asyncio.gather(*(_stretch(shard, begin, end, page * 2) for begin, end in bounds))
    found: list[Entry] = []
    for rows in parts:
        found += rows
        if len(rows) == page * 2:  # perhaps not all of it: what is behind is read again
            break
    return found, bool(found) and ids.parse(found[-1][0]) < last


def stretches(after: ids.StreamId, last: ids.StreamId, length_ms: float) -> list[tuple[str, str]]:
    """(from, to) of XRANGE, of whole milliseconds, each where the one before it ended; none beyond ``last``."""
    found = []
    begin, at = f"({ids.text(after)}", after[0]
    for number in range(1, STRETCHES + 1):
        end = max(after[0] + int(number * length_ms), at + 1)
        if end >= last[0]:
            found.append((begin, ids.text(last)))
            break
        found.append((begin, f"{end}-{ids.LAST_NUMBER}"))
        begin, at = f"{end + 1}-0", end
    return found


async def _stretch(shard: Shard, begin: str, end: str, most: int) -> list[Entry]:
    rows = await shard.command("XRANGE", shard.events, begin, end, "COUNT", most)
    return [(place.decode(), fields[1]) for place, fields in rows]
