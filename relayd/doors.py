"""The listeners of a process: open them, admit connections, know the sessions, let them go in order.

Going (SIGTERM): stop listening; 421 4.3.2 to idle sessions; busy ones may end their transaction until
``drain_seconds``; 421 to the rest. Commits and the queue are the owner's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network

import structlog
from prometheus_client import CollectorRegistry, Gauge

from config.settings import IPNetwork, ListenerSettings, RelaydSettings
from mailqueue.traces import Tap
from relayd import replies
from relayd.listener.connection import Arrival, Connection
from relayd.listener.gate import Census, Gate
from relayd.metrics import ListenerMetrics
from relayd.replies import Reply
from relayd.sockets import assign, bind, certificate_ends, tls_context, warn_of_expiry

BACKLOG = 1024

Build = Callable[[Arrival], Connection]
Furnish = Callable[[RelaydSettings, ListenerSettings, ssl.SSLContext | None], Build]

log = structlog.get_logger()


class Door:
    """One listener as its gates see it. What a reload may change is replaced whole by :meth:`furnish`."""

    def __init__(self, doors: Doors, listener: ListenerSettings) -> None:
        self.name = listener.name
        self.settings = listener
        self.context: ssl.SSLContext | None = None
        self.implicit_tls: ssl.SSLContext | None = None
        self.certificate_ends = float("inf")
        self._doors = doors
        self._balancers: tuple[IPNetwork, ...] = ()

    def furnish(self, listener: ListenerSettings, context: ssl.SSLContext | None, build: Build) -> None:
        """For what comes next; open sessions keep what they have."""
        if context is not self.context:
            self.certificate_ends = certificate_ends(listener)
        self.settings = listener
        self.context = context
        self.implicit_tls = context if listener.tls == "implicit" else None
        self._balancers = tuple(ip_network(text) for text in listener.proxy_from)
        self.build = build

    @property
    def tap(self) -> Tap:
        return self._doors.tap

    def is_balancer(self, address: str) -> bool:
        if not self._balancers:
            return False
        parsed = ip_address(address)
        return any(parsed in network for network in self._balancers)

    def join(self) -> Reply | None:
        return self._doors.join(self.name, self.settings.max_connections)

    def claim(self, address: str) -> Reply | None:
        return self._doors.claim(address)

    def leave(self, address: str | None) -> None:
        self._doors.census.leave(self.name, address)


class Doors:
    """``furnish(settings, listener, context)`` gives what makes a listener's sessions; called at start and on reload.
    ``shun(address)``: whom not to let in, beside the caps; ``closed()``: why nobody is let in just now."""

    def __init__(
        self,
        settings: RelaydSettings,
        furnish: Furnish,
        metrics: ListenerMetrics,
        registry: CollectorRegistry,
        shun: Callable[[str], Reply | None] = lambda _address: None,
        closed: Callable[[], Reply | None] = lambda: None,
        tap: Tap | None = None,
    ) -> None:
        self._settings = settings
        self._furnish = furnish
        self._metrics = metrics
        self._shun = shun
        self._closed = closed
        self.tap = tap or Tap()
        self._expiry = Gauge(
            "tambo_certificate_expiry_seconds", "seconds until a listener's certificate expires", ["listener"], registry=registry
        )  # fmt: skip
        self._doors: dict[str, Door] = {}
        self._waiting: set[Gate] = set()
        self._sessions: set[Connection] = set()
        self._empty = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self.census = Census()
        self.addresses: dict[str, tuple[str, int]] = {}  # listener → bound address and port
        self.draining = False

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(
        self, listeners: Iterable[ListenerSettings], handed: Iterable[tuple[str, socket.socket]] = ()
    ) -> None:
        """Bind and listen, all or nothing; ``handed`` = sockets of the service manager. OSError or ValueError says why not."""
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd tells every command at INFO
        listeners, handed = tuple(listeners), tuple(handed)
        try:
            given = assign(handed, listeners)
            for listener in listeners:
                door = Door(self, listener)
                self._set(door, listener, tls_context(listener))
                self._doors[listener.name] = door
                await self._listen(door, given.get(listener.name))
        except BaseException:
            self._stop_listening()
            for _, one in handed:
                one.close()
            raise

    async def _listen(self, door: Door, given: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        bound = given if given is not None else bind(door.settings)
        server = await loop.create_server(
            lambda: Gate(door, self._metrics, self._waiting, loop), sock=bound, backlog=BACKLOG
        )
        self._servers.append(server)
        host, port = bound.getsockname()[:2]
        self.addresses[door.name] = (host, port)
        log.info(
            "listening", listener=door.name, address=host, port=port, tls=door.settings.tls, inherited=given is not None
        )

    def check(self, listeners: Iterable[ListenerSettings]) -> None:
        """What :meth:`reload`, or a start, would fail of, said before: OSError or ValueError."""
        listeners = tuple(listeners)
        self._next(listeners)
        for listener in listeners:
            tls_context(listener)

    def reload(self, settings: RelaydSettings, listeners: Iterable[ListenerSettings]) -> None:
        """Limits and certificates for what comes next. Where and how a listener listens is what it was at start."""
        new = self._next(listeners)
        self._settings = settings
        for door, listener, context in new:
            self._set(door, listener, context)

    def _next(
        self, listeners: Iterable[ListenerSettings]
    ) -> list[tuple[Door, ListenerSettings, ssl.SSLContext | None]]:
        """What each door gets. One that the new file does not name stays open as it is, until the process ends."""
        given = {listener.name: listener for listener in listeners}
        new: list[tuple[Door, ListenerSettings, ssl.SSLContext | None]] = []
        for door in self._doors.values():
            wanted = given.get(door.name)
            listener = door.settings if wanted is None else _as_opened(door.settings, wanted)
            kept = wanted is None or not (wanted.certificate and wanted.key)
            new.append((door, listener, door.context if kept else tls_context(listener)))
        return new

    def _set(self, door: Door, listener: ListenerSettings, context: ssl.SSLContext | None) -> None:
        door.furnish(listener, context, self._furnish(self._settings, listener, context))
        if context is not None:
            warn_of_expiry(listener, door.certificate_ends)
            self._expiry.labels(door.name).set_function(lambda: door.certificate_ends - time.time())

    async def drain(self) -> None:
        """The written order of going; returns when no session is left."""
        self._close()
        for session in list(self._sessions):
            session.drain()
        await self.emptied(self._settings.drain_seconds)
        await self._end_sessions()

    async def stop(self) -> None:
        """End without waiting for anybody."""
        self._close()
        await self._end_sessions()

    def _close(self) -> None:
        self.draining = True
        self._stop_listening()
        for gate in list(self._waiting):
            gate.abort()

    async def _end_sessions(self) -> None:
        for session in list(self._sessions):
            session.hang_up(replies.SHUTTING_DOWN)
        await self.emptied(1.0)

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def emptied(self, timeout: float) -> None:
        """Returns when no session is left, or after `timeout` seconds."""
        if not self._sessions:
            return
        self._empty.clear()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            log.info("sessions left", count=len(self._sessions))

    # -- connections ----------------------------------------------------------------------------------------------

    def join(self, listener: str, most_of_listener: int | None) -> Reply | None:
        if self.draining:
            return replies.SHUTTING_DOWN
        if (refusal := self._closed()) is not None:
            return refusal
        return self.census.join(listener, self._settings.max_connections, most_of_listener)

    def claim(self, address: str) -> Reply | None:
        return self._shun(address) or self.census.claim(address, self._settings.max_connections_per_address)

    def joined(self, session: Connection) -> None:
        self._sessions.add(session)
        self._metrics.connections.inc()
        self._metrics.connections_opened.inc()

    def left(self, session: Connection) -> None:
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        self.census.leave(session.around.listener, session.address)
        self._metrics.connections.dec()
        if not self._sessions:
            self._empty.set()

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return len(self._sessions)


def _as_opened(old: ListenerSettings, new: ListenerSettings) -> ListenerSettings:
    """The new settings but for what is read once, when the listener opens."""
    kept = ("address", "port", "kind", "tls", "allow_public", "interface")
    listener = new.model_copy(update={key: getattr(old, key) for key in kept})
    if listener.tls != "none" and not (listener.certificate and listener.key):  # the new file says "none"
        listener = listener.model_copy(update={"certificate": old.certificate, "key": old.key})
    return listener
