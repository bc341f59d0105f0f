"""An event with its position, as it was read from a shard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from mailqueue.events import Event
from streams.merge import Merge
from streams.positions import position
from streams.segment import Entry

log = structlog.get_logger("streams")


class Acknowledges(Protocol):
    async def ack(self, events: Iterable[Taken]) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken(Event):
    """``position``: "<shard>-<ms>-<number>", stable and unique. It stands in the JSON form, too."""

    position: str = ""
    _consumer: Acknowledges | None = field(default=None, repr=False, compare=False)

    async def ack(self) -> None:
        """Done with it: on disk when this returns (what comes before it and is not acknowledged comes again after a
        crash, and this with it). Sits out a restart of the server. Raises GroupLost."""
        assert self._consumer is not None, "read without a group"
        await self._consumer.ack((self,))

    def to_json(self) -> bytes:
        return Event.to_json(self)[:-1] + b',"position":"%b"}' % self.position.encode()


def read(shard: int, entry: Entry, kinds: Collection[str] = (), consumer: Acknowledges | None = None) -> Taken | None:
    """None for another kind (``kinds`` empty = all), and for what cannot be read, which is logged."""
    id, data = entry
    kind = kind_of(data)
    if kinds and kind and kind not in kinds:
        return None
    at = position(shard, id)
    try:
        event = Taken.from_json(data, position=at, _consumer=consumer)
    except (ValueError, TypeError) as error:
        log.error("event cannot be read", position=at, why=str(error))
        return None
    return event if not kinds or event.kind in kinds else None


def kind_of(data: bytes) -> str:
    """Of an event as it stands in the stream, without reading it whole: ``kind`` is its first field. "" = elsewhere."""
    if not data.startswith(b'{"kind":"'):
        return ""
    return data[9 : data.find(b'"', 9)].decode(errors="replace")


async def batches(merge: Merge, kinds: Collection[str] = ()) -> AsyncIterator[list[Taken]]:
    """What is read ahead, of these kinds, until there is no more (``end``) or what reading raises."""
    while (found := await merge.rows()) is not None:
        shard, entries = found
        events = [event for entry in entries if (event := read(shard, entry, kinds)) is not None]
        if events:
            yield events
