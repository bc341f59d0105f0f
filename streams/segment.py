"""A segment: the events of one shard and one day as JSON lines in zstd frames (RFC 8878). What is in it is archived.

=========  =========================================================================================================
head       skippable frame (§3.1.2): format, shard, flags, a random tag that a rewritten segment has anew
batch…     skippable frame that says what follows (sizes, count, first and last stream id), then one zstd frame
           with a checksum: lines ``{"stream_id":"ms-number","kind":…}``, the event as it stood in the stream
=========  =========================================================================================================

Any zstd reads the lines (``zstdcat``). Whole batches follow each other without a gap; what a crash left behind the last
whole one is its torn tail. Pure but for reading the file that is passed in; blocking.
"""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO
from zlib import crc32

import zstandard

from streams import ids
from streams.ids import StreamId

Entry = tuple[str, bytes]  # stream id, event as JSON

FORMAT = 1
PACKED = 1  # flag: written anew after its day was over
LEVEL, PACKED_LEVEL = 1, 9  # of events, level 3 makes no less than 1 in twice the time, 9 makes a tenth less
MOST_RAW = 256 * 1024 * 1024  # of one batch, bytes; a damaged length must not cost more memory

_SKIPPABLE = struct.Struct("<II")  # magic number, length of what follows
_HEAD_MAGIC, _BATCH_MAGIC = 0x184D2A5A, 0x184D2A5B
_HEAD = struct.Struct("<8sHHI8s")  # "tambo-ev", format, shard, flags, tag
_BATCH = struct.Struct("<IIIQQQQ")  # stored, raw, count, first id, last id
_CRC = struct.Struct("<I")
HEAD_BYTES = _SKIPPABLE.size + _HEAD.size + _CRC.size
BATCH_HEAD_BYTES = _SKIPPABLE.size + _BATCH.size + _CRC.size
_NAME = b"tambo-ev"
_BEGIN, _WRAPPED = b'{"stream_id":"', b'"base64":"'


class SegmentDamaged(Exception):
    """``after``: the id behind which reading may go on, "" = nothing follows."""

    def __init__(self, why: str, after: str = "") -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True, slots=True)
class Head:
    shard: int
    flags: int
    tag: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """``offset`` of its head in the file; ``crc`` of its head."""

    offset: int
    stored: int
    raw: int
    count: int
    first: StreamId
    last: StreamId
    crc: int

    @property
    def end(self) -> int:
        return self.offset + BATCH_HEAD_BYTES + self.stored


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def head(shard: int, flags: int = 0) -> bytes:
    body = _HEAD.pack(_NAME, FORMAT, shard, flags, os.urandom(8))
    return _framed(_HEAD_MAGIC, body)


def batch(entries: Sequence[Entry], level: int = LEVEL) -> bytes:
    """One batch of at least one entry, in order of the ids."""
    raw = b"".join(line(place, event) for place, event in entries)
    return batch_of_lines(raw, len(entries), ids.parse(entries[0][0]), ids.parse(entries[-1][0]), level)


def batch_of_lines(raw: bytes, count: int, first: StreamId, last: StreamId, level: int = LEVEL) -> bytes:
    stored = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(raw)
    return _framed(_BATCH_MAGIC, _BATCH.pack(len(stored), len(raw), count, *first, *last)) + stored


def line(place: str, event: bytes) -> bytes:
    """The event with its stream id in front; what is no JSON object on one line is wrapped, for nothing is left out."""
    if event.startswith(b'{"') and b"\n" not in event and not event.startswith(_WRAPPED, 1):
        return _BEGIN + place.encode() + b'",' + event[1:] + b"\n"
    return _BEGIN + place.encode() + b'",' + _WRAPPED + base64.b64encode(event) + b'"}\n'


def _framed(magic: int, body: bytes) -> bytes:
    return _SKIPPABLE.pack(magic, len(body) + _CRC.size) + body + _CRC.pack(crc32(body))


def private(path: str, flags: int) -> int:
    """Opener of files that hold addresses: for owner and group."""
    return os.open(path, flags | os.O_CLOEXEC, 0o640)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_head(file: BinaryIO) -> Head | None:
    """None when there is no whole one. SegmentDamaged when it is another program's or a later version's."""
    file.seek(0)
    body = _unframed(file.read(HEAD_BYTES), _HEAD_MAGIC)
    if body is None:
        return None
    name, version, shard, flags, tag = _HEAD.unpack(body)
    if name != _NAME or version > FORMAT:
        raise SegmentDamaged(f"format {version} of {name!r} is not known here")
    return Head(shard, flags, tag)


def batches(file: BinaryIO, offset: int = HEAD_BYTES) -> Iterator[Batch]:
    """From ``offset``, where one begins, up to the first that is not whole; by their heads alone."""
    size = file.seek(0, os.SEEK_END)
    while (found := batch_at(file, offset)) is not None and found.end <= size:
        yield found
        offset = found.end


def batch_at(file: BinaryIO, offset: int) -> Batch | None:
    file.seek(offset)
    text = file.read(BATCH_HEAD_BYTES)
    body = _unframed(text, _BATCH_MAGIC)
    if body is None:
        return None
    stored, raw, count, *places = _BATCH.unpack(body)
    return Batch(offset, stored, raw, count, (places[0], places[1]), (places[2], places[3]), crc32(body))


def lines(file: BinaryIO, of: Batch) -> bytes:
    """A batch's lines. SegmentDamaged when its checksum does not hold."""
    file.seek(of.offset + BATCH_HEAD_BYTES)
    stored = file.read(of.stored)
    try:
        if len(stored) < of.stored or of.raw > MOST_RAW or zstandard.frame_content_size(stored) != of.raw:
            raise SegmentDamaged(f"batch at {of.offset}: not whole", ids.text(of.last))
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=of.raw)
    except zstandard.ZstdError as error:
        raise SegmentDamaged(f"batch at {of.offset}: {error}", ids.text(of.last)) from None


def entries(raw: bytes) -> Iterator[Entry]:
    """The lines' entries, each event byte by byte as it was."""
    for one in raw.split(b"\n")[:-1]:
        yield entry(one)


def entry(one: bytes) -> Entry:
    place, _, rest = one[len(_BEGIN) :].partition(b'",')
    if rest.startswith(_WRAPPED):
        return place.decode(), base64.b64decode(rest[len(_WRAPPED) : -2])
    return place.decode(), b"{" + rest


def next_whole(file: BinaryIO, offset: int) -> Batch | None:
    """The first whole batch behind a damage at ``offset``; None: what is there is a torn tail."""
    size = file.seek(0, os.SEEK_END)
    magic = _SKIPPABLE.pack(_BATCH_MAGIC, _BATCH.size + _CRC.size)
    while offset < size:
        file.seek(offset)
        text = file.read(1 << 20)
        at = text.find(magic)
        while at >= 0:
            found = batch_at(file, offset + at)
            if found is not None and found.end <= size:
                return found
            at = text.find(magic, at + 1)
        if len(text) < len(magic):
            return None
        offset += len(text) - len(magic) + 1  # it may lie across two reads
    return None


@dataclass(frozen=True, slots=True)
class Survey:
    """``damages``: (offset, offset) between which nothing is whole though something follows. ``end``: behind the last
    whole batch; what lies there is a torn tail."""

    batches: tuple[Batch, ...]
    damages: tuple[tuple[int, int], ...]
    end: int


def survey(file: BinaryIO) -> Survey:
    """By the heads; the last batch's lines are read as well, for its pages may not have reached the disk."""
    found: list[Batch] = []
    damages: list[tuple[int, int]] = []
    end = HEAD_BYTES
    for one in passing(file):
        if one.offset > end:
            damages.append((end, one.offset))
        found.append(one)
        end = one.end
    if found and not is_whole(file, found[-1]):
        end = found.pop().offset
    return Survey(tuple(found), tuple(damages), end)


def passing(file: BinaryIO, offset: int = HEAD_BYTES) -> Iterator[Batch]:
    """As :func:`batches`, past damages too."""
    while True:
        for one in batches(file, offset):
            yield one
            offset = one.end
        after = next_whole(file, offset)
        if after is None:
            return
        offset = after.offset


def is_whole(file: BinaryIO, one: Batch) -> bool:
    try:
        lines(file, one)
    except SegmentDamaged:
        return False
    return True


def _unframed(text: bytes, magic: int) -> bytes | None:
    if len(text) < _SKIPPABLE.size + _CRC.size:
        return None
    seen, length = _SKIPPABLE.unpack_from(text)
    body = text[_SKIPPABLE.size : -_CRC.size]
    if seen != magic or length != len(text) - _SKIPPABLE.size or _CRC.unpack(text[-_CRC.size :])[0] != crc32(body):
        return None
    return body
