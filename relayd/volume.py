"""How much content one process holds: what is being received, and what waits for the queue's verdict.

Sessions times the size of a message is more than a machine has; one sum over all of them is not.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Volume:
    """The sum over all listeners of a process, in octets."""

    def __init__(self) -> None:
        self.total = 0


class Share:
    """One transaction's part of the volume, given back exactly once."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._size = 0
        self._kept = False

    def hold(self, size: int, most: int) -> bool:
        """This transaction now holds ``size`` octets; False, and none are counted, when all together exceed ``most``."""
        self._volume.total += size - self._size
        self._size = size
        if self._volume.total <= most:
            return True
        self._free()
        return False

    def keep_until(self, task: asyncio.Task[Any]) -> None:
        """The content lives as long as ``task``, whatever becomes of the session."""
        self._kept = True
        task.add_done_callback(lambda _done: self._free())

    def let_go(self) -> None:
        """The session is done with the content."""
        if not self._kept:
            self._free()

    def _free(self) -> None:
        self._volume.total -= self._size
        self._size = 0
