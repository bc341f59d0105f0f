"""Selected recipients with what is known of them: their message's envelope, their state, where they lie."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from mailqueue import selection as sel
from mailqueue.message import Envelope, State
from mailqueue.reading import envelopes
from mailqueue.scan import pages
from mailqueue.scripts import Shard
from mailqueue.selection import Entry, Selection
from mailqueue.worker import unpack_state

KEPT = 200  # envelopes of messages with several recipients, which come again page after page


@dataclass(frozen=True, slots=True)
class Row:
    """``envelope`` None: the message is damaged, or went meanwhile."""

    shard: Shard
    entry: Entry
    envelope: Envelope | None
    state: State

    @property
    def recipient(self) -> str:
        known = self.envelope is not None and self.entry.index < len(self.envelope.recipients)
        return self.envelope.recipients[self.entry.index] if self.envelope and known else ""

    @property
    def place(self) -> str:
        """One of STATES: what was tried already is deferred."""
        tried = self.entry.place == sel.QUEUED and self.state.attempts > 0
        return sel.DEFERRED if tried else self.entry.place


class Entries:
    """Reads pages; one for a pass through the queue."""

    def __init__(self, shards: Sequence[Shard], selection: Selection) -> None:
        self.shards, self.selection = shards, selection
        self._several: OrderedDict[str, Envelope] = OrderedDict()

    async def rows(self, last: str = sel.LEASED) -> AsyncIterator[list[Row]]:
        """All that is selected, read; ``last`` as in :func:`mailqueue.scan.pages`. Raises QueueDown."""
        async for shard, entries in pages(self.shards, self.selection, last):
            yield self._wanted(await self._read(shard, entries))

    async def counted(self, seen: Callable[[int], None] = lambda _count: None) -> int:
        """How many; messages are read only where the selection needs it. ``seen`` hears of each page."""
        total = 0
        async for shard, entries in pages(self.shards, self.selection):
            read = self.selection.reads
            count = len(self._wanted(await self._read(shard, entries))) if read else len(entries)
            total += count
            seen(count)
        return total

    async def oldest(self, most: int, after: bytes = b"") -> list[Row]:
        """The first ``most`` behind the key ``after``, by age; memory is for so many, however many there are."""
        best: dict[bytes, Row] = {}
        bound = b""  # the last of the best, once there are enough
        async for shard, entries in pages(self.shards, self.selection):
            near = [e for e in entries if e.key > after and e.key not in best and (not bound or e.key < bound)]
            if not near:
                continue
            if self.selection.reads:
                near = [row.entry for row in self._wanted(await self._read(shard, near))]
            best |= {entry.key: Row(shard, entry, None, State()) for entry in near}
            if len(best) > most:
                best = {key: best[key] for key in heapq.nsmallest(most, best)}
            if len(best) == most:
                bound = max(best)
        found: dict[bytes, Row] = {}
        for shard in self.shards:
            mine = [row.entry for row in best.values() if row.shard is shard]
            for at in range(0, len(mine), sel.PAGE):
                found |= {row.entry.key: row for row in await self._read(shard, mine[at : at + sel.PAGE])}
        return [found[key] for key in sorted(found)]

    def _wanted(self, rows: Sequence[Row]) -> list[Row]:
        """As far as only a read row can say."""
        states, recipient = self.selection.states, self.selection.recipient
        return [
            row
            for row in rows
            if (not states or row.place in states) and (not recipient or _same(row.recipient, recipient))
        ]

    async def _read(self, shard: Shard, entries: Sequence[Entry]) -> list[Row]:
        if not entries:
            return []
        unknown = [entry.id for entry in entries if entry.id not in self._several]
        known = self._several | await envelopes(shard, unknown)
        names = [shard.prefix.encode() + b"s:" + entry.key for entry in entries]
        states = map(unpack_state, await shard.command("MGET", *names))
        rows = [Row(shard, entry, known.get(entry.id), state) for entry, state in zip(entries, states, strict=True)]
        for row in rows:
            if row.envelope is not None and len(row.envelope.recipients) > 1:
                self._several[row.entry.id] = row.envelope
        while len(self._several) > KEPT:
            self._several.popitem(last=False)
        return rows


def _same(one: str, other: str) -> bool:
    """The local part is the receiver's affair, but people who look for an address do not know its capitals."""
    return one.lower() == other.lower()
