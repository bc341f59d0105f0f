"""The index beside a segment: which of its batches speak of a message id or a recipient. Made from the segment alone.

``2026-11-26.q0.index`` = head (format, tag of the segment), then blocks. A block covers a run of batches: one while the
day goes on, all of them when the segment has been packed. Its keys are sorted 64-bit numbers, 40 bits of a hash and 24 of
the batch's number in the block, cut into buckets by the hash's first bits, each with a checksum: a look-up reads one
bucket, and knows when that is damaged. What no sound block covers is looked through as if there were no index.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import orjson

from mailqueue.message import domain_of
from streams.segment import HEAD_BYTES

FORMAT = 1
BUCKET = 4096  # keys, about
MOST_BATCHES = 2**24 - 1  # of a block

_HEAD = struct.Struct("<8sHHI8s")  # name, format, -, -, the segment's tag
_BLOCK = struct.Struct("<4sIIIIQQ")  # mark, bits, batches, keys, length of the kinds, offsets in the segment: from, to
_CRC = struct.Struct("<I")
_NAME, _MARK = b"tambo-ix", b"TXB1"


def path_of(segment: Path) -> Path:
    return segment.with_name(segment.name.removesuffix(".jsonl.zst") + ".index")


# ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def id_key(message_id: str) -> int:
    return _hash(b"i" + message_id.encode())


def recipient_key(address: str) -> int:
    """The same for all spellings of a mailbox that mail people take for one."""
    return _hash(b"r" + mailbox(address).encode())


def mailbox(address: str) -> str:
    """Lower case, the domain in A-labels. Two mailboxes that a host tells apart by case alone are taken for one."""
    return f"{address.rpartition('@')[0].lower()}@{domain_of(address)}" if "@" in address else address.lower()


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=5).digest(), "big")


def keys_of(raw: bytes) -> tuple[array[int], Counter[str]]:
    """Of a batch's lines: the hashes in order, each once, and its events by kind."""
    ids: set[str] = set()
    recipients: set[str] = set()
    kinds: Counter[str] = Counter()
    for line in raw.split(b"\n")[:-1]:
        record = _record(line)
        kinds[str(record.get("kind", ""))] += 1
        ids.add(record.get("id", ""))
        recipients.add(record.get("recipient", ""))
        if "recipients" in record:
            recipients.update(record["recipients"])
    found = {id_key(one) for one in ids if one} | {recipient_key(one) for one in recipients if one}
    return array("Q", sorted(found)), kinds


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Covered:
    """One batch for the index: where it begins and ends in the segment, its hashes in order."""

    offset: int
    end: int
    hashes: array[int]


def head(tag: bytes) -> bytes:
    body = _HEAD.pack(_NAME, FORMAT, 0, 0, tag)
    return body + _CRC.pack(crc32(body))


def block(covered: Sequence[Covered], kinds: Mapping[str, int], begin: int) -> bytes:
    """Of all batches that can be read between ``begin``, where the last block ended, and the last of them."""
    count = sum(len(one.hashes) for one in covered)
    bits = max((count // BUCKET).bit_length(), 0)
    buckets = [_bucket(covered, number, bits) for number in range(1 << bits)]
    said = orjson.dumps(dict(kinds))
    front = _BLOCK.pack(_MARK, bits, len(covered), count, len(said), begin, covered[-1].end)
    front += array("Q", [one.offset for one in covered]).tobytes()
    table, start = array("I"), 0
    for keys in buckets:
        table.extend((start, crc32(keys.tobytes())))
        start += len(keys)
    front += table.tobytes() + said
    return front + _CRC.pack(crc32(front)) + b"".join(keys.tobytes() for keys in buckets)


def _bucket(covered: Sequence[Covered], number: int, bits: int) -> array[int]:
    """The keys of one bucket, from every batch its part: never all keys at once as Python's numbers."""
    low, high = number << (40 - bits), (number + 1) << (40 - bits)
    keys: list[int] = []
    for at, one in enumerate(covered):
        begin, end = bisect.bisect_left(one.hashes, low), bisect.bisect_left(one.hashes, high)
        keys += [hash_ << 24 | at for hash_ in one.hashes[begin:end]]
    return array("Q", sorted(keys))


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Block:
    """``keys``: where its keys begin in the index; ``begin`` to ``end``: what it covers of the segment."""

    begin: int
    end: int
    batches: array[int]
    kinds: Mapping[str, int]
    count: int
    bits: int
    table: array[int]
    keys: int

    @property
    def after(self) -> int:
        """Where the next block begins in the index."""
        return self.keys + 8 * self.count

    def bucket(self, file: BinaryIO, number: int) -> array[int] | None:
        """None when it is damaged."""
        start, crc = self.table[2 * number : 2 * number + 2]
        stop = self.table[2 * number + 2] if 2 * number + 2 < len(self.table) else self.count
        file.seek(self.keys + 8 * start)
        text = file.read(8 * (stop - start))
        return array("Q", text) if len(text) == 8 * (stop - start) and crc32(text) == crc else None

    def find(self, file: BinaryIO, hash_: int) -> Iterable[int]:
        """Offsets of the batches that may speak of it; all of them when the bucket is damaged."""
        keys = self.bucket(file, hash_ >> (40 - self.bits))
        if keys is None:
            return self.batches
        begin, end = bisect.bisect_left(keys, hash_ << 24), bisect.bisect_left(keys, (hash_ + 1) << 24)
        return [self.batches[key & MOST_BATCHES] for key in keys[begin:end]]


def blocks(file: BinaryIO, tag: bytes) -> Iterator[Block]:
    """Those that follow each other from the begin, of the segment with this tag; up to the first that is not sound."""
    file.seek(0)
    front = file.read(_HEAD.size + _CRC.size)
    if front != head(tag):
        return
    size, at, end = os.fstat(file.fileno()).st_size, len(front), HEAD_BYTES
    while (found := _block_at(file, at)) is not None and found.after <= size and found.begin == end:
        yield found
        at, end = found.after, found.end


def _block_at(file: BinaryIO, at: int) -> Block | None:
    file.seek(at)
    front = file.read(_BLOCK.size)
    if len(front) < _BLOCK.size:
        return None
    mark, bits, batches, count, said, begin, end = _BLOCK.unpack(front)
    if mark != _MARK or bits > 24 or batches > MOST_BATCHES or said > 1 << 20:
        return None
    rest = file.read(8 * batches + (8 << bits) + said + _CRC.size)
    body = front + rest[: -_CRC.size]
    if len(rest) != 8 * batches + (8 << bits) + said + _CRC.size or _CRC.unpack(rest[-_CRC.size :])[0] != crc32(body):
        return None
    table = 8 * batches
    return Block(
        begin,
        end,
        array("Q", rest[:table]),
        orjson.loads(rest[table + (8 << bits) : -_CRC.size]),
        count,
        bits,
        array("I", rest[table : table + (8 << bits)]),
        at + len(front) + len(rest),
    )


def is_sound(file: BinaryIO, one: Block) -> bool:
    """Whether every bucket is."""
    return all(one.bucket(file, number) is not None for number in range(1 << one.bits))
