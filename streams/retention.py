"""How long what has happened is kept, and closed segments packed; for whoever writes the archive, blocking.

Only segments that are not their shard's last are touched: the last one says where archiving goes on. What is written anew
is whole and on disk before it takes the old one's place; readers that have the old one open are not disturbed.
"""

from __future__ import annotations

import datetime
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson
import structlog

from streams import ids, index, segment
from streams.appender import sync_directory
from streams.archive import Archive, Segment
from streams.index import Covered
from streams.indexing import Indexer
from streams.segment import SegmentDamaged

PACK_BYTES, PACK_LINES = 8 * 1024 * 1024, 20_000  # of a packed batch

log = structlog.get_logger("archive")


@dataclass(frozen=True, slots=True)
class Terms:
    """Days by kind of event, ``days`` for all others; 0 = for ever."""

    days: int = 0
    by_kind: Mapping[str, int] = field(default_factory=dict)

    def over(self, kinds: Collection[str], age: int) -> set[str]:
        """Of the kinds, those whose time is over when their day was ``age`` days ago."""
        return {kind for kind in kinds if 0 < self.by_kind.get(kind, self.days) < age}


class Retention:
    """``stop`` is asked between batches; ``pause`` (seconds of work done) leaves the machine to others."""

    def __init__(
        self, archive: Archive, stop: Callable[[], bool] = lambda: False, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._archive = archive
        self._stop = stop
        self._pause = pause
        self._indexer = Indexer()
        self._damaged: set[Path] = set()
        self._known: dict[Path, tuple[set[str], bool]] = {}
        self._turn = 0

    def look(self, terms: Terms, today: datetime.date) -> int:
        """One pass over all closed segments: how many were packed, thinned or deleted. Raises OSError."""
        changed = 0
        closed = [one for shard in self._archive.shards() for one in self._archive.segments(shard)[:-1]]
        for one in closed:
            if self._stop():
                return changed
            try:
                changed += self._look_at(one, terms, (today - one.day).days)
            except SegmentDamaged as damage:
                self._say(one, damage)
        self._check_an_index([one for one in closed if one.path.exists() and one.path not in self._damaged])
        return changed

    def _say(self, one: Segment, damage: SegmentDamaged) -> None:
        if one.path not in self._damaged:
            log.error("archive damaged: kept as it is", segment=str(one.path), why=str(damage))
        self._damaged.add(one.path)

    def _look_at(self, one: Segment, terms: Terms, age: int) -> bool:
        kinds, packed = self._facts(one)
        over = terms.over(kinds, age)
        if kinds and over == kinds:
            self._delete(one)
            return True
        if (over or not packed) and one.path not in self._damaged:
            return self._write_anew(one, over)
        return False

    def _facts(self, one: Segment) -> tuple[set[str], bool]:
        """The kinds of events in a segment by its index, which is made where it lacks; whether it is packed. Read once:
        a segment of a day that is over changes by our own hand alone."""
        known = self._known.get(one.path)
        if known is None or not index.path_of(one.path).exists():
            known = self._known[one.path] = self._read_facts(one.path)
        return known

    def _read_facts(self, path: Path) -> tuple[set[str], bool]:
        with path.open("rb") as file:
            head = segment.read_head(file)
            if head is None:
                return set(), True
            self._indexer.catch_up(path)
            with index.path_of(path).open("rb") as beside:
                kinds = {kind for block in index.blocks(beside, head.tag) for kind in block.kinds}
        return kinds, bool(head.flags & segment.PACKED)

    def _check_an_index(self, closed: list[Segment]) -> None:
        """One at each pass, in turn: reading all of them each time would be gigabytes a year's archive."""
        if not closed:
            return
        one = closed[self._turn % len(closed)]
        self._turn += 1
        with one.path.open("rb") as file:
            head = segment.read_head(file)
            if head is None:
                return
            try:
                with index.path_of(one.path).open("rb") as beside:
                    if all(index.is_sound(beside, block) for block in index.blocks(beside, head.tag)):
                        return
            except FileNotFoundError:
                pass
        log.warning("index made anew", segment=str(one.path))
        self._indexer.make(one.path)

    def _write_anew(self, one: Segment, without: set[str]) -> bool:
        part = one.path.with_name(one.path.name + ".part")
        try:
            with one.path.open("rb") as old, open(part, "wb", opener=segment.private) as new:
                written = _Packing(new, one.shard)
                for raw in self._batches(old, one):
                    written.add(raw, without)
                written.end()
                os.fsync(new.fileno())
        except SegmentDamaged as damage:
            part.unlink()
            self._say(one, damage)
            return False
        except OSError as error:  # a full disk gets its room back
            part.unlink(missing_ok=True)
            if isinstance(error, InterruptedError):
                return False
            raise
        self._replace(one, part, written, without)
        return True

    def _batches(self, old: BinaryIO, one: Segment) -> Iterator[bytes]:
        found = segment.survey(old)
        if found.damages or found.end < os.fstat(old.fileno()).st_size:  # it was whole when its day was over
            raise SegmentDamaged(f"damaged at {min([found.end, *(begin for begin, _ in found.damages)])}")
        for batch in found.batches:
            if self._stop():
                raise InterruptedError
            began = time.monotonic()
            yield segment.lines(old, batch)
            self._pause(time.monotonic() - began)

    def _replace(self, one: Segment, part: Path, written: _Packing, without: set[str]) -> None:
        before = one.path.stat().st_size
        self._known.pop(one.path, None)
        if not written.covered:
            part.unlink()
            self._delete(one)
            return
        part.replace(one.path)
        sync_directory(one.path.parent)
        beside = index.path_of(one.path)
        begin = beside.with_name(beside.name + ".part")
        with open(begin, "wb", opener=segment.private) as file:
            file.write(index.head(written.tag) + index.block(written.covered, written.kinds, segment.HEAD_BYTES))
        begin.replace(beside)
        after = one.path.stat().st_size
        log.info("segment packed", segment=str(one.path), before=before, after=after, without=sorted(without))

    def _delete(self, one: Segment) -> None:
        self._known.pop(one.path, None)
        one.path.unlink(missing_ok=True)
        index.path_of(one.path).unlink(missing_ok=True)
        sync_directory(one.path.parent)
        log.info("segment deleted", segment=str(one.path))


class _Packing:
    """A segment being written: lines gathered into longer batches of a better level."""

    def __init__(self, file: BinaryIO, shard: int) -> None:
        self._file = file
        front = segment.head(shard, segment.PACKED)
        file.write(front)
        self.tag = front[-12:-4]
        self.covered: list[Covered] = []
        self.kinds: Counter[str] = Counter()
        self._lines: list[bytes] = []
        self._bytes = 0

    def add(self, raw: bytes, without: set[str]) -> None:
        lines = raw.split(b"\n")[:-1]
        for line in lines if not without else (line for line in lines if kind_of(line) not in without):
            self._lines.append(line)
            self._bytes += len(line)
            if self._bytes >= PACK_BYTES or len(self._lines) >= PACK_LINES:
                self.end()

    def end(self) -> None:
        if not self._lines:
            return
        raw = b"\n".join(self._lines) + b"\n"
        places = [ids.parse(segment.entry(line)[0]) for line in (self._lines[0], self._lines[-1])]
        offset = self._file.tell()
        self._file.write(segment.batch_of_lines(raw, len(self._lines), places[0], places[1], segment.PACKED_LEVEL))
        hashes, kinds = index.keys_of(raw)
        self.covered.append(Covered(offset, self._file.tell(), hashes))
        self.kinds += kinds
        self._lines, self._bytes = [], 0


def kind_of(line: bytes) -> str:
    """Of an event's line; "" for what says none."""
    begin = line.find(b',"kind":"')
    if 0 <= begin < 64:  # in front, as events are written
        return line[begin + 9 : line.find(b'"', begin + 9)].decode(errors="replace")
    try:
        return str(orjson.loads(line).get("kind", ""))
    except ValueError:
        return ""
