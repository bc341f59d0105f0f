"""The frame of a process: status port, signals, what systemd wants to hear. The composition roots live in it.

async with Service("delivery", settings.metrics.delivery, registry, ready, reload=reloader.reload) as service:
    ...start the work...
    service.started()          # READY=1
    await service.stop.wait()  # SIGTERM or SIGINT
    ...drain...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from config.status import StatusServer


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """One datagram to the service manager (sd_notify(3)); False when there is none or it does not listen."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
        return True
    return False


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """How often the watchdog is to be fed: half of what systemd allows (sd_watchdog_enabled(3)); 0 = never."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isascii() and text.isdigit() else 0.0


class Service:
    """One a process, inside its running loop. ``ready`` gives the reasons why it is not ready, ``reload`` serves SIGHUP.

    Until :meth:`started`, /readyz says "starting"; once ``stop`` is set, "stopping".
    """

    def __init__(
        self,
        role: str,
        address: str,
        registry: CollectorRegistry,
        ready: Callable[[], Sequence[str]],
        *,
        reload: Callable[[], object] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.role = role
        self.stop = asyncio.Event()
        self.port: tuple[str, int] | None = None  # where the status port listens
        self._address = address
        self._ready = ready
        self._reload = reload
        self._environ = environ
        self._running = False
        self._status = StatusServer(registry, self.reasons)
        self._watchdog: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.port = await self._status.start(self._address)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        if (interval := watchdog_seconds(self._environ)) > 0:
            self._watchdog = loop.create_task(self._feed_watchdog(interval), name="watchdog")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The status port goes last, so that a drain can be watched."""
        self._on_stop()
        if self._watchdog is not None:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
        await self._status.close()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)

    def started(self) -> None:
        """All parts work: tell systemd and /readyz."""
        self._running = True
        notify("READY=1", self._environ)

    def reasons(self) -> Sequence[str]:
        """Why it is not ready; none = it is."""
        if self.stop.is_set():
            return ["stopping"]
        return self._ready() if self._running else ["starting"]

    def _on_stop(self) -> None:
        if not self.stop.is_set():
            self.stop.set()
            notify("STOPPING=1", self._environ)

    def _on_reload(self) -> None:
        """RELOADING needs the monotonic time (Type=notify-reload), and READY must follow whatever came of it."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", self._environ)
        try:
            if self._reload is not None:
                self._reload()
        finally:
            if self._running and not self.stop.is_set():
                notify("READY=1", self._environ)

    async def _feed_watchdog(self, interval: float) -> None:
        """From the loop itself: a loop that hangs stops feeding."""
        while True:
            notify("WATCHDOG=1", self._environ)
            await asyncio.sleep(interval)
