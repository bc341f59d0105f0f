"""The one writer of an archive's directory: appends batches, each on disk before it counts; cuts torn tails.

Blocking: for a thread. One call at a time. Everything a segment holds behind its last whole batch was never reported as
archived, so it may be cut; what lies before it is never touched.
"""

from __future__ import annotations

import datetime
import fcntl
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from streams import ids, segment
from streams.archive import Archive, Segment, path_of
from streams.segment import Batch, Entry

LOCK = "lock"
MOST_BYTES = (
    segment.MOST_RAW // 4
)  # of events in one batch; their lines are longer, and a reader takes no more than MOST_RAW

log = structlog.get_logger("archive")


class ArchiveBusy(Exception):
    """Another process writes to this directory."""


@dataclass(slots=True)
class _Open:
    """The segment that a shard's entries go to now; ``end``: behind the last batch that is on disk."""

    segment: Segment
    file: int
    end: int


class Appender:
    """Holds the directory's lock (flock) from :meth:`open` to :meth:`close`; a process that dies lets go of it."""

    def __init__(self, directory: Path) -> None:
        self.archive = Archive(directory)
        self._directory = directory
        self._lock = -1
        self._open: dict[int, _Open] = {}

    @property
    def is_open(self) -> bool:
        return self._lock >= 0

    def open(self) -> None:
        """Makes the directory if its parent is there. Raises ArchiveBusy, OSError."""
        self._directory.mkdir(mode=0o750, exist_ok=True)
        lock = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise ArchiveBusy(f"another process writes to {self._directory}") from None
            raise
        self._lock = lock
        for part in self._directory.glob("*.part"):  # of a process that died
            part.unlink()

    def close(self) -> None:
        for shard in list(self._open):
            self._forget(shard)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def resume(self, shard: int) -> str:
        """Cuts the torn tail of the shard's last segment, if it has one. Stream id of the last entry that is archived,
        "" = none. Raises OSError."""
        self._forget(shard)
        for one in reversed(self.archive.segments(shard)):
            batches = self._mend(one)
            if batches:
                return ids.text(batches[-1].last)
        return ""

    def append(self, shard: int, entries: Sequence[Entry], level: int = segment.LEVEL) -> list[tuple[Segment, Batch]]:
        """All of them are on disk when this returns: where. Raises OSError: then none of the batch in question is, and
        :meth:`resume` says from where to go on. The ids must be larger than all before, in order."""
        if not self._in_place():
            self.close()
            raise OSError(f"{self._directory} is another directory than before: was its disk unmounted?")
        written = []
        for day, group in _portions(entries):
            data = segment.batch(group, level)
            there = self._segment(shard, day)
            try:
                self._write(there, data)
            except BaseException:
                self._cut(there)
                self._forget(shard)
                raise
            written.append((there.segment, self._read_back(there, len(data))))
        return written

    def _in_place(self) -> bool:
        """The name still leads to the directory whose lock we hold."""
        try:
            return os.path.samestat(os.stat(self._directory / LOCK), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def _write(self, there: _Open, data: bytes) -> None:
        if os.fstat(there.file).st_size != there.end:
            raise OSError(f"{there.segment.path} has changed under our hands")
        view = memoryview(data)
        while view:
            view = view[os.write(there.file, view) :]
        os.fsync(there.file)
        there.end += len(data)

    @staticmethod
    def _read_back(there: _Open, length: int) -> Batch:
        with there.segment.path.open("rb") as file:
            found = segment.batch_at(file, there.end - length)
        assert found is not None, "just written"
        return found

    def _segment(self, shard: int, day: datetime.date) -> _Open:
        there = self._open.get(shard)
        if there is None or there.segment.day != day:
            self._forget(shard)
            one = Segment(shard, day, path_of(self._directory, shard, day))
            if one.path.exists():
                self._mend(one)
            else:
                self._begin(one)
            file = os.open(one.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            there = self._open[shard] = _Open(one, file, os.fstat(file).st_size)
        return there

    def _begin(self, one: Segment) -> None:
        """A new segment appears with its head whole, and its name is on disk before anything is in it."""
        part = one.path.with_name(one.path.name + ".part")
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            os.write(file, segment.head(one.shard))
            os.fsync(file)
        finally:
            os.close(file)
        part.replace(one.path)
        sync_directory(self._directory)

    def _mend(self, one: Segment) -> tuple[Batch, ...]:
        with one.path.open("r+b") as file:
            os.fsync(file.fileno())  # what a dead process wrote and did not sync counts from now on
            found = segment.survey(file)
            for begin, end in found.damages:
                log.error("archive damaged", segment=str(one.path), begin=begin, end=end)
            size = os.fstat(file.fileno()).st_size
            if size > found.end:
                log.warning("torn tail cut", segment=str(one.path), at=found.end, bytes=size - found.end)
                file.truncate(found.end)
                os.fsync(file.fileno())
        return found.batches

    @staticmethod
    def _cut(there: _Open) -> None:
        """Frees the room at once; if that fails, :meth:`resume` cuts it."""
        try:
            os.ftruncate(there.file, there.end)
        except OSError as error:
            log.warning("torn tail not cut", segment=str(there.segment.path), why=str(error))

    def _forget(self, shard: int) -> None:
        there = self._open.pop(shard, None)
        if there is not None:
            os.close(there.file)


def _portions(entries: Sequence[Entry]) -> Iterator[tuple[datetime.date, Sequence[Entry]]]:
    """What is one batch each: of one day, and no more than a reader takes."""
    for day, group in _by_day(entries):
        begin = size = 0
        for at, (_, event) in enumerate(group):
            if size and size + len(event) > MOST_BYTES:
                yield day, group[begin:at]
                begin, size = at, 0
            size += len(event)
        yield day, group[begin:]


def _by_day(entries: Sequence[Entry]) -> Iterator[tuple[datetime.date, Sequence[Entry]]]:
    first, last = (ids.day(ids.parse(entries[at][0])) for at in (0, -1))
    if first == last:
        yield first, entries
        return
    for day, group in itertools.groupby(entries, key=lambda entry: ids.day(ids.parse(entry[0]))):
        yield day, list(group)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
