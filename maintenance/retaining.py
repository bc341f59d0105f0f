"""Every few minutes: closed segments are packed, and what has been kept as long as it should goes. Where the archiver is."""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from config.reload import Reloader
from mailqueue.errors import QueueDown
from mailqueue.events import KINDS
from streams.archive import Archive
from streams.retention import Retention, Terms
from streams.segment import SegmentDamaged

EVERY_SECONDS = 300.0
FIRST_SECONDS = 20.0

log = structlog.get_logger("archive")


class Retaining:
    """Runs while this process archives: :meth:`stop` returns when nothing is being written any more. ``clock``: Unix seconds
    by the server; raises QueueDown."""

    def __init__(
        self,
        archive: Archive,
        reloader: Reloader,
        clock: Callable[[], Awaitable[float]],
        *,
        first_seconds: float = FIRST_SECONDS,
    ) -> None:
        self._reloader = reloader
        self._clock = clock
        self._stopped = threading.Event()
        self._retention = Retention(archive, self._stopped.is_set, self._pause)
        self._first = first_seconds
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def start(self) -> None:
        if self._task is None:
            self._stopped.clear()
            self._wake.clear()
            self._task = asyncio.create_task(self._run(), name="retention")

    async def stop(self) -> None:
        if self._task is not None:
            self._stopped.set()
            self._wake.set()
            await self._task
            self._task = None

    def _pause(self, seconds: float) -> None:
        """As long as was worked, at most: the machine has other work."""
        self._stopped.wait(min(seconds, 1.0))

    async def _run(self) -> None:
        wait = self._first
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            if self._stopped.is_set():
                return
            try:
                await asyncio.to_thread(self._retention.look, self._terms(), today(time.time(), await self._clock()))
            except QueueDown:
                pass
            except (OSError, SegmentDamaged) as error:  # a full disk: what is there stays
                log.error("retention failed", why=str(error))
            except Exception:
                log.exception("retention failed")
            wait = EVERY_SECONDS

    def _terms(self) -> Terms:
        archive = self._reloader.settings.archive
        if unknown := sorted(set(archive.days_by_kind) - set(KINDS)):
            log.warning("archive.days_by_kind: no such kinds of events", kinds=unknown, allowed=KINDS)
        return Terms(archive.days, archive.days_by_kind)


def today(*clocks: float) -> datetime.date:
    """By UTC, as segments are, and by the clock that is behind: one that has run away must not delete years."""
    return datetime.datetime.fromtimestamp(min(clocks), datetime.UTC).date()
