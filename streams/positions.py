"""Where an event stands: "<shard>-<ms>-<number>", its shard and its id in that shard's stream. Pure.

A position is stable and unique: it never names another event, wherever the event is read from (stream or archive).
Of two positions of one shard the greater is the later event; between shards nothing is said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime

from streams import ids

# Before there has been any event. Unlike "0-0", which reads from whatever is kept, it minds that something is gone.
FRESH = "0-1"
FORMS = '"new", "oldest", a date like 2026-11-25 or 2026-11-25T08:30, or a position like 0-1732612345678-5'
_POSITION = re.compile(r"(\d{1,2})-(\d{1,15}-\d{1,20})")


def position(shard: int, id: str) -> str:
    return f"{shard}-{id}"


def is_position(text: str) -> bool:
    return _POSITION.fullmatch(text) is not None


def parts(text: str) -> tuple[int, str]:
    """Shard and stream id of a position; ValueError for what is none."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no position; write shard-milliseconds-number, as events have it")
    ids.parse(found[2])
    return int(found[1]), found[2]


def date_ms(text: str) -> int:
    """Unix ms of an ISO 8601 date or time; without an offset it is local time. ValueError for what is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} says no beginning; write {FORMS}") from None
    return int(moment.timestamp() * 1000)


def clock(id: str) -> str:
    """A stream id's time for people, local."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ids.parse(id)[0] / 1000))


def by_shard(positions: Iterable[str], shards: int) -> dict[int, str]:
    """Stream id by shard; ValueError for a shard twice or one that is not there."""
    found: dict[int, str] = {}
    for text in positions:
        shard, id = parts(text)
        if shard >= shards:
            raise ValueError(f"{text}: there is no shard {shard}; there are {shards}, from 0")
        if shard in found:
            raise ValueError(f"{text}: shard {shard} twice")
        found[shard] = id
    return found
