"""Where the queue server's files lie, and how much room is left there: only this host's own disks can be asked."""

from __future__ import annotations

import os

import structlog

from config.addresses import on_this_host
from config.settings import QueueSettings
from mailqueue.errors import ServerAnswer
from mailqueue.scripts import Shard
from mailqueue.server import text_map

log = structlog.get_logger("queue")


class Disk:
    """``queue.directory`` where it is set, else what a server on this host says; what can't be watched is said once."""

    def __init__(self, shard: Shard, settings: QueueSettings) -> None:
        self._shard = shard
        self._settings = settings
        self._directory: str | None = settings.directory
        self._known = settings.directory is not None
        self._silent = False

    async def free(self) -> int | None:
        """Bytes that a server without root's reserve may still write; None = not watched. Raises QueueDown."""
        if not self._known:
            self._directory = await self._ask()
            self._known = True
        if self._directory is None:
            return None
        try:
            facts = os.statvfs(self._directory)  # a call into the kernel's own memory: no thread for it
        except OSError as error:
            self._say(f"{self._directory}: {error.strerror}")
            return None
        return facts.f_bavail * facts.f_frsize

    async def _ask(self) -> str | None:
        if not on_this_host(self._settings.url):
            self._say("the server is on another host")
            return None
        try:
            return text_map(await self._shard.command("CONFIG", "GET", "dir")).get("dir")
        except ServerAnswer as answer:
            self._say(f"the server does not say where its files lie: {answer}")
            return None

    def _say(self, why: str) -> None:
        if not self._silent:
            log.warning("disk of the queue not watched", why=why, set="queue.directory")
        self._silent = True
