"""The archive as its readers see it: segments of a directory, read by stream id or by date while maintenance writes on.

One file a shard and day (UTC, by the stream id): ``<directory>/2026-11-26.q0.jsonl.zst``. Blocking: call it in a thread.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from streams import ids, segment
from streams.ids import StreamId
from streams.segment import Batch, SegmentDamaged

_NAME = re.compile(r"(\d{4}-\d\d-\d\d)\.q(\d{1,2})\.jsonl\.zst")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    shard: int
    day: datetime.date
    path: Path


class Archive:
    """Readers need no lock: batches are only added at the end of a segment, and one that is written anew or deleted
    stays as it was for whoever has it open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def segments(self, shard: int | None = None) -> list[Segment]:
        """By shard and day; none where there is no directory yet. Raises OSError when it may not be read."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.directory.iterdir():
                one = segment_of(path)
                if one is not None and shard in (None, one.shard):
                    found.append(one)
        return sorted(found)

    def shards(self) -> list[int]:
        return sorted({one.shard for one in self.segments()})

    def newest(self, shard: int) -> str:
        """Stream id of the last archived entry, "" = none."""
        for one in reversed(self.segments(shard)):
            found = _survey(one)
            if found:
                return ids.text(found[-1].last)
        return ""

    def oldest(self, shard: int) -> str:
        """Stream id of the first entry that is kept, "" = none."""
        for one in self.segments(shard):
            found = _survey(one)
            if found:
                return ids.text(found[0].first)
        return ""

    def read(self, shard: int, after: str = "0") -> Iterator[segment.Entry]:
        """(stream id, event JSON) of all entries with larger ids, in order, up to the last that is whole now.

        Raises SegmentDamaged where something in the middle can't be read: its ``after`` says where to go on. ValueError
        for what is no stream id.
        """
        place = ids.parse(after)
        for _, raw, first in self._raw(shard, place):
            if first > place:
                yield from segment.entries(raw)
            else:
                yield from (entry for entry in segment.entries(raw) if ids.parse(entry[0]) > place)

    def read_from(self, shard: int, at_ms: int) -> Iterator[segment.Entry]:
        """The same from a moment on, Unix milliseconds."""
        return self.read(shard, ids.text(ids.before(at_ms)))

    def _raw(self, shard: int, place: StreamId) -> Iterator[tuple[Segment, bytes, StreamId]]:
        """Each batch that has ids > ``place``: its segment, lines and first id."""
        known: datetime.date | None = None
        while True:
            later = [
                one for one in self.segments(shard) if one.day >= ids.day(place) and (known is None or one.day > known)
            ]
            if not later:
                return
            known = later[0].day
            for raw, batch in self._segment(later[0], place):
                yield later[0], raw, batch.first

    def _segment(self, one: Segment, place: StreamId) -> Iterator[tuple[bytes, Batch]]:
        try:
            file = one.path.open("rb")
        except FileNotFoundError:  # its time was over
            return
        with file:
            offset = segment.HEAD_BYTES
            while True:
                # Asked before the end is looked for: once there is a later segment, nothing is added to this one.
                closed, torn = self._closed(one), False
                for batch in segment.batches(file, offset):
                    if batch.last > place:
                        raw = _lines(file, batch)
                        if raw is None:
                            torn = True
                            break
                        yield raw, batch
                    offset = batch.end
                after = None if torn else segment.next_whole(file, offset)
                if after is not None:
                    if after.offset > offset:  # else it has just been written
                        self._refuse(one, offset, place, ids.preceding(after.first))
                    offset = after.offset
                elif closed:
                    if offset < file.seek(0, os.SEEK_END):
                        self._refuse(one, offset, place, ids.last_of(one.day))
                    return
                elif not self._closed(one):
                    return

    def _closed(self, one: Segment) -> bool:
        return any(other.day > one.day for other in self.segments(one.shard))

    @staticmethod
    def _refuse(one: Segment, offset: int, place: StreamId, go_on: StreamId) -> None:
        """Unless the reader has gone on behind this damage."""
        if place < go_on:
            raise SegmentDamaged(f"{one.path}: damaged at {offset}", ids.text(go_on))


def segment_of(path: Path) -> Segment | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        return Segment(int(match[2]), datetime.date.fromisoformat(match[1]), path)
    except ValueError:
        return None


def path_of(directory: Path, shard: int, day: datetime.date) -> Path:
    return directory / f"{day.isoformat()}.q{shard}.jsonl.zst"


def _survey(one: Segment) -> tuple[Batch, ...]:
    try:
        with one.path.open("rb") as file:
            return segment.survey(file).batches
    except FileNotFoundError:
        return ()


def _lines(file: BinaryIO, batch: Batch) -> bytes | None:
    """None for a torn tail. SegmentDamaged when there is more behind it."""
    try:
        return segment.lines(file, batch)
    except SegmentDamaged as damage:
        if segment.next_whole(file, batch.end) is None:
            return None
        raise SegmentDamaged(f"{file.name}: {damage}", damage.after) from None
