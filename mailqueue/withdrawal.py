"""What happens to recipients that no worker has in hand, as lua/withdraw.lua is told of it.

One verb for one message is one step: state, event and DSN record together. Who does it for many messages, by hand,
is :class:`Hand`; who does it by the clock is :mod:`mailqueue.reaper`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mailqueue import keys, stopped
from mailqueue.entries import Row
from mailqueue.events import Event, about
from mailqueue.message import Envelope, Message, QueueItem, State, domain_of
from mailqueue.quota import Charge
from mailqueue.scripts import Argument, Shard
from mailqueue.selection import DEFERRED, HELD, LEASED, QUEUED, Entry, where
from mailqueue.stopped import Stop

Record = Callable[[Envelope, int, State, str, int], bytes]
"""(envelope, index, state, action "failed"|"delayed", now ms) → what a DSN will say, b"" for none."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """``verb`` of lua/withdraw.lua; ``kind`` of the event, "" = none; ``action`` (RFC 3464) for a DSN; ``status`` and
    ``diagnostic`` of the event, where they are not the last attempt's; ``actor``: by hand, whose."""

    verb: str
    kind: str = ""
    reason: str = ""
    action: str = ""
    status: str = ""
    diagnostic: str = ""
    actor: str = ""

    def event(self, item: QueueItem, now: int) -> Event | None:
        """About a recipient that no session speaks of."""
        if not self.kind:
            return None
        last = f"smtp; {item.state.reply}" if item.state.reply else ""
        return about(
            item,
            self.kind,
            now,
            action=self.action if self.kind in ("expired", "bounced") else "",
            status=self.status,
            diagnostic_code=self.diagnostic or last,
            source=item.state.source,
            attempt=item.state.attempts,
            reason=self.reason,
            actor=self.actor,
        )


def arguments(
    withdrawal: Withdrawal,
    envelope: Envelope,
    states: dict[int, State],
    now: int,
    record: Record,
    *,
    look_at: int = 0,
    charge: Charge | None = None,
) -> tuple[list[Argument], list[Event | None]]:
    """Words for the script about the recipients that ``states`` has, and the event of each."""
    words: list[Argument] = [withdrawal.verb, look_at or "", envelope.id]
    words += [keys.flow_name(envelope), str(charge or ""), len(states)]
    told: list[Event | None] = []
    for index, state in states.items():
        item = QueueItem(Message(envelope, b""), index, "", domain_of(envelope.recipients[index]), state)
        event = withdrawal.event(item, now)
        told.append(event)
        said = record(envelope, index, state, withdrawal.action, now) if withdrawal.action else b""
        if withdrawal.verb == "hold":
            said = f"{withdrawal.actor}\n{withdrawal.reason}".encode()
        words += [item.key, item.destination, event.to_json() if event else b"", said]
    return words, told


# What a verb can be done to, and what it says of the others.
FITS = {
    "hold": {QUEUED, DEFERRED},
    "release": {HELD},
    "retry": {QUEUED, DEFERRED},
    "close": {QUEUED, DEFERRED, HELD},
    "suppress": {QUEUED, DEFERRED, HELD},
}
MOST_STOPS = 100  # that are named
IN_HAND = "in a worker's hands"
DUE = "due already"
GONE = "final or moved meanwhile"
DAMAGED = "damaged"


class Hand:
    """Does one thing to selected recipients and counts. ``charge``: what suppress gives back, by message."""

    def __init__(
        self, withdrawal: Withdrawal, record: Record, charge: Callable[[Envelope], Charge | None] = lambda _one: None
    ) -> None:
        self.done = 0
        self.left: Counter[str] = Counter()  # why not → how many
        self.suspended = 0  # of those done, that wait all the same
        self.stops: set[Stop] = set()  # for these
        self._withdrawal, self._record, self._charge = withdrawal, record, charge

    async def apply(self, rows: Sequence[Row]) -> None:
        """Rows of one shard. Raises QueueDown: then some of them may be done that were not counted."""
        fitting: dict[str, list[Row]] = {}
        for row in rows:
            if row.envelope is None:
                self.left[DAMAGED] += 1
            elif row.place in FITS[self._withdrawal.verb]:
                fitting.setdefault(row.entry.id, []).append(row)
            else:
                self.left[IN_HAND if row.place == LEASED else row.place] += 1
        if fitting:
            await self._run(rows[0].shard, list(fitting.values()))

    async def _run(self, shard: Shard, messages: Sequence[Sequence[Row]]) -> None:
        now = int(time.time() * 1000)
        calls = []
        for rows in messages:
            envelope = rows[0].envelope
            assert envelope is not None
            states = {row.entry.index: row.state for row in rows}
            charge = self._charge(envelope)
            calls.append(arguments(self._withdrawal, envelope, states, now, self._record, charge=charge)[0])
        done: list[Entry] = []
        missed: list[Entry] = []
        for rows, applied in zip(messages, await shard.run_each("withdraw", calls), strict=True):
            self.done += len(applied)
            places = set(map(int, applied))
            for place, entry in enumerate({row.entry.index: row.entry for row in rows}.values()):
                (done if place in places else missed).append(entry)
        if missed:
            await self._why_not(shard, missed)
        if done and self._withdrawal.verb in ("retry", "release"):
            await self._suspended(shard, done)

    async def _suspended(self, shard: Shard, entries: Sequence[Entry]) -> None:
        now = int(time.time() * 1000)
        stops = await stopped.stops(shard)
        sus = await stopped.suspended(shard, {entry.destination for entry in entries})
        for entry in entries:
            found = stopped.over(entry.flow, entry.destination, entry.group, stops, sus, now)
            self.suspended += bool(found)
            if len(self.stops) < MOST_STOPS:
                self.stops.update(found)

    async def _why_not(self, shard: Shard, entries: Sequence[Entry]) -> None:
        """It lay there when it was looked up."""
        found: dict[bytes, Entry] = {}
        for flow in {entry.flow for entry in entries}:
            mine = [(entry.key, entry.destination) for entry in entries if entry.flow == flow]
            found |= {entry.key: entry for entry in await where(shard, flow, mine)}
        for entry in entries:
            there = found.get(entry.key)
            if there is not None and there.place == LEASED:
                self.left[IN_HAND] += 1
            elif there is not None and self._withdrawal.verb == "retry" and there.place == QUEUED:
                self.left[DUE] += 1
            else:
                self.left[GONE] += 1
