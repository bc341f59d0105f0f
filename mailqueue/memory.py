"""The memory mark: above it put is refused, so that claims and settlements (which need memory too) go on."""

from __future__ import annotations

import asyncio
import os

from config.settings import QueueSettings
from mailqueue.scripts import Shard
from mailqueue.server import info_map

EVERY_SECONDS = 0.5
BELIEVED_SECONDS = 2.0  # what nobody asked about for longer is not known any more


class MemoryMark:
    """Asks the server at most every half second, and only while somebody puts."""

    def __init__(self, shard: Shard, settings: QueueSettings) -> None:
        self._shard = shard
        self._settings = settings
        self._asked = 0.0
        self._lock = asyncio.Lock()
        self._full = False
        self.used = 0
        self.limit = 0

    @property
    def full(self) -> bool:
        """Refused lately. Not for long: who is turned away at MAIL never puts, and only a put asks again."""
        return self._full and asyncio.get_running_loop().time() - self._asked < BELIEVED_SECONDS

    async def reached(self) -> bool:
        """Raises QueueDown."""
        clock = asyncio.get_running_loop().time
        if clock() - self._asked < EVERY_SECONDS:
            return self._full
        async with self._lock:
            if clock() - self._asked >= EVERY_SECONDS:
                info = info_map(await self._shard.command("INFO", "memory"))
                self.used = int(info.get("used_memory", 0))
                self.limit = memory_limit(self._settings.memory_limit_mb, int(info.get("maxmemory", 0)))
                self._full = self.used >= self._settings.memory_mark * self.limit
                self._asked = clock()
        return self._full


def memory_limit(configured_mb: int, server_maxmemory: int) -> int:
    """Bytes: the configured limit, else the server's maxmemory, else 75 % of this machine."""
    if configured_mb:
        return configured_mb * 1024 * 1024
    if server_maxmemory:
        return server_maxmemory
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.75)
