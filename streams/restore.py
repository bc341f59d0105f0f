"""A copy of the queue goes into an empty server, reconciled with what has happened since: nothing that was delivered after
the copy was made is sent again, nothing that was accepted is lost in silence.

What the archive says became of a recipient stands; it is not restored. All else goes on hold, whatever it was doing, until
an operator has looked. What was accepted after the copy and has no final event is gone with the server, and is listed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mailqueue import content, keys, restoring
from mailqueue.content import NO_DICTIONARY
from mailqueue.events import Event
from mailqueue.message import Envelope, Message, QueueItem, domain_of
from mailqueue.quota import Ledger
from mailqueue.reaper import event_of
from mailqueue.restoring import Open, Place, Restored
from mailqueue.scripts import Shard
from mailqueue.trimming import trimmed_to
from mailqueue.worker import pack_state, unpack_state
from streams import ids
from streams.archive import Archive
from streams.fates import FINAL, Accepted, Fate, Fates, is_open
from streams.positions import FRESH, clock
from streams.segment import SegmentDamaged
from streams.starts import last_id
from streams.usage import Usage, spend

FIRST = ids.parse(FRESH)
BATCH, BATCH_BYTES = 500, 4 * 1024 * 1024
PAGE = 500
TOLD_AFTER_MS = 60_000  # what was due so long before the last event has been told
_NOTES: Mapping[Place, str] = {
    "queued": "",
    "held": "on hold then",
    "in flight": "in a worker's hands then",
    "marked": "behind its final dot then, and never to go out twice",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Of the copy: what the events call it, and when it was made (Unix ms)."""

    name: str
    at: int

    @property
    def text(self) -> str:
        return f"restored from {self.name} of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.at / 1000))}"


@dataclass(slots=True)
class Report:
    """Counts of recipients but for ``messages``, ``damaged`` and ``keys``."""

    messages: int = 0
    held: int = 0
    by_place: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)  # kind of the event that told → recipients
    notices: int = 0  # messages whose DSN is still composed
    damaged: list[str] = field(default_factory=list)
    keys: int = 0
    events: int = 0
    used: int = 0  # recipients that quotas paid for since
    lost: list[Accepted] = field(default_factory=list)
    untold: list[Event] = field(default_factory=list)
    ends: int = 0  # Unix ms of the last event known, 0 = none is


# ── what is known ──────────────────────────────────────────────────────────────────────────────────────────────────


async def gaps(
    source: Sequence[Shard], archive: Archive | None, days_by_kind: Mapping[str, int], now: int
) -> list[str]:
    """Why the events since the copy may not all be known, one sentence each; [] = they are, up to the archive's end."""
    if archive is None:
        return ["there is no archive (archive.directory): nothing is known of what was delivered since"]
    found = []
    for shard in source:
        copied = ids.parse(await last_id(shard))
        oldest = ids.parse(await asyncio.to_thread(archive.oldest, shard.number))
        newest = ids.parse(await asyncio.to_thread(archive.newest, shard.number))
        name, made = f"shard {shard.number}", clock(ids.text(copied))
        if newest == ids.NONE and copied <= FIRST:
            continue  # nothing has ever happened there
        if newest == ids.NONE:
            found.append(f"{name}: the archive is empty")
        elif oldest > copied:
            found.append(
                f"{name}: the archive begins at {clock(ids.text(oldest))}, after the copy's last event ({made})"
            )
        elif newest < copied:
            found.append(
                f"{name}: the archive ends at {clock(ids.text(newest))}, before the copy's last event ({made})"
            )
        days = (now - copied[0]) / 86_400_000
        for kind in sorted(FINAL | {"received", "unknown", "late"}):
            if 0 < days_by_kind.get(kind, 0) < days:
                found.append(f"{name}: events {kind} are kept {days_by_kind[kind]} days, the copy is older")
    return found


async def known_since(source: Sequence[Shard], archive: Archive | None, copied: Collection[str], usage: Usage) -> Fates:
    """All that happened behind the copy's last events. Raises SegmentDamaged, OSError."""
    fates = Fates(copied)
    for shard in source:
        after = await last_id(shard)
        fates.last = max(fates.last, ids.parse(after)[0])
        if archive is not None:
            await asyncio.to_thread(_read, archive, shard.number, after, fates, usage)
    return fates


def _read(archive: Archive, shard: int, after: str, fates: Fates, usage: Usage) -> None:
    for _, text in archive.read(shard, after):
        try:
            event = Event.from_json(text)
        except (ValueError, TypeError):
            continue  # what is no event tells nothing of a recipient
        fates.add(event)
        usage.add(shard, event)


# ── the work ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def restore(
    source: Sequence[Shard],
    target: Sequence[Shard],
    archive: Archive | None,
    origin: Origin,
    *,
    ledger: Ledger,
    zone: str,
    dsn_window_ms: int,
    reconcile: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Report:
    """``source``: the copy's shards on a server of its own; ``target``: empty (:func:`refuse_unless_empty`). ``reconcile``
    False leaves the archive out: for those who show what that would do. Raises QueueDown, QueueRefused, ServerAnswer;
    the target is then to be thrown away."""
    identities = {shard.number: await restoring.message_ids(shard) for shard in source}
    copied = frozenset(one for found in identities.values() for one in found)
    usage = Usage(zone)
    fates = await known_since(source, archive if reconcile else None, copied, usage)
    report = Report(ends=fates.last, lost=list(fates.accepted.values()), untold=fates.untold(dsn_window_ms))
    await restoring.begin(target[0], origin.text)
    report.keys = await restoring.copy_keys(source[0], target[0])
    done = 0
    for old, new in zip(source, target, strict=True):
        await restoring.copy_meta(old, new)
        report.events += await _events(old, new, archive)
        work = _Work(old, fates, origin, report, await restoring.places(old), await restoring.notices(old))
        async for batch in work.batches(identities[old.number]):
            await restoring.put_back(new, batch)
            done += len(batch)
            progress(done, len(copied))
    await spend(usage, ledger, target, f"used after the copy {origin.name} was made")
    report.used = usage.total
    await restoring.end(target[0])
    return report


async def _events(source: Shard, target: Shard, archive: Archive | None) -> int:
    """The copy's events that the archive does not have; readers find the others there. What was lost to readers before
    stays lost to them; and ids go on behind all that were given, wherever this server's clock stands."""
    archived = await asyncio.to_thread(archive.newest, source.number) if archive is not None else ""
    gone = max(ids.parse(archived), ids.parse(await trimmed_to(source)))
    if gone > ids.NONE:
        await target.command("HSET", target.prefix + "meta", "trimmed", ids.text(gone))
    count = await restoring.copy_events(source, target, archived)
    given = max(gone, ids.parse(await last_id(source)))
    if given > ids.parse(await last_id(target)):
        await target.command("XADD", target.events, ids.text(given), "e", "{}")
        await target.command("XDEL", target.events, ids.text(given))
    return count


class _Work:
    """One shard's messages on their way."""

    def __init__(
        self,
        source: Shard,
        fates: Fates,
        origin: Origin,
        report: Report,
        places: Mapping[bytes, Place],
        notices: Mapping[str, int],
    ) -> None:
        self._source = source
        self._fates = fates
        self._origin = origin
        self._report = report
        self._places = places
        self._notices = notices
        self._dictionaries: set[bytes] = set()  # that have been put there

    async def batches(self, identities: Sequence[str]) -> AsyncIterator[list[Restored]]:
        batch: list[Restored] = []
        size = 0
        for first in range(0, len(identities), PAGE):
            for one in await self._page(identities[first : first + PAGE]):
                batch.append(one)
                size += len(one.value) + len(one.dictionary_bytes) + 500 * len(one.open)
                if len(batch) >= BATCH or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    async def _page(self, identities: Sequence[str]) -> list[Restored]:
        prefix = self._source.prefix
        values = await self._source.command("MGET", *(f"{prefix}m:{one}" for one in identities))
        found: list[Restored] = []
        envelopes: list[tuple[Envelope, bytes]] = []
        for identity, value in zip(identities, values, strict=True):
            try:
                envelopes.append((content.unpack_envelope(identity, value or b""), value))
            except ValueError:
                self._report.damaged.append(identity)
        states = await self._states([envelope for envelope, _ in envelopes])
        for envelope, value in envelopes:
            restored = await self._message(envelope, value, states)
            if restored is not None:
                found.append(restored)
        return found

    async def _states(self, envelopes: Sequence[Envelope]) -> dict[bytes, bytes]:
        """Of the items that have one."""
        items = [keys.item(one.id, index) for one in envelopes for index in range(len(one.recipients))]
        items = [item for item in items if item in self._places]
        if not items:
            return {}
        found = await self._source.command("MGET", *(self._source.prefix.encode() + b"s:" + item for item in items))
        return {item: state for item, state in zip(items, found, strict=True) if state}

    async def _message(self, envelope: Envelope, value: bytes, states: Mapping[bytes, bytes]) -> Restored | None:
        """None when nothing is left to do for it."""
        prefix = self._source.prefix.encode()
        keep = self._open(envelope, states)
        records, due = await self._records(envelope.id)
        if not keep and not records:
            return None
        _, dictionary = content.header(value)
        dictionary_bytes = b""
        if dictionary == NO_DICTIONARY:
            dictionary = b""
        elif dictionary not in self._dictionaries:
            self._dictionaries.add(dictionary)
            dictionary_bytes = await self._source.command("GET", prefix + b"d:" + dictionary) or b""
        self._report.messages += bool(keep)
        self._report.held += len(keep)
        self._report.notices += bool(records)
        look_at = envelope.notify_after if envelope.notify_after > self._fates.last else envelope.expires_at
        return Restored(
            id=envelope.id,
            value=value,
            flow=keys.flow_name(envelope),
            look_at=look_at,  # a delay that was told is not told again
            dictionary=dictionary,
            dictionary_bytes=dictionary_bytes,
            recipients=len(envelope.recipients),
            open=tuple(keep),
            records=records,
            records_due=due,
        )

    def _open(self, envelope: Envelope, states: Mapping[bytes, bytes]) -> list[Open]:
        now = int(time.time() * 1000)
        places = [self._places.get(keys.item(envelope.id, i)) for i in range(len(envelope.recipients))]
        there = [(index, place) for index, place in enumerate(places) if place is not None]
        fates = {index: self._fates.of(envelope.id, index) for index, _ in there}
        keep = []
        for index, place in there:
            fate = fates[index]
            if not is_open(fate, envelope.unknown):
                self._report.closed[fate.closed] += 1
                continue
            self._report.by_place[place] += 1
            stored = states.get(keys.item(envelope.id, index), b"")
            keep.append(self._held(envelope, index, place, fate, stored, now))
        return keep

    def _held(self, envelope: Envelope, index: int, place: Place, fate: Fate, stored: bytes, now: int) -> Open:
        key = keys.item(envelope.id, index)
        state = fate.state or unpack_state(stored)
        item = QueueItem(Message(envelope, b""), index, "", domain_of(envelope.recipients[index]), state)
        notes = [self._origin.text, _NOTES[place], fate.note]
        if envelope.unknown == "never" and place != "marked":
            notes.append("never to go out twice: what was sent shortly before the loss is not known")
        event = event_of(item, "held", now, reason="; ".join(filter(None, notes)))
        packed = pack_state(state) if fate.state else stored
        return Open(key, item.destination, packed, event.to_json())

    async def _records(self, message_id: str) -> tuple[tuple[bytes, ...], int]:
        """What a DSN was to say and has not said: it is said after all, unless it was due well before the last event."""
        due = self._notices.get(message_id)
        if due is None or due < self._fates.last - TOLD_AFTER_MS:
            return (), 0
        return tuple(await self._source.command("LRANGE", f"{self._source.prefix}b:{message_id}", 0, -1)), due


__all__ = ["SegmentDamaged", "gaps", "restore"]
