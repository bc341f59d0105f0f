"""How far groups are behind the newest event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailqueue.scripts import Shard
from streams import ids
from streams.groups import Group
from streams.positions import FRESH

MOST_COUNTED = 500  # a shard and group; beyond, the number is estimated from the times of the stream's ends
AT_ONCE = 4  # groups a call: the server does nothing else while it counts


@dataclass(frozen=True, slots=True)
class Lag:
    """``events`` of all kinds behind the group's positions; ``seconds`` since the first of them happened."""

    events: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Of one shard's stream: entries, first and last id, and the last one that was trimmed ("" = there is none)."""

    length: int
    first: str
    last: str
    trimmed: str


async def lags(shards: Sequence[Shard], groups: Sequence[Group], now_ms: int) -> dict[str, Lag]:
    """By group. Raises QueueDown."""
    found = {group.name: Lag() for group in groups}
    for shard in shards:
        for first in range(0, len(groups), AT_ONCE):
            some = groups[first : first + AT_ONCE]
            for name, lag in (await _lags(shard, some, now_ms)).items():
                found[name] = Lag(found[name].events + lag.events, max(found[name].seconds, lag.seconds))
    return found


async def _lags(shard: Shard, groups: Sequence[Group], now_ms: int) -> dict[str, Lag]:
    after = [group.positions.get(shard.number, FRESH) for group in groups]
    answer = await shard.run("behind", [MOST_COUNTED, *after])
    ends = Ends(int(answer[0]), *(word.decode() for word in answer[1:4]))
    found = {}
    for group, id, count, first in zip(groups, after, answer[4::2], answer[5::2], strict=True):
        place = ids.parse(id) if id != FRESH else ids.before(group.created)
        found[group.name] = of_shard(ends, place, int(count), first.decode(), now_ms)
    return found


def of_shard(ends: Ends, after: ids.StreamId, count: int, first: str, now_ms: int) -> Lag:
    """Pure. ``count`` entries were found behind ``after``, the first of them ``first`` ("" = none)."""
    gone = after < ids.parse(ends.trimmed)  # to be read from the archive: what comes next is not known here
    if not first and not gone:
        return Lag()
    since = after[0] if gone or not first else ids.parse(first)[0]
    return Lag(_events(ends, after, count, gone), max(now_ms - since, 0) / 1000)


def _events(ends: Ends, after: ids.StreamId, count: int, gone: bool) -> int:
    if count < MOST_COUNTED and not gone:
        return count
    first, last = ids.parse(ends.first)[0], ids.parse(ends.last)[0]  # 0 = the stream is empty
    if last <= first:
        return max(count, 1)
    return max(round(ends.length * (last - after[0]) / (last - first)), count, 1)
