"""Groups of consumers: who reads the events, how far they have come, and who may move that on now.

A group lies in shard 0 (hash ``gr:<name>``): owner, kinds, when it was made and last read, a position per shard, and
the lease of the one consumer that reads for it. Each lease has an epoch of its own; whoever acknowledges under an older
one changes nothing and is told (:class:`GroupLost`). Everything is on disk when a call returns.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mailqueue.errors import QueueDown
from mailqueue.events import KINDS, Event
from mailqueue.scripts import Argument, Shard
from mailqueue.server import text_map
from streams.positions import position

MOST_GROUPS = 100  # each has two series of metrics
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PAUSE_SECONDS = 0.2


class GroupRefused(Exception):
    """The group can't be made or read so; the text says why and what is allowed."""


class GroupLost(Exception):
    """This consumer reads for the group no more: its acknowledgements change nothing from now on. Open it again."""


@dataclass(frozen=True, slots=True)
class Group:
    """Times are Unix ms by the server's clock. ``kinds`` empty = all. ``holder`` reads until ``until`` unless it says so
    again, "" = nobody."""

    name: str
    owner: str
    kinds: tuple[str, ...]
    created: int
    read: int
    positions: Mapping[int, str]  # stream id by shard: everything up to it is acknowledged
    epoch: int = 0
    holder: str = ""
    until: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "group": self.name,
            "owner": self.owner,
            "kinds": list(self.kinds),
            "created": self.created,
            "read": self.read,
            "holder": self.holder,
            "positions": [position(shard, id) for shard, id in sorted(self.positions.items())],
        }


@dataclass(frozen=True, slots=True)
class Busy:
    """Another consumer reads for the group."""

    seconds: float  # left of its lease
    holder: str


@dataclass(slots=True)
class Lease:
    """The right to acknowledge for ``group``, as it was when the lease began."""

    group: Group
    seconds: float
    _shard: Shard = field(repr=False)

    async def ack(self, positions: Mapping[int, str]) -> None:
        """Moves positions forwards (one that is behind is left) and begins the lease's time anew; ``positions`` may be
        empty. Harmless to repeat. Raises QueueDown, GroupLost."""
        group = self.group
        words: list[Argument] = ["ack", group.name, group.epoch, int(self.seconds * 1000), *_flat(positions)]
        answer = await self._shard.run("group", words)
        if answer[0] == b"LOST":
            raise GroupLost(f"group {group.name}: {answer[1].decode()}; this consumer changes nothing in it any more")
        if answer[0] == b"NONE":
            raise GroupLost(f"group {group.name} was removed")

    async def leave(self) -> None:
        """The next consumer need not wait. Raises QueueDown."""
        await self._shard.run("group", ["leave", self.group.name, self.group.epoch])


class Groups:
    """``shard``: number 0."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def all(self) -> list[Group]:
        """By name. Raises QueueDown."""
        rows = await self._shard.run("group", ["list"])
        return sorted(
            (_group(name.decode(), row) for name, row in zip(rows[::2], rows[1::2], strict=True) if row),
            key=lambda group: group.name,
        )

    async def get(self, name: str) -> Group | None:
        row = await self._shard.command("HGETALL", f"{self._shard.prefix}gr:{name}")
        return _group(name, row) if row else None

    async def create(
        self, name: str, owner: str, kinds: Collection[str], positions: Mapping[int, str], event: Event | None = None
    ) -> bool:
        """False when there is one of that name. ``event`` is written with the change. Raises GroupRefused, QueueDown."""
        words: list[Argument] = ["create", checked_name(name), owner, ",".join(checked_kinds(kinds)), MOST_GROUPS]
        if not owner.strip():
            raise GroupRefused(f"group {name}: a group needs an owner: whom to ask before it is removed")
        answer = int(await self._shard.run("group", [*words, _said(event), *_flat(positions)]))
        if answer < 0:
            raise GroupRefused(f"there are {MOST_GROUPS} groups, which is the most; remove one: relayctl streams list")
        return answer > 0

    async def take(
        self, name: str, owner: str, kinds: Collection[str] | None, seconds: float, holder: str, token: str
    ) -> Lease | Busy | None:
        """None when there is no such group. ``owner`` "" and ``kinds`` None are left as they are. Repeated under one
        ``token`` it gives the same lease. Raises GroupRefused when the group is somebody else's, QueueDown."""
        wanted = "*" if kinds is None else ",".join(checked_kinds(kinds))
        answer = await self._shard.run("group", ["take", name, owner, wanted, int(seconds * 1000), holder, token])
        match answer[0]:
            case b"TAKEN":
                return Lease(_group(name, answer[3]), seconds, self._shard)
            case b"BUSY":
                return Busy(int(answer[1]) / 1000, answer[2].decode())
            case b"OWNER":
                raise GroupRefused(f"group {name} belongs to {answer[1].decode()}, not to {owner}; take another name")
        return None

    async def rewind(self, name: str, positions: Mapping[int, str], why: str, event: Event | None = None) -> bool:
        """Sets positions, forwards or back; a consumer that reads for it is told ``why`` and must open it again. False =
        there is no such group. Raises QueueDown."""
        return bool(await self._shard.run("group", ["rewind", name, _said(event), why, *_flat(positions)]))

    async def remove(self, name: str, event: Event | None = None) -> bool:
        return bool(await self._shard.run("group", ["remove", name, _said(event)]))

    async def forget(self, group: Group, before_ms: int, event: Event) -> bool:
        """Removes it if nobody has read since ``before_ms``."""
        return bool(await self._shard.run("group", ["forget", group.name, _said(event), before_ms]))


async def patiently(verb: Callable[[], Awaitable[Any]]) -> Any:
    """Until the server answers: over its restarts. For calls that are harmless to repeat."""
    while True:
        try:
            return await verb()
        except QueueDown:
            await asyncio.sleep(_PAUSE_SECONDS)


def checked_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise GroupRefused(f"{name!r} is no name of a group; write 1 to 63 of a-z 0-9 . _ - and begin with a-z 0-9")
    return name


def checked_kinds(kinds: Collection[str]) -> tuple[str, ...]:
    """In the schema's order, each once."""
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise GroupRefused(f"no kind of event: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def _said(event: Event | None) -> bytes:
    return event.to_json() if event else b""


def _flat(positions: Mapping[int, str]) -> list[Argument]:
    return [word for pair in sorted(positions.items()) for word in pair]


def _group(name: str, row: list[bytes]) -> Group:
    facts = text_map(row)
    return Group(
        name=name,
        owner=facts["owner"],
        kinds=tuple(filter(None, facts["kinds"].split(","))),
        created=int(facts["created"]),
        read=int(facts["read"]),
        positions={int(key[2:]): value for key, value in facts.items() if key.startswith("p:")},
        epoch=int(facts["epoch"]),
        holder=facts.get("holder", ""),
        until=int(facts.get("until", 0)),
    )
