"""Processes that this one starts, watches and ends. None outlives it: the kernel kills them when their parent dies."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
LOOK_AGAIN_SECONDS = 0.02
LINES_SHOWN = 15


class StartFailed(Exception):
    """A child died or was not ready in time; the text says which and shows the end of its log."""


class Child:
    """One process in a session of its own, so that a terminal's Ctrl-C reaches only the parent, who drains in order.

    Output goes to ``log``; the log of the run before is kept beside it as ``.1``. Made inside a running loop, from
    its main thread (the death signal belongs to the thread that forks). ``keep`` are descriptors it inherits.
    """

    def __init__(
        self, role: str, words: Sequence[str], log: Path, environ: Mapping[str, str], keep: Sequence[int] = ()
    ) -> None:
        self.role = role
        self.log = log
        if log.exists():
            log.replace(log.with_name(log.name + ".1"))
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            self._process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environ),
                pass_fds=tuple(keep),
                start_new_session=True,
                preexec_fn=_dies_with_parent(),  # noqa: PLW1509 (async-signal-safe: two calls, no locks)
            )
        self.pid = self._process.pid
        self.ended = asyncio.Event()
        self._descriptor = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._process.wait()
        self.ended.set()

    @property
    def code(self) -> int | None:
        """Exit code, −n for signal n; None while it runs."""
        return self._process.returncode if self.ended.is_set() else None

    def death(self) -> StartFailed:
        """What to say about a child that ended by itself."""
        how = (
            f"was killed by {signal.Signals(-self.code).name}"
            if self.code and self.code < 0
            else f"ended ({self.code})"
        )
        return self.failure(how)

    def failure(self, what: str) -> StartFailed:
        with open(self.log, errors="replace") as lines:
            last = "".join(f"\n  {line.rstrip()}" for line in deque(lines, LINES_SHOWN))
        return StartFailed(f"{self.role} {what}; the end of {self.log}:{last or ' (empty)'}")

    async def ready(self, look: Callable[[], Awaitable[str]], seconds: float) -> None:
        """Returns once ``look`` gives ""; until then it gives the reason. Raises StartFailed."""
        deadline = asyncio.get_running_loop().time() + seconds
        while reason := await look():
            if asyncio.get_running_loop().time() >= deadline:
                raise self.failure(f"is not ready after {seconds:.0f} s ({reason})")
            if await self.ends_within(LOOK_AGAIN_SECONDS):
                raise self.death()

    async def ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            pass
        return self.ended.is_set()

    async def stop(self, seconds: float, hurry: asyncio.Event) -> bool:
        """SIGTERM, and SIGKILL after ``seconds`` or as soon as there is ``hurry``. False when it had to be killed."""
        self._signal(signal.SIGTERM)
        waiting = [asyncio.ensure_future(event.wait()) for event in (self.ended, hurry)]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if self.ended.is_set():
            return True
        self._signal(signal.SIGKILL)
        await self.ended.wait()
        return False

    def _signal(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            self._process.send_signal(number)


def _dies_with_parent() -> Callable[[], None]:
    """To run between fork and exec. SIGKILL, for a parent that died drains nothing; the queue is made for it."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def settle() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return settle
