"""The events of all shards, read ahead within a bound: each shard's in its order, the shards' as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import structlog

from mailqueue.errors import QueueDown
from mailqueue.scripts import Shard
from streams import ids
from streams.archive import Archive
from streams.merged import Tape
from streams.positions import clock, position
from streams.segment import Entry, SegmentDamaged

BLOCK_SECONDS = 1.0
MOST_ENTRIES = 500  # a reading
_PAUSE_SECONDS = 0.2

log = structlog.get_logger("streams")


class Gap(Exception):
    """Events behind the position ``after`` are not to be had any more: ``go_on`` is the position behind which reading
    may go on without them."""

    def __init__(self, shard: int, after: str, go_on: str, why: str) -> None:
        self.after, self.go_on = position(shard, after), position(shard, go_on)
        super().__init__(
            f"events of shard {shard} between {self.after} ({clock(after)}) and {self.go_on} ({clock(go_on)}) are lost: "
            f"{why}. To go on without them, begin behind {self.go_on}: relayctl streams rewind GROUP --to {self.go_on}"
        )


class Merge:
    """Reads from :meth:`start` to :meth:`close`. At most three readings a shard are in memory (:data:`MOST_ENTRIES` rows
    each), however slow the reader is. ``after``: stream id by shard. With ``end`` each shard is read up to where it has
    nothing more."""

    def __init__(
        self, shards: Sequence[Shard], archive: Archive | None, after: Mapping[int, str], *, end: bool = False
    ) -> None:
        self._tapes = [Tape(shard, archive, after[shard.number], _lost) for shard in shards]
        self._end = end
        self._ready: asyncio.Queue[tuple[int, list[Entry]]] = asyncio.Queue(maxsize=len(shards))
        self._tasks: list[asyncio.Task[None]] = []
        self._reading = len(shards)
        self._trouble: Exception | None = None

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._read(tape), name="events") for tape in self._tapes]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def fail(self, error: Exception) -> None:
        """Whoever waits for rows gets ``error`` now, and everybody after."""
        self._trouble = error
        with suppress(asyncio.QueueFull):
            self._ready.put_nowait((-1, []))

    async def rows(self) -> tuple[int, list[Entry]] | None:
        """A shard's number and its next rows; None after the last. Raises what reading raised (Gap), or what
        :meth:`fail` was told."""
        while True:
            found = self.at_hand()
            if found is not None:
                return found
            if not self._reading and self._ready.empty():
                return None
            number, rows = await self._ready.get()
            if self._trouble is not None:
                raise self._trouble
            if rows:
                return number, rows

    def at_hand(self) -> tuple[int, list[Entry]] | None:
        """The same without waiting; None when nothing has been read ahead."""
        while True:
            if self._trouble is not None:
                raise self._trouble
            try:
                number, rows = self._ready.get_nowait()
            except asyncio.QueueEmpty:
                return None
            if rows:
                return number, rows

    async def _read(self, tape: Tape) -> None:
        number = tape.shard.number
        away = False
        try:
            while True:
                try:
                    rows = await tape.next(MOST_ENTRIES, 0.0 if self._end else BLOCK_SECONDS)
                except QueueDown as down:
                    if not away:
                        log.warning("queue away", shard=number, why=str(down))
                    away = True
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                away = False
                if rows:
                    await self._ready.put((number, rows))
                elif self._end:
                    break
        except SegmentDamaged as damage:
            self.fail(Gap(number, tape.after, damage.after or tape.after, str(damage)))
        except Exception as error:
            self.fail(error)
        finally:
            self._reading -= 1
        await self._ready.put((number, []))  # wakes whoever waits: this was perhaps the last


def _lost(shard: int, after: str, next_id: str) -> NoReturn:
    raise Gap(shard, after, ids.text(ids.preceding(ids.parse(next_id))), "neither the stream nor an archive has them")
