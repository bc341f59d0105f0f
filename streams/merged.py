"""Reading what has happened from any place on: from the archive, then from the stream, without a gap or a repetition,
while maintenance archives and trims.

What is trimmed was archived before. So whoever stands at an entry that is still in the stream has everything behind it
there; whoever does not find his entry any more asks the archive first, *after* having asked the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mailqueue.errors import QueueDown
from mailqueue.scripts import Shard
from mailqueue.trimming import trimmed_to
from streams import ids
from streams.archive import Archive
from streams.positions import FRESH
from streams.segment import Entry, SegmentDamaged

MOST = 2000  # entries fetched at once
MOST_BLOCK_SECONDS = 5.0  # a command is given up after twice that
FIRST = ids.parse(FRESH)

Lost = Callable[[int, str, str], None]
"""(shard, last id read, next id): entries between them may be gone, trimmed without an archive or deleted from it."""


@dataclass(frozen=True, slots=True)
class Record:
    """``data``: the event's JSON as it stands in the stream."""

    shard: int
    stream_id: str
    data: bytes


class Tape:
    """The events of one shard behind ``after`` ("0" = from the oldest that is kept). One call at a time."""

    def __init__(self, shard: Shard, archive: Archive | None, after: str = "0", lost: Lost | None = None) -> None:
        ids.parse(after)
        self.shard = shard
        self.after = after  # the last entry read
        self._archive = archive
        self._lost = lost
        self._reading: Iterator[Entry] | None = None  # of the archive, behind ``after``

    def skip_to(self, after: str) -> None:
        """Goes on behind another entry; SegmentDamaged says behind which when the archive is damaged."""
        ids.parse(after)
        self.after, self._reading = after, None

    async def next(self, most: int = MOST, block_seconds: float = 0.0) -> list[Entry]:
        """Up to ``most`` entries, [] when there is nothing more, not even after waiting ``block_seconds``.

        Raises QueueDown, SegmentDamaged, OSError (the archive can't be read): nothing is skipped then.
        """
        found = await self._next(most)
        if not found and block_seconds > 0:
            await self._wait(block_seconds)
            found = await self._next(most)
        if found:
            self.after = found[-1][0]
        return found

    async def _next(self, most: int) -> list[Entry]:
        if self._reading is not None:
            found = await asyncio.to_thread(self._archived, most)
            if found:
                return found
        rows = await self._stream(most + 1)
        if rows and rows[0][0] == self.after:
            return rows[1:]  # nothing behind it was trimmed
        found = await asyncio.to_thread(self._archived, most)
        if found and (not rows or ids.parse(found[0][0]) < ids.parse(rows[0][0])):
            await self._watch(found[0][0])
            return found
        self._reading = None
        await self._watch(rows[0][0] if rows else "")
        return rows[:most]

    async def _stream(self, most: int) -> list[Entry]:
        """From ``after`` itself on."""
        start = "-" if ids.parse(self.after) == ids.NONE else self.after
        rows = await self.shard.command("XRANGE", self.shard.events, start, "+", "COUNT", most)
        return [(place.decode(), fields[1]) for place, fields in rows]

    def _archived(self, most: int) -> list[Entry]:
        """The next ones of the archive; when there are no more, it is asked anew the next time. In a thread."""
        if self._archive is None:
            return []
        if self._reading is None:
            self._reading = self._archive.read(self.shard.number, self.after)
        found: list[Entry] = []
        try:
            for entry in self._reading:
                found.append(entry)
                if len(found) == most:
                    return found
        except (SegmentDamaged, OSError):
            self._reading = None
            if not found:  # else said when what comes before it has been read
                raise
        self._reading = None
        return found

    async def _watch(self, next_id: str) -> None:
        """Says so when there may have been entries between ``after`` and the next one that is left ("" = none is)."""
        after = ids.parse(self.after)
        if self._lost is None or after == ids.NONE:
            return
        trimmed = await trimmed_to(self.shard)  # asked after the stream was
        if after >= ids.parse(trimmed) and (trimmed or not next_id):
            return
        if self._archive is not None and await asyncio.to_thread(self._covered, self._archive, after, trimmed):
            return
        if trimmed or not await self._never_trimmed():
            self._lost(self.shard.number, self.after, next_id or ids.text(ids.following(ids.parse(trimmed))))

    def _covered(self, archive: Archive, after: ids.StreamId, trimmed: str) -> bool:
        """The archive has all of its time behind ``after``, up to where the stream was trimmed. Who began before there
        was any event (:data:`~streams.positions.FRESH`) begins with whatever is archived first."""
        oldest, newest = archive.oldest(self.shard.number), archive.newest(self.shard.number)
        if not oldest or ids.parse(newest) < ids.parse(trimmed):
            return False
        return after <= FIRST or after >= ids.preceding(ids.parse(oldest))

    async def _never_trimmed(self) -> bool:
        """For a stream that was trimmed before it was remembered how far."""
        answer = await self.shard.command("XINFO", "STREAM", self.shard.events)
        facts = dict(zip(answer[::2], answer[1::2], strict=True))
        return bool(facts.get(b"entries-added") == facts[b"length"])  # not told before Redis 7

    async def _wait(self, seconds: float) -> None:
        milliseconds = int(min(max(seconds, 0.001), MOST_BLOCK_SECONDS) * 1000)
        await self.shard.command("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", self.shard.events, self.after)


async def replay(
    shards: Sequence[Shard],
    archive: Archive | None,
    after: Mapping[int, str] | str = "0",
    *,
    end: bool = False,
    block_seconds: float = 1.0,
    lost: Lost | None = None,
) -> AsyncIterator[Record]:
    """All shards, each in its order; what is there already comes in the order of the ids over all of them.

    ``after``: a place for all shards or one for each. With ``end`` it stops when there is nothing more, else it waits,
    over restarts of the server too. Raises QueueDown (with ``end``), SegmentDamaged, OSError.
    """
    tapes = [Tape(s, archive, after if isinstance(after, str) else after.get(s.number, "0"), lost) for s in shards]
    held: dict[int, list[Entry]] = {}
    while True:
        started = time.monotonic()
        for tape in tapes:
            if not held.get(tape.shard.number):
                wait = 0 if end or any(held.values()) else block_seconds / len(tapes)
                held[tape.shard.number] = await _patiently(tape, wait, end)
        found = in_order(held)
        for record in found:
            yield record
        if not found and end:
            return
        if not found and time.monotonic() - started < block_seconds / 10:
            await asyncio.sleep(block_seconds / 10)  # nobody to wait at: the server is away


async def _patiently(tape: Tape, block_seconds: float, end: bool) -> list[Entry]:
    try:
        return await tape.next(block_seconds=block_seconds)
    except QueueDown:
        if end:
            raise
        return []


def in_order(held: dict[int, list[Entry]]) -> list[Record]:
    """Takes from what is held of each shard what may be said now, by stream id: up to where the first one ends that may
    have more."""
    limit = min((ids.parse(entries[-1][0]) for entries in held.values() if entries), default=ids.NONE)
    found: list[tuple[ids.StreamId, Record]] = []
    for shard, entries in held.items():
        taken = 0
        for place, data in entries:
            at = ids.parse(place)
            if at > limit:
                break
            found.append((at, Record(shard, place, data)))
            taken += 1
        held[shard] = entries[taken:]
    return [record for _, record in sorted(found, key=lambda pair: (pair[0], pair[1].shard))]
