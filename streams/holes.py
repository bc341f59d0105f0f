"""How far was archived, as the queue remembers it: an archive that ends before that is not the whole one. Its disk is not
mounted, its directory was changed, its last segment is gone.

Kept in shard 0's hash ``archived``: shard number → stream id of the last entry that was on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from mailqueue.events import Event
from mailqueue.scripts import Shard
from mailqueue.trimming import trimmed_to
from streams import ids
from streams.archive import Archive
from streams.positions import clock


@dataclass(frozen=True, slots=True)
class Hole:
    """Entries of one shard behind ``after`` ("0-0" = the archive has none at all) up to ``to``."""

    shard: int
    after: str
    to: str

    @property
    def text(self) -> str:
        since = "all" if self.after == "0-0" else _told(self.after)
        return f"shard {self.shard}: {since} to {_told(self.to)}"


def _told(place: str) -> str:
    return f"{place} ({clock(place)})"


async def archived(first: Shard) -> dict[int, str]:
    """By shard; ``first``: shard 0. Raises QueueDown."""
    known = await first.command("HGETALL", _key(first))
    return {int(number): place.decode() for number, place in zip(known[::2], known[1::2], strict=True)}


async def note(first: Shard, shard: int, place: str) -> None:
    """That everything of the shard up to there is on disk. Raises QueueDown, ServerAnswer."""
    await first.command("HSET", _key(first), shard, place)


async def hole(first: Shard, shard: Shard, newest: str) -> Hole | None:
    """What an archive that ends at ``newest`` ("" = it has nothing of the shard) lacks. What can still be read from the
    stream is no hole, if there is an archive at all: an empty directory may be a disk that is not mounted."""
    known, ends = (await archived(first)).get(shard.number, "0-0"), newest or "0-0"
    if ids.parse(known) <= ids.parse(ends):
        return None
    if newest and ids.parse(await trimmed_to(shard)) <= ids.parse(newest):
        return None
    return Hole(shard.number, ends, known)


async def holes(shards: Sequence[Shard], archive: Archive) -> list[Hole]:
    """Raises QueueDown, OSError."""
    newest = [await asyncio.to_thread(archive.newest, shard.number) for shard in shards]
    found = [await hole(shards[0], shard, place) for shard, place in zip(shards, newest, strict=True)]
    return [one for one in found if one is not None]


async def accept(first: Shard, found: Sequence[Hole], event: Event) -> None:
    """From now on the archive may go on as it is. Raises QueueDown."""
    words = [("HSET", _key(first), one.shard, one.after) for one in found]
    await first.commands([*words, ("XADD", first.events, "*", "e", event.to_json())])


def _key(first: Shard) -> str:
    return first.prefix + "archived"
