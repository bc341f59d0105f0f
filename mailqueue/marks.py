"""The marks of memory and disk: there put is refused, so that claims and settlements (which need both) go on.

A server with ``appendfsync always`` ends itself when its file can't be written ("Can't recover from AOF write error",
Redis and Valkey alike), so the disk's mark must come long before the disk is full. Nor may a rewrite of the file fill
it: the new file comes beside the old one and holds no more than either that one or the memory.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Literal

from config.settings import QueueSettings
from mailqueue.disk import Disk
from mailqueue.scripts import Shard
from mailqueue.server import info_map

EVERY_SECONDS = 0.5
BELIEVED_SECONDS = 2.0  # what nobody asked about for longer is not known any more
ASK_AGAIN = 16  # or as soon as a sixteenth of the disk's mark has been put: a fast sender must not run past it
Mark = Literal["memory", "disk"]
MARKS: tuple[Mark, ...] = ("memory", "disk")


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes. ``memory_mark``: used from which put is refused; ``disk_mark``: free below which it is, the room for a
    rewrite included; ``disk_free`` None: not watched; ``file``: of the append-only file, 0 = not watched."""

    memory_used: int = 0
    memory_limit: int = 0
    memory_mark: int = 0
    disk_free: int | None = None
    disk_mark: int = 0
    file: int = 0
    rewriting: bool = False

    @property
    def reached(self) -> tuple[Mark, ...]:
        memory = self.memory_limit > 0 and self.memory_used >= self.memory_mark
        disk = self.disk_free is not None and self.disk_free < self.disk_mark
        return tuple(mark for mark, is_so in zip(MARKS, (memory, disk), strict=True) if is_so)

    @property
    def rewrite_helps(self) -> bool:
        """At the disk's mark: most of the file is about mail that is gone. The server would rewrite it only after it has
        doubled, which it does not while no mail is taken."""
        there_is_room = self.disk_free is not None and self.disk_free > self.memory_used
        return "disk" in self.reached and not self.rewriting and there_is_room and self.file > 2 * self.memory_used

    def text(self, mark: Mark) -> str:
        """For /readyz and logs: "memory mark: 12,345 of 16,384 MiB in use"."""
        if mark == "memory":
            return f"memory mark: {_mib(self.memory_used)} of {_mib(self.memory_limit)} MiB in use"
        return f"disk mark: {_mib(self.disk_free or 0)} MiB free, {_mib(self.disk_mark)} wanted"


class Marks:
    """Asks the server every half second at most but for much mail, and only while somebody puts or wants to know."""

    def __init__(self, shard: Shard, settings: QueueSettings) -> None:
        self._shard = shard
        self._settings = settings
        self._disk = Disk(shard, settings)
        self._asked = 0.0
        self._put = 0
        self._lock = asyncio.Lock()
        self.figures = Figures()

    @property
    def full(self) -> tuple[Mark, ...]:
        """Reached lately. Not for long: who is turned away at MAIL never puts, and only a put asks again."""
        believed = asyncio.get_running_loop().time() - self._asked < BELIEVED_SECONDS
        return self.figures.reached if believed else ()

    async def reached(self, coming: int = 0) -> bool:
        """``coming``: bytes about to be put. Raises QueueDown."""
        self._put += coming
        if self._fresh:
            return bool(self.figures.reached)
        async with self._lock:
            if not self._fresh:
                self._put = coming
                self.figures = await self._ask()
                self._asked = asyncio.get_running_loop().time()
        return bool(self.figures.reached)

    @property
    def _fresh(self) -> bool:
        lately = asyncio.get_running_loop().time() - self._asked < EVERY_SECONDS
        mark = self._settings.disk_mark_mb * 1024 * 1024
        return lately and (self._put * ASK_AGAIN <= mark or not mark)

    async def _ask(self) -> Figures:
        settings = self._settings
        memory = info_map(await self._shard.command("INFO", "memory"))
        used = int(memory.get("used_memory", 0))
        limit = memory_limit(settings.memory_limit_mb, int(memory.get("maxmemory", 0)))
        free = await self._disk.free() if settings.disk_mark_mb else None
        mark = int(settings.memory_mark * limit)
        if free is None:
            return Figures(used, limit, mark)
        said = info_map(await self._shard.command("INFO", "persistence"))
        file, rewriting = int(said.get("aof_current_size", 0)), said.get("aof_rewrite_in_progress", "0") != "0"
        wanted = settings.disk_mark_mb * 1024 * 1024 + rewrite_room(file, used, rewriting)
        return Figures(used, limit, mark, free, wanted, file, rewriting)


def rewrite_room(file: int, used_memory: int, rewriting: bool) -> int:
    """Bytes that the next rewrite of the append-only file may take beside it. While one is under way it has taken a part
    already, and there was room for it when it began."""
    return 0 if rewriting else min(file, used_memory)


def memory_limit(configured_mb: int, server_maxmemory: int) -> int:
    """Bytes: the configured limit, else the server's maxmemory, else 75 % of this machine."""
    if configured_mb:
        return configured_mb * 1024 * 1024
    if server_maxmemory:
        return server_maxmemory
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.75)


def refusals(answers: bool, marks: Marks, down: str) -> list[str]:
    """Why no mail is taken now, for /readyz."""
    return [*([] if answers else [down]), *(marks.figures.text(mark) for mark in marks.full)]


def _mib(count: int) -> str:
    return f"{count // (1024 * 1024):,}"
