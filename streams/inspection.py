"""Looking at the archive's files: what is in them, whether it is whole, its lines by date. Blocking."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from streams import ids, index, segment
from streams.archive import Archive, Segment
from streams.ids import StreamId
from streams.segment import Batch, SegmentDamaged


@dataclass(frozen=True, slots=True)
class Facts:
    """``index``: "whole", "behind" (its last batches are not in it), "none". ``kinds``: of the batches that are in it."""

    shard: int
    day: str
    name: str
    bytes: int
    index_bytes: int
    batches: int
    events: int
    first: str
    last: str
    packed: bool
    index: str
    kinds: dict[str, int]


def facts(one: Segment) -> Facts:
    """By the heads of its batches. Raises OSError, SegmentDamaged (another version's)."""
    with one.path.open("rb") as file:
        head = segment.read_head(file)
        found = list(segment.passing(file))
        covered, kinds, size = _covered(one, head.tag if head else b"")
        state = "none" if not covered else "whole" if found and covered >= found[-1].end else "behind"
        return Facts(
            one.shard,
            one.day.isoformat(),
            one.path.name,
            one.path.stat().st_size,
            size,
            len(found),
            sum(batch.count for batch in found),
            ids.text(found[0].first) if found else "",
            ids.text(found[-1].last) if found else "",
            bool(head and head.flags & segment.PACKED),
            state,
            dict(kinds),
        )


def _covered(one: Segment, tag: bytes) -> tuple[int, Counter[str], int]:
    end, kinds = 0, Counter[str]()
    try:
        with index.path_of(one.path).open("rb") as file:
            for block in index.blocks(file, tag):
                end = block.end
                kinds.update(block.kinds)
        return end, kinds, index.path_of(one.path).stat().st_size
    except FileNotFoundError:
        return end, kinds, 0


def verify(one: Segment, *, last: bool, told: Callable[[int], None] = lambda _: None) -> tuple[int, list[str]]:
    """Reads every batch: how many events are whole, and what is wrong, a sentence each. ``last``: of its shard, where a
    torn tail is nothing wrong: it is being written, or will be cut. ``told``: bytes looked at so far. Raises OSError."""
    with one.path.open("rb") as file:
        try:
            head = segment.read_head(file)
        except SegmentDamaged as damage:
            return 0, [str(damage)]
        wrong = [] if head is not None else ["its head is damaged"]
        end, events, before = segment.HEAD_BYTES, 0, ids.NONE
        found = list(segment.passing(file))
        for batch in found:
            if batch.offset > end:
                wrong.append(
                    f"damaged from {end} to {batch.offset}: between {ids.text(before)} and {ids.text(batch.first)}"
                )
            problem = _batch(file, batch, before, one)
            if problem and not (last and batch is found[-1]):
                wrong.append(problem)
            events += 0 if problem else batch.count
            before, end = batch.last, batch.end
            told(end)
        size = one.path.stat().st_size
        if size > end and not last:
            wrong.append(f"damaged from {end} to its end at {size}")
        if head is not None:
            wrong += _index(one, head.tag)
    return events, wrong


def _batch(file: BinaryIO, batch: Batch, before: StreamId, one: Segment) -> str:
    try:
        places = [ids.parse(place) for place, _ in segment.entries(segment.lines(file, batch))]
    except (SegmentDamaged, ValueError) as damage:
        return f"{damage} ({batch.count} events from {ids.text(batch.first)} to {ids.text(batch.last)})"
    where = f"batch at {batch.offset}"
    if (len(places), places[0], places[-1]) != (batch.count, batch.first, batch.last):
        return f"{where}: its head says {batch.count} events from {ids.text(batch.first)} to {ids.text(batch.last)}"
    if any(first >= second for first, second in zip([before, *places], places, strict=False)):
        return f"{where}: its ids are not in order"
    return f"{where}: is of another day" if {ids.day(places[0]), ids.day(places[-1])} != {one.day} else ""


def _index(one: Segment, tag: bytes) -> list[str]:
    """One that lacks is made by maintenance; one that is damaged, too, and slow until then."""
    try:
        with index.path_of(one.path).open("rb") as file:
            if all(index.is_sound(file, block) for block in index.blocks(file, tag)):
                return []
    except FileNotFoundError:
        return []
    return [f"its index {index.path_of(one.path).name} is damaged: remove it, maintenance makes it anew"]


def lines(archive: Archive, since: StreamId, until: StreamId, damaged: Callable[[str], None]) -> Iterator[bytes]:
    """All shards' lines from one id to another, both included, in the order of the ids, each with its ``stream_id``. Damage
    is said and passed over. Raises OSError."""
    streams = (_of_shard(archive, shard, since, until, damaged) for shard in archive.shards())
    for _, _, line in heapq.merge(*streams):
        yield line


def _of_shard(
    archive: Archive, shard: int, since: StreamId, until: StreamId, damaged: Callable[[str], None]
) -> Iterator[tuple[StreamId, int, bytes]]:
    after = ids.preceding(since)
    while True:
        try:
            for place, event in archive.read(shard, ids.text(after)):
                at = ids.parse(place)
                if at > until:
                    return
                after = at
                yield at, shard, segment.line(place, event)
            return
        except SegmentDamaged as damage:
            damaged(f"{damage}: events between {ids.text(after)} and {damage.after} can't be read")
            if ids.parse(damage.after) <= after:
                return
            after = ids.parse(damage.after)
