"""A lease on a work that only one process may do, kept in shard 0. Checked on the monotonic clock, as workers' leases."""

from __future__ import annotations

import os
import socket
import time

from mailqueue.scripts import Shard

SECONDS = 30.0


class Lease:
    """``name``: of the work. Whoever holds it takes it again well before it ends."""

    def __init__(self, shard: Shard, name: str, seconds: float = SECONDS) -> None:
        self._shard = shard
        self._name = name
        self._seconds = seconds
        self._token = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"
        self._until = 0.0  # monotonic

    @property
    def left(self) -> float:
        """Seconds for which nobody else has it; 0 = not held."""
        return max(self._until - time.monotonic(), 0.0)

    async def take(self) -> bool:
        """Takes it or takes it again; False while another process has it. Raises QueueDown: not known."""
        began = time.monotonic()
        taken = await self._shard.run("lease", [self._name, self._token, int(self._seconds * 1000)])
        self._until = began + self._seconds if taken else 0.0
        return bool(taken)

    async def give_back(self) -> None:
        self._until = 0.0
        await self._shard.run("lease", [self._name, self._token, 0])


async def is_held(shard: Shard, name: str) -> bool:
    """Whether any process has it. Raises QueueDown."""
    return bool(await shard.command("EXISTS", f"{shard.prefix}lease:{name}"))
