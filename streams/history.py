"""What became of a message or of a recipient: from the archive and the stream, in order. Reads no more of the archive than
its indexes point at."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from mailqueue.events import Event
from mailqueue.message import born
from mailqueue.scripts import Shard
from mailqueue.trimming import trimmed_to
from streams import ids, index, segment
from streams.archive import Archive, Segment
from streams.ids import StreamId
from streams.merged import Record
from streams.segment import Batch, SegmentDamaged

PAGE = 5000  # entries of a stream, read at once
SKEW_MS = 3_600_000  # the clocks of who made an id and of the queue's server differ by less

END: StreamId = (ids.LAST_NUMBER, ids.LAST_NUMBER)


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that is not empty must fit. ``since``, ``until``: stream ids, both included."""

    id: str = ""
    recipient: str = ""
    account: str = ""
    campaign: str = ""
    since: StreamId = ids.NONE
    until: StreamId = END

    @property
    def hashes(self) -> list[int]:
        """Any of them finds the batches; none: every batch must be looked at."""
        if self.id:
            return [index.id_key(self.id)]
        return [index.recipient_key(self.recipient)] if self.recipient else []

    @property
    def needle(self) -> bytes:
        """Stands in every line that fits, lower case; "" = unknown."""
        if self.id:
            return orjson.dumps(self.id).lower()
        if self.recipient.isascii() and "xn--" not in self.recipient.lower():
            return orjson.dumps(self.recipient.lower().rstrip("."))[:-1]
        return orjson.dumps(self.account)[:-1].lower()[1:] if self.account.isascii() else b""

    def fits(self, record: dict[str, Any]) -> bool:
        if self.id and record.get("id") != self.id:
            return False
        if self.account and record.get("account") != self.account:
            return False
        if self.campaign and record.get("campaign") != self.campaign:
            return False
        if not self.recipient:
            return True
        wanted = index.mailbox(self.recipient)
        return any(index.mailbox(one) == wanted for one in (record.get("recipient", ""), *record.get("recipients", ())))


async def history(
    shards: Sequence[Shard],
    archive: Archive | None,
    *,
    id: str = "",
    recipient: str = "",
    account: str = "",
    campaign: str = "",
    since_ms: int = 0,
    until_ms: int = 0,
    limit: int = 1000,
) -> list[Event]:
    """The newest ``limit`` events that fit, oldest first; dates go by when the event was written, both included, 0 = open.

    A recipient is found in any spelling (:func:`streams.index.mailbox`); ``received`` events by each of theirs. With
    neither id nor recipient every event between the dates is looked at. Raises QueueDown, OSError.
    """
    since_ms = max(since_ms, _made(id) - SKEW_MS)
    until = (until_ms, ids.LAST_NUMBER) if until_ms else END
    wanted = Wanted(id, recipient, account, campaign, (since_ms, 0), until)
    found = [one for shard in shards for one in await _of_shard(shard, archive, wanted, limit)]
    found.sort(key=lambda record: (ids.parse(record.stream_id), record.shard))
    return [Event.from_json(record.data) for record in found[-limit:]]


def _made(message_id: str) -> int:
    """Nothing is said of a message before; 0 for an id that is none of ours."""
    try:
        made = born(message_id)
    except ValueError:
        return 0
    return made if made < time.time() * 1000 else 0


async def _of_shard(shard: Shard, archive: Archive | None, wanted: Wanted, limit: int) -> list[Record]:
    """The stream behind the archive's end first: what is trimmed meanwhile is in the archive by then. What was trimmed
    before there was an archive, or lies in one on another host, is not told."""
    newest, before = "", None
    while True:
        if archive is not None:
            newest = await asyncio.to_thread(archive.newest, shard.number)
        recent = await _streamed(shard, max(wanted.since, ids.following(ids.parse(newest))), wanted, limit)
        if archive is None or newest == before or ids.parse(await trimmed_to(shard)) <= ids.parse(newest):
            break
        before = newest
    if archive is None or len(recent) >= limit:
        return recent[-limit:]
    older = await asyncio.to_thread(_archived, archive, shard.number, wanted, ids.parse(newest), limit - len(recent))
    return older + recent


async def _streamed(shard: Shard, start: StreamId, wanted: Wanted, limit: int) -> list[Record]:
    """The last ``limit``: more is never held."""
    found: deque[Record] = deque(maxlen=limit)
    needle, at, until = wanted.needle, ids.text(start), "+" if wanted.until == END else ids.text(wanted.until)
    while rows := await shard.command("XRANGE", shard.events, at, until, "COUNT", PAGE):
        for place, fields in rows:
            if needle in fields[1].lower() and wanted.fits(_record(fields[1])):
                found.append(Record(shard.number, place.decode(), fields[1]))
        at = f"({rows[-1][0].decode()}"
    return list(found)


def _archived(archive: Archive, shard: int, wanted: Wanted, newest: StreamId, limit: int) -> list[Record]:
    """From the newest batch back, until there are enough."""
    found: list[Record] = []
    for one in reversed(archive.segments(shard)):
        if ids.day(wanted.since) <= one.day <= ids.day(wanted.until):
            for batch in _batches(one, wanted):
                found[:0] = [Record(shard, *entry) for entry in batch if ids.parse(entry[0]) <= newest]
                if len(found) >= limit:
                    return found[-limit:]
    return found


def _batches(one: Segment, wanted: Wanted) -> Iterator[list[segment.Entry]]:
    """The entries that fit, batch by batch, the last one first."""
    try:
        with one.path.open("rb") as file:
            for batch in reversed(_candidates(one.path, file, wanted)):
                if batch.last >= wanted.since and batch.first <= wanted.until:
                    yield list(_matches(file, batch, wanted))
    except FileNotFoundError:  # its time was over
        return


def _candidates(path: Path, file: BinaryIO, wanted: Wanted) -> list[Batch]:
    """Those that the index points at, and all that it does not cover."""
    offsets: set[int] = set()
    covered = segment.HEAD_BYTES
    head = segment.read_head(file)
    if wanted.hashes and head is not None:
        try:
            with index.path_of(path).open("rb") as beside:
                for block in index.blocks(beside, head.tag):
                    covered = block.end
                    offsets.update(*(block.find(beside, hash_) for hash_ in wanted.hashes))
        except FileNotFoundError:
            pass
    pointed = (segment.batch_at(file, offset) for offset in sorted(offsets))
    return [batch for batch in itertools.chain(pointed, segment.passing(file, covered)) if batch is not None]


def _matches(file: BinaryIO, batch: Batch, wanted: Wanted) -> Iterator[segment.Entry]:
    try:
        raw = segment.lines(file, batch)
    except SegmentDamaged:  # `relayctl archive verify` says so; what can be read is told
        return
    lower, needle, at = raw.lower(), wanted.needle, 0
    while (at := lower.find(needle, at)) >= 0 and at < len(raw):
        begin, end = raw.rfind(b"\n", 0, at) + 1, raw.find(b"\n", at)
        place, event = segment.entry(raw[begin:end])
        if wanted.since <= ids.parse(place) <= wanted.until and wanted.fits(_record(event)):
            yield place, event
        at = end + 1


def _record(event: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(event)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
