"""Which recipients a verb is about: read page by page from the indexes that are there, so that a queue of a million can
be gone through while it works.

No command looks at more than a page: flows, destinations, queues, hold and the workers' hands are scanned by cursor.
What lies still all the while is found exactly once or, where the server rearranges a table meanwhile, twice; what moves
meanwhile (a worker takes it, or brings it back) may be found where it was, where it is, or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mailqueue import keys
from mailqueue.message import domain_of, id_at
from mailqueue.reading import envelopes
from mailqueue.scripts import Argument, Shard
from mailqueue.selection import (
    DEFERRED,
    HELD,
    LEASED,
    PAGE,
    QUEUED,
    Entry,
    Flow,
    Selection,
    epochs,
    groups_of,
    hash_pages,
    where,
)

ITEM_BYTES = 22  # of a message whose id new_id made
TOGETHER = 50  # scans in one round trip: the server answers others in between
T = TypeVar("T")


@dataclass(slots=True)
class _Scan:
    """One shard as a selection sees it."""

    shard: Shard
    selection: Selection
    flows: dict[str, Flow] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)  # destination → group, where it is not default
    youngest: bytes = b""  # where ids that are too young begin, "" = none is

    @property
    def prefix(self) -> str:
        return self.shard.prefix

    def wants(self, key: bytes) -> bool:
        """By what the key alone says: ids sort by time, others are of no age."""
        return not self.youngest or (len(key) == ITEM_BYTES and key < self.youngest)


async def pages(
    shards: Sequence[Shard], selection: Selection, last: str = LEASED
) -> AsyncIterator[tuple[Shard, list[Entry]]]:
    """Entries by what the indexes know; where :attr:`Selection.reads`, their messages must be asked, too
    (:mod:`mailqueue.entries`). ``last``: the place from which the caller takes things elsewhere; it is gone through when
    the others are, so that nothing is met again where it was put. Raises QueueDown."""
    for shard in shards:
        scan = _Scan(shard, selection, youngest=id_at(selection.before).encode() if selection.before else b"")
        scan.flows = {flow.id: flow async for flow in _flows(shard, selection)}
        if selection.domain:
            scan.groups = await groups_of(shard, [selection.domain])
        if selection.ids:
            mine = [one for one in selection.ids if keys.shard_of(one, len(shards)) == shard.number]
            async for page in _by_ids(scan, mine):
                yield shard, page
            continue
        for place in sorted((QUEUED, HELD, LEASED), key=lambda place: place == last):
            if selection.looks_at(*((QUEUED, DEFERRED) if place == QUEUED else (place,))):
                async for page in _IN[place](scan):
                    yield shard, page


async def _flows(shard: Shard, selection: Selection) -> AsyncIterator[Flow]:
    async for rows in hash_pages(shard, "flow"):
        for name, number in rows:
            words = name.decode().split("\n")
            if len(words) != 4:
                continue
            flow = Flow(number.decode(), keys.CLASS_NAME[words[0]], *words[1:])
            wanted = (selection.class_ or flow.class_, selection.account or flow.account)
            if wanted == (flow.class_, flow.account) and selection.campaign in ("", flow.campaign):
                yield flow


# ── what waits in queues ───────────────────────────────────────────────────────────────────────────────────────────


async def _queued(scan: _Scan) -> AsyncIterator[list[Entry]]:
    async for queues in _queues(scan):
        cursors = dict.fromkeys(queues, b"0")
        while cursors:
            waiting = list(cursors)
            asked: list[Sequence[Argument]] = [
                ("ZSCAN", f"{scan.prefix}q:{flow.id}:{destination}", cursors[flow, destination, group], "COUNT", PAGE)
                for flow, destination, group in waiting
            ]
            page: list[Entry] = []
            for queue, (cursor, rows) in zip(waiting, await scan.shard.commands(asked), strict=True):
                flow, destination, group = queue
                page += (
                    Entry(rows[at], flow, destination, group, QUEUED, int(float(rows[at + 1])))
                    for at in range(0, len(rows), 2)
                    if scan.wants(rows[at])
                )
                cursors[queue] = cursor
                if cursor == b"0":
                    del cursors[queue]
            for part in _parts(page):
                yield part


Queue = tuple[Flow, str, str]  # flow, destination, group


async def _queues(scan: _Scan) -> AsyncIterator[list[Queue]]:
    """Queues that may have something, so many at a time that a page of each is one round trip's worth."""
    if scan.selection.domain:
        domain = scan.selection.domain
        group = scan.groups.get(domain, "default")
        if scan.selection.provider in ("", group):
            for part in _parts(list(scan.flows.values()), TOGETHER):
                yield [(flow, domain, group) for flow in part]
        return
    groups = [word.decode() for word in await scan.shard.command("SMEMBERS", scan.prefix + "lanes")]
    lanes = [
        (flow, group) for flow in scan.flows.values() for group in groups if scan.selection.provider in ("", group)
    ]
    for some in _parts(lanes, TOGETHER):
        async for queues in _destinations(scan, some):
            yield queues


async def _destinations(scan: _Scan, lanes: Sequence[tuple[Flow, str]]) -> AsyncIterator[list[Queue]]:
    cursors = dict.fromkeys(lanes, b"0")
    while cursors:
        waiting = list(cursors)
        asked: list[Sequence[Argument]] = [
            ("ZSCAN", f"{scan.prefix}r:{flow.letter}:{group}:{flow.id}", cursors[flow, group], "COUNT", PAGE)
            for flow, group in waiting
        ]
        queues: list[Queue] = []
        for lane, (cursor, rows) in zip(waiting, await scan.shard.commands(asked), strict=True):
            queues += ((lane[0], rows[at].decode(), lane[1]) for at in range(0, len(rows), 2))
            cursors[lane] = cursor
            if cursor == b"0":
                del cursors[lane]
        for part in _parts(queues, TOGETHER):
            yield part


# ── what is held, and what workers have ────────────────────────────────────────────────────────────────────────────


async def _held(scan: _Scan) -> AsyncIterator[list[Entry]]:
    async for rows in hash_pages(scan.shard, "hold"):
        places = [(key, value.split(b"\n", 3), "") for key, value in rows if scan.wants(key)]
        found = [(key, *_place(words[1:]), HELD, epoch, b"".join(words[3:])) for key, words, epoch in places]
        for part in _parts(await _entries(scan, found)):
            yield part


async def _leased(scan: _Scan) -> AsyncIterator[list[Entry]]:
    for epoch in await epochs(scan.shard):
        async for rows in hash_pages(scan.shard, f"w:{epoch}"):
            places = [(key, value.split(b"\n", 3)) for key, value in rows if key != b"#" and scan.wants(key)]
            found = [(key, *_place(words[1:]), LEASED, epoch, words[0]) for key, words in places]
            for part in _parts(await _entries(scan, found)):
                yield part


_IN = {QUEUED: _queued, HELD: _held, LEASED: _leased}


def _place(words: Sequence[bytes]) -> tuple[str, str]:
    return words[0].decode(), words[1].decode()


async def _entries(scan: _Scan, found: Sequence[tuple[bytes, str, str, str, str, bytes]]) -> list[Entry]:
    """Of (key, flow, destination, place, epoch, note), with their groups."""
    domain = scan.selection.domain
    mine = [one for one in found if one[1] in scan.flows and domain in ("", one[2])]
    groups = await groups_of(scan.shard, {one[2] for one in mine})
    return [
        Entry(key, scan.flows[flow], destination, group, place, 0, epoch, note)
        for key, flow, destination, place, epoch, note in mine
        if scan.selection.provider in ("", group := groups.get(destination, "default"))
    ]


# ── by id ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _by_ids(scan: _Scan, ids: Sequence[str]) -> AsyncIterator[list[Entry]]:
    by_name = {(flow.letter, flow.account, flow.campaign, flow.pool): flow for flow in scan.flows.values()}
    for part in _parts(ids):
        for message_id, envelope in (await envelopes(scan.shard, part)).items():
            flow = by_name.get(tuple(keys.flow_name(envelope).split("\n")))  # type: ignore[arg-type]
            if flow is None:
                continue
            places = [(keys.item(message_id, n), domain_of(to)) for n, to in enumerate(envelope.recipients)]
            domain = scan.selection.domain
            for some in _parts([place for place in places if domain in ("", place[1]) and scan.wants(place[0])]):
                found = await where(scan.shard, flow, some)
                yield [one for one in found if scan.selection.provider in ("", one.group) and _looked_at(scan, one)]


def _looked_at(scan: _Scan, entry: Entry) -> bool:
    return scan.selection.looks_at(*((QUEUED, DEFERRED) if entry.place == QUEUED else (entry.place,)))


def _parts(items: Sequence[T], size: int = PAGE) -> Iterable[list[T]]:
    return (list(items[at : at + size]) for at in range(0, len(items), size))
