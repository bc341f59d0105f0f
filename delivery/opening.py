"""Sessions that are being opened: with whom, how far each has come, since when; and when one more is worth a try.

A host may take a connection and say nothing for as long as the greeting's time-out lasts (RFC 5321 §4.5.3.2.1: 5 minutes).
What is silent for :data:`PATIENCE_SECONDS` no longer counts as a session that is about to be there: one more is opened, the
next after twice as long, and so on, so that a host that is well again is noticed and one that is overloaded is not flooded.
Whoever gets in ends those that have waited for longer, and the count begins anew, as it does after a reload. Only while half of the
process' sessions are free: many silent hosts must not take what others would use.
Before there is a connection the kernel asks again by itself, and for a shorter time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from delivery.reply import Ear, Phase

PATIENCE_SECONDS = 15.0  # hosts that let a client wait on purpose do so for less


class Opening:
    """One of them; made by the task that opens it, and an ``Ear`` of its session. ``host``, ``address``: of whom it waits
    for now; ``since``: of the loop's clock, when that one was last heard, and ``began``, when the first was tried."""

    __slots__ = ("_cancelled", "_ear", "_loop", "_task", "address", "began", "host", "phase", "since", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.host = self.address = ""
        self.phase = Phase.CONNECT
        self._ear: Ear | None = None
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self.since = self.began = self._loop.time()

    def begins(self) -> None:
        """The task that runs now is the one to be cancelled; CancelledError when it is so already."""
        self._task = asyncio.current_task()
        if self._cancelled:  # a task cancelled before its first step would give nothing back
            raise asyncio.CancelledError

    def tries(self, host: str, address: str, ear: Ear | None) -> None:
        """The next host; ``ear``: who overhears it besides."""
        self.host, self.address, self._ear = host, address, ear
        self.phase, self.since = Phase.CONNECT, self._loop.time()

    def __call__(self, who: str, phase: Phase, text: str) -> None:
        self.phase = Phase.GREETING if phase is Phase.CONNECT else phase  # the first thing said is "connected"
        self.since = self._loop.time()
        if self._ear is not None:
            self._ear(who, phase, text)

    def slow(self, now: float) -> bool:
        """Connected, and silent for too long."""
        return self.phase is not Phase.CONNECT and now - self.since >= PATIENCE_SECONDS

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def plain(self, now: float) -> dict[str, object]:
        """For who looks at all processes."""
        peer = f"{self.host}[{self.address}]" if self.host else ""
        return {"peer": peer, "source": self.source, "phase": self.phase.value, "seconds": round(now - self.since)}


def one_more_at(openings: Collection[Opening], tries: int, now: float) -> float:
    """When a further one is worth a try, if none is heard until then; ``tries``: further ones so far. ``openings`` must not
    be empty."""
    wait = PATIENCE_SECONDS * float(2 ** min(tries, 10))
    return wait + max(now if one.phase is Phase.CONNECT else one.since for one in openings)
