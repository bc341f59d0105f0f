"""Archiving: what has happened goes from the streams into the archive's segments, on disk, and only then is it trimmed.

One process archives: it holds the directory's lock and the lease ``archive``; another maintenance waits to take over.
Where to go on is read from the segments themselves. A disk that is full, a server that is away: nothing is trimmed, it
is tried again by itself.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from config.reload import Reloader
from mailqueue import lease
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.lease import Lease
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from mailqueue.trimming import trim
from maintenance.alarms import Alarms
from maintenance.catching import read
from maintenance.retaining import Retaining
from maintenance.strays import bring_behind
from streams import holes, ids
from streams.appender import Appender, ArchiveBusy
from streams.indexing import Indexer
from streams.segment import Batch, Entry
from streams.starts import last_id

PAUSE_SECONDS, RETRY_SECONDS = 1.0, 5.0
LINGER_SECONDS = 30.0  # the longest that an entry waits for others to share a batch
BATCH, BATCH_BYTES = 10_000, 8 * 1024 * 1024
BEHIND = 3  # times that, while there is more to read: what a batch costs besides is shared by more
PAGE, PAGE_BYTES = 5000, 4 * 1024 * 1024  # read at once
INDEXED = 32  # batches at most that an index catches up with at once
TRIMS = 6  # calls of mailqueue.trimming under way together
RENEW = 2 / 3  # of the lease left, below which it is taken again before anything is written
BEHIND_SECONDS = 900.0  # an alarm, even though it is written
CURE = (
    "Mount its disk, or put its files back: it goes on by itself. If they are gone for good: "
    "relayctl archive accept-loss --reason …"
)

log = structlog.get_logger("archive")


class ArchiveLacks(Exception):
    """To go on in that directory would leave a hole that no reader sees."""


@dataclass(slots=True)
class _Reel:
    """One shard. ``archived``: last entry on disk in the archive; ``read``: last one read, held for the next batch."""

    shard: Shard
    archived: str = "0-0"
    read: str = "0-0"
    held: list[Entry] = field(default_factory=list)
    held_bytes: int = 0
    since: float = 0.0
    page: int = 500
    pace: float = 0.0  # entries a millisecond, where they were read last
    full: bool = False  # there was more to read
    seen: bool = False  # it has been read at all
    batch: list[Entry] = field(default_factory=list)  # being written
    writing: asyncio.Task[None] | None = None
    trimming: asyncio.Task[None] | None = None

    def resume(self, archived: str) -> None:
        self.archived = self.read = archived
        self.held, self.held_bytes, self.full = [], 0, False

    def hold(self, rows: list[Entry]) -> None:
        size = sum(len(event) for _, event in rows)
        if not self.held:
            self.since = time.monotonic()
        span = ids.parse(rows[-1][0])[0] - ids.parse(rows[0][0])[0]
        self.pace = len(rows) / span if span else 0.0
        self.held += rows
        self.held_bytes += size
        self.read = rows[-1][0]
        self.page = min(max(PAGE_BYTES * len(rows) // max(size, 1), 50), PAGE)

    def behind(self, now: float) -> float:
        """Seconds since the oldest entry that is not on disk."""
        waiting = self.batch or self.held
        oldest = waiting[0][0] if waiting else self.read if self.full else ""
        return max(now - ids.parse(oldest)[0] / 1000, 0.0) if oldest else 0.0


class Archiving:
    """``trouble``: why nothing is archived now, "" = all is well (another process archives, too)."""

    def __init__(
        self,
        queue: Queue,
        reloader: Reloader,
        registry: CollectorRegistry,
        alarms: Alarms,
        *,
        linger_seconds: float = LINGER_SECONDS,
        lease_seconds: float = lease.SECONDS,
    ) -> None:
        self._shards = queue.shards
        self._reloader = reloader
        self._alarms = alarms
        self._linger = linger_seconds
        self._pause = min(PAUSE_SECONDS, linger_seconds)
        self._lease = Lease(queue.shards[0], "archive", lease_seconds)
        self._renew = lease_seconds * RENEW
        self._appender = Appender(Path(reloader.settings.archive.directory or ""))
        self._indexer = Indexer()
        self._retaining = Retaining(self._appender.archive, reloader, queue.shards[0].time)
        self._thread = ThreadPoolExecutor(1, "archive")  # one: the appender takes one call at a time
        self._leads = False
        self._stuck = False  # the disk refused; nothing was written since
        self._reels: list[_Reel] = []
        self._entries = Counter("tambo_archived_entries", "Events written to the archive", registry=registry)
        self._bytes = Counter("tambo_archived_bytes", "Bytes written to the archive", registry=registry)
        self._behind = Gauge("tambo_archive_behind_seconds", "Age of the oldest event not archived", registry=registry)
        self._leading = Gauge("tambo_archive_leads", "1 in the process that archives", registry=registry)
        self.trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        telling = asyncio.create_task(self._keep_telling(), name="archive alarm")
        try:
            while not stop.is_set():
                more = await self._try(self._round)
                if not more:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(RETRY_SECONDS if self._stuck else self._pause):
                            await stop.wait()
            if self._leads or self._stuck:  # what kept it may be over
                await self._try(self._finish)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await self._resign()
            self._thread.shutdown(wait=False)

    async def _try(self, step: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """Whether there is more to do at once."""
        try:
            more = await step()
        except QueueDown as down:
            self._say(f"archive: {down}")
            self._leads = False
            return False
        except ArchiveBusy:
            self._say("")
            return False
        except ArchiveLacks as lacks:
            await self._resign()  # perhaps another host has its disk; and the lock would lie below ours
            self._say(f"archive: {lacks}")
            self._stuck = True
            return False
        except OSError as error:
            self._say(f"archive: {error}")
            self._stuck, self._leads = True, False
            return False
        except Exception as error:
            log.exception("archiving failed")
            self.trouble, self._stuck, self._leads = f"archive: {type(error).__name__}", True, False
            return False
        self._stuck = self._stuck and any(reel.held or reel.batch for reel in self._reels)
        if not self._stuck:
            self._say("")
        return more

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.error("archive in trouble", why=trouble)
        elif self.trouble and not trouble:
            log.info("archive goes on")
        self.trouble = trouble

    async def _keep_telling(self) -> None:
        """Beside the work: a disk that does not answer must not keep it from being said."""
        while True:
            try:
                await self._tell()
            except (QueueDown, ServerAnswer):
                pass
            except Exception:
                log.exception("not said how archiving goes")
            await asyncio.sleep(self._pause)

    async def _tell(self) -> None:
        """Whoever has the lease, or each process while nobody has it: nobody archives then."""
        alone = self._lease.left == 0.0
        if alone and await lease.is_held(self._shards[0], "archive"):
            self._behind.set(0.0)
            return
        behind = max((reel.behind(time.time()) for reel in self._reels), default=0.0)
        if not all(reel.seen for reel in self._reels) or (alone and not self._reels):
            behind = await self._unattended()
        self._behind.set(behind)
        late = f"{behind:.0f} s behind" if behind > BEHIND_SECONDS else ""
        await self._alarms.set("archive", bool(self.trouble or late), self.trouble or late)

    async def _unattended(self) -> float:
        """Age in seconds of the oldest event behind what the last archiver said."""
        archived = await holes.archived(self._shards[0])
        oldest = time.time()
        for shard in self._shards:
            after = archived.get(shard.number, "0-0")
            for place, _ in await shard.command("XRANGE", shard.events, f"({after}", "+", "COUNT", 1):
                oldest = min(oldest, ids.parse(place.decode())[0] / 1000)
        return time.time() - oldest

    # ── who archives ───────────────────────────────────────────────────────────────────────────────────────────

    async def _round(self) -> bool:
        if not await self._may_write():
            return False
        more = False
        for reel in self._reels:
            more |= await self._advance(reel)
        return more

    async def _may_write(self) -> bool:
        """Lock first, then the lease; whoever had lost the lease looks again at what is on disk."""
        if not self._appender.is_open:  # else a batch that is being written would be waited for
            await self._in_thread(self._appender.open)
        left = self._lease.left
        if left < self._renew and not await self._lease.take():
            await self._resign()
            return False
        if left == 0.0 or not self._leads:
            await self._resume()
        return True

    async def _resume(self) -> None:
        await self._settle()
        self._reels = [_Reel(shard) for shard in self._shards]
        for reel in self._reels:
            archived = await self._in_thread(self._appender.resume, reel.shard.number)
            lacking = await holes.hole(self._shards[0], reel.shard, archived)
            if lacking is not None:
                raise ArchiveLacks(
                    f"{self._appender.archive.directory} lacks what was archived, {lacking.text}. {CURE}"
                )
            reel.resume(archived or "0-0")
            await self._align(reel)
            await bring_behind(reel.shard, self._appender.archive, reel.archived)
            await self._trim(reel)
        self._leads = True
        self._leading.set(1)
        self._retaining.start()
        log.info("archiving", directory=str(self._appender.archive.directory), places=[r.archived for r in self._reels])

    async def _settle(self) -> None:
        """Nothing is being written any more, whatever came of it."""
        for reel in self._reels:
            tasks = [task for task in (reel.writing, reel.trimming) if task is not None]
            reel.writing = reel.trimming = None
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _resign(self) -> None:
        await self._settle()
        self._leads, self._reels = False, []
        self._leading.set(0)
        await self._retaining.stop()
        await self._in_thread(self._appender.close)
        with suppress(QueueDown, ServerAnswer):
            await self._lease.give_back()

    async def _align(self, reel: _Reel) -> None:
        """A stream that lies behind its archive (its server was restored or begun anew, its clock set back) goes on behind
        it: ids below would count as archived."""
        if await reel.shard.command("EXISTS", reel.shard.events):
            if ids.parse(await last_id(reel.shard)) < ids.parse(reel.archived):
                await reel.shard.command("XSETID", reel.shard.events, reel.archived)
        elif ids.parse(reel.archived)[0] >= await reel.shard.time() * 1000:
            place = ids.text(ids.following(ids.parse(reel.archived)))
            mark = Event(
                "alarm", int(time.time() * 1000), subject="archive", after="off", reason="the clock was set back"
            )
            await reel.shard.command("XADD", reel.shard.events, place, "e", mark.to_json())

    # ── reading, writing, trimming ─────────────────────────────────────────────────────────────────────────────

    async def _advance(self, reel: _Reel) -> bool:
        """Reads on while the last batch is still being written."""
        rows, reel.full = await read(reel.shard, reel.read, reel.page, reel.pace if reel.full else 0.0)
        reel.seen = True
        if rows:
            reel.hold(rows)
        if self._due(reel):
            await self._written(reel)
            reel.batch, reel.held, reel.held_bytes = reel.held, [], 0
            reel.writing = asyncio.create_task(self._write(reel), name="archive")
        if reel.writing is not None and (reel.writing.done() or not reel.full):
            await self._written(reel)
        return reel.full

    def _due(self, reel: _Reel) -> bool:
        size = BEHIND if reel.full else 1
        if len(reel.held) >= BATCH * size or reel.held_bytes >= BATCH_BYTES * size:
            return True
        return bool(reel.held) and (self._stuck or time.monotonic() - reel.since >= self._linger)

    async def _finish(self) -> bool:
        """All that there is now goes to disk, so that a server that is lost after a stop in order takes no event along."""
        if not await self._may_write():
            return False
        for reel in self._reels:
            last = ids.parse(await last_id(reel.shard))
            while ids.parse(reel.read) < last:
                stretched = reel.full  # then nothing found may be a stretch of time without entries
                if not await self._advance(reel) and not stretched:
                    break
            await self._written(reel)
            if reel.held:
                reel.batch, reel.held = reel.held, []
                await self._write(reel)
        return False

    @staticmethod
    async def _written(reel: _Reel) -> None:
        """The batch that was being written is on disk, or raises what kept it from it."""
        writing, reel.writing = reel.writing, None
        if writing is not None:
            await writing

    async def _write(self, reel: _Reel) -> None:
        """Whatever goes wrong, what is archived is read from the disk again before anything else is written."""
        if self._lease.left < self._renew and not await self._lease.take():
            raise QueueDown("the archive's lease is another's")
        written = await self._in_thread(self._append, reel.shard.number, reel.batch, reel.full)
        self._entries.inc(len(reel.batch))
        self._bytes.inc(sum(one.end - one.offset for one in written))
        reel.archived, reel.batch = reel.batch[-1][0], []
        await self._trim_beside(reel)
        with suppress(ServerAnswer):  # no memory: there will be some, for what was archived goes
            await holes.note(self._shards[0], reel.shard.number, reel.archived)

    def _append(self, shard: int, entries: list[Entry], hurry: bool) -> list[Batch]:
        """In a thread. The index waits while there is a ``hurry``, and one that can't be written is no reason to stop: it is
        made from the segment."""
        written = self._appender.append(shard, entries)
        for path in {segment.path for segment, _ in written} if not hurry else ():
            try:
                self._indexer.catch_up(path, INDEXED)
            except OSError as error:
                log.warning("index not written", segment=str(path), why=str(error))
        return [batch for _, batch in written]

    async def _trim_beside(self, reel: _Reel) -> None:
        """The next batch does not wait for it."""
        if reel.trimming is not None:
            if not reel.trimming.done():
                return
            await reel.trimming
        reel.trimming = asyncio.create_task(self._trim(reel), name="trim")

    async def _trim(self, reel: _Reel) -> None:
        """Never what is not archived, whatever is added meanwhile."""
        if reel.archived != "0-0":
            await trim(reel.shard, self._reloader.settings.archive.keep_in_stream, reel.archived, TRIMS)

    async def _in_thread(self, call: Callable[..., Any], *words: Any) -> Any:
        """To its end, even when we are cancelled: what is being written must not be closed under it."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(call, *words))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            with suppress(Exception):
                await running
            raise
