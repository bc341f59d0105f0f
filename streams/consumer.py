"""Reading the events for a group, each to be acknowledged: what a bounce processor, a CRM or a report stands on.

    async with Consumer.open(settings, group="crm", owner="ana@agency.pe", kinds=("bounced", "expired")) as events:
        async for event in events:
            ...
            await event.ack()

The events of all shards come merged. Within a shard they come in the order in which they happened, and a message lies in
one shard with all its recipients; between shards nothing is promised (``returned``, ``audit`` and ``alarm`` lie in
shard 0, whatever message they are about).

**At least once.** A group goes on behind the last event up to which everything was acknowledged. Acknowledgements may come
out of order and at once: what was acknowledged behind one that was not does not come again in this consumer, after a
crash it may. ``position`` is the same whenever an event comes, so a consumer that keeps it can tell.

**Exactly once** is made in the consumer's own database: write what the event says and its position in one transaction,
pass over what is not behind the position there, and begin from it (``start=[positions]``; a new group begins with the
oldest event in shards that have none).

One consumer reads for a group at a time; others stand by and go on when its lease ends (a ``kill -9``: after
``lease_seconds``) or it leaves. One that was stopped for longer and finds itself replaced gets
:class:`~streams.groups.GroupLost`, and changes nothing. Restarts of the queue server are sat out.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

import structlog

from config.settings import Settings
from mailqueue.errors import QueueDown
from mailqueue.scripts import Shard
from streams.archive import Archive
from streams.connect import archive_of, connected
from streams.groups import Busy, GroupLost, GroupRefused, Groups, Lease, patiently
from streams.merge import Merge
from streams.positions import FRESH, by_shard, is_position
from streams.progress import Progress
from streams.starts import starts
from streams.taken import Taken, read

LEASE_SECONDS = 30.0
MOST_UNACKED = 10_000
MOST_AHEAD = 10  # times that many are given past the first that is open: what would come again after a crash
PATIENT_SECONDS = 30.0  # with a consumer that has so many open, before it is said
LEAVING_SECONDS = 2.0  # for the last acknowledgements when a consumer closes
_STAND_BY_SECONDS = 1.0

log = structlog.get_logger("streams")


class Consumer:
    """An async context manager and iterator; see the module. ``start``: "new", "oldest" or a date say where a *new* group
    begins; a position or several (one a shard at most), of the consumer's own books, say where to go on, whatever the
    group says. ``kinds`` None = the group's own, empty = all."""

    _merge: Merge

    def __init__(
        self,
        shards: Sequence[Shard],
        archive: Archive | None = None,
        *,
        group: str,
        owner: str = "",
        kinds: Collection[str] | None = None,
        start: str | Collection[str] = "new",
        end: bool = False,
        lease_seconds: float = LEASE_SECONDS,
        most_unacked: int = MOST_UNACKED,
    ) -> None:
        self.group = group
        self._shards, self._archive = shards, archive
        self._groups = Groups(shards[0])
        self._owner, self._kinds = owner, kinds
        alone = isinstance(start, str) and not is_position(start)
        self._start: str = str(start) if alone else "oldest"  # of a new group
        self._places = () if alone else (start,) if isinstance(start, str) else tuple(start)
        self._end = end
        self._lease_seconds, self._most_unacked = lease_seconds, most_unacked
        self._lease: Lease | None = None
        self._wanted: frozenset[str] = frozenset()
        self._progress: dict[int, Progress] = {}
        self._said: dict[int, str] = {}  # positions as the group has them
        self._shard, self._rows = 0, deque[tuple[str, bytes]]()
        self._unacked = 0
        self._room = asyncio.Event()
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._lost: Exception | None = None
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        *,
        group: str,
        owner: str = "",
        kinds: Collection[str] | None = None,
        start: str | Collection[str] = "new",
        end: bool = False,
        lease_seconds: float = LEASE_SECONDS,
        patience: float = 30.0,
    ) -> AsyncIterator[Self]:
        """On connections of its own and with the configured archive. Waits ``patience`` seconds for the server, and for
        ever while another consumer reads. Raises QueueRefused, QueueDown, GroupRefused."""
        async with connected(settings, patience) as shards:
            archive = archive_of(settings)
            async with cls(
                shards,
                archive,
                group=group,
                owner=owner,
                kinds=kinds,
                start=start,
                end=end,
                lease_seconds=lease_seconds,
            ) as consumer:
                yield consumer

    async def __aenter__(self) -> Self:
        try:
            own = by_shard(self._places, len(self._shards))
        except ValueError as error:
            raise GroupRefused(str(error)) from None
        lease = self._lease = await self._take(own)
        self._said = {shard.number: lease.group.positions.get(shard.number, FRESH) for shard in self._shards}
        begin = {**self._said, **own}
        self._progress = {number: Progress(id) for number, id in begin.items()}
        self._wanted = frozenset(lease.group.kinds)
        self._merge = Merge(self._shards, self._archive, begin, end=self._end)
        self._merge.start()
        self._keeper = asyncio.create_task(self._keep(), name="group lease")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._merge.close()
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        with suppress(QueueDown, GroupLost, TimeoutError):
            async with asyncio.timeout(LEAVING_SECONDS):
                await self._leave()
        self._fail(GroupLost(f"group {self.group}: this consumer is closed"))

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Taken:
        while True:
            await self._until_room()
            event = self._at_hand()
            if event is not None:
                return event
            found = await self._merge.rows()
            if found is None:
                raise StopAsyncIteration
            self._shard, self._rows = found[0], deque(found[1])

    async def batch(self, most: int = 500) -> list[Taken]:
        """The next event and what has been read ahead behind it; [] only after the last (``end``)."""
        try:
            found = [await anext(self)]
        except StopAsyncIteration:
            return []
        while len(found) < most and not self._is_full():
            event = self._at_hand()
            if event is None:
                more = self._merge.at_hand()
                if more is None:
                    break
                self._shard, self._rows = more[0], deque(more[1])
            else:
                found.append(event)
        return found

    def _at_hand(self) -> Taken | None:
        if self._lost is not None:
            raise self._lost
        progress = self._progress.get(self._shard)
        while self._rows and progress is not None:
            entry = self._rows.popleft()
            event = read(self._shard, entry, self._wanted, self)
            if event is not None:
                progress.give(entry[0])
                self._unacked += 1
                return event
            progress.skip(entry[0])
        return None

    async def _until_room(self) -> None:
        while self._is_full() and self._lost is None:
            self._room.clear()
            try:
                async with asyncio.timeout(PATIENT_SECONDS):
                    await self._room.wait()
            except TimeoutError:
                log.warning("nothing more is given, for nothing is acknowledged", group=self.group, open=self._unacked)

    def _is_full(self) -> bool:
        most = self._most_unacked
        return self._unacked >= most or any(one.span >= MOST_AHEAD * most for one in self._progress.values())

    # ── acknowledging ──────────────────────────────────────────────────────────────────────────────────────────

    async def ack(self, events: Iterable[Taken]) -> None:
        """All of them by one writing; as :meth:`~streams.taken.Taken.ack`."""
        if self._lost is not None:
            raise self._lost
        for event in events:
            shard, _, id = event.position.partition("-")
            self._unacked -= self._progress[int(shard)].ack(id)
        self._room.set()
        written = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._asked.set()
        await written

    async def _keep(self) -> None:
        """Writes what was acknowledged, many at once, and keeps the lease while there is nothing to write."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_seconds / 3):
                        await self._asked.wait()
                self._asked.clear()
                await self._write()
        except Exception as error:
            self._fail(error)
            self._merge.fail(error)

    async def _write(self) -> None:
        assert self._lease is not None
        lease, waiting, self._waiting = self._lease, self._waiting, []
        try:
            reached = self._reached()
            await patiently(lambda: lease.ack(reached))
        except BaseException:
            self._waiting += waiting
            raise
        self._said.update(reached)
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _reached(self) -> Mapping[int, str]:
        now = {number: progress.reached for number, progress in self._progress.items()}
        return {number: id for number, id in now.items() if id != self._said[number]}

    def _fail(self, error: Exception) -> None:
        self._lost = self._lost or error
        self._room.set()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    # ── the lease ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, own: Mapping[int, str]) -> Lease:
        holder, token = f"{socket.gethostname()}:{os.getpid()}", os.urandom(12).hex()
        standing_by = False
        while True:
            answer = await patiently(lambda: self._ask(holder, token))
            if isinstance(answer, Lease):
                return answer
            if answer is None:
                await patiently(lambda: self._create(own))
            elif isinstance(answer, Busy):
                if not standing_by:
                    log.info("standing by", group=self.group, holder=answer.holder)
                standing_by = True
                await asyncio.sleep(min(answer.seconds + 0.001, _STAND_BY_SECONDS))

    async def _ask(self, holder: str, token: str) -> Lease | Busy | None:
        return await self._groups.take(self.group, self._owner, self._kinds, self._lease_seconds, holder, token)

    async def _create(self, own: Mapping[int, str]) -> None:
        try:
            begin = await starts(self._shards, self._archive, self._start)
        except ValueError as error:
            raise GroupRefused(str(error)) from None
        begin = {shard.number: begin.get(shard.number, FRESH) for shard in self._shards}
        if await self._groups.create(self.group, self._owner, self._kinds or (), {**begin, **own}):
            log.info("group made", group=self.group, owner=self._owner, start=self._places or self._start)

    async def _leave(self) -> None:
        if self._lease is None or self._lost is not None:
            return
        await self._write()
        await self._lease.leave()
