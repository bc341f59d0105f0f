"""Room on the queue server's disk: at the mark, the append-only file is rewritten where most of it is of the past."""

from __future__ import annotations

import time

import structlog

from mailqueue.errors import ServerAnswer
from mailqueue.marks import Marks
from mailqueue.scripts import Shard

PAUSE_SECONDS = 60.0  # between two attempts: one that fails for want of space must not be all the server does

log = structlog.get_logger("maintenance")


class Room:
    """One step a round; the figures of the marks are fresh afterwards."""

    def __init__(self, shard: Shard, marks: Marks) -> None:
        self._shard = shard
        self._marks = marks
        self._next = 0.0

    async def look(self) -> None:
        await self._marks.reached()
        figures = self._marks.figures
        if not figures.rewrite_helps or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PAUSE_SECONDS
        try:
            await self._shard.command("BGREWRITEAOF")
            log.warning("queue file rewritten to make room", file=figures.file, free=figures.disk_free)
        except ServerAnswer as answer:
            log.warning("queue file not rewritten", why=str(answer))
