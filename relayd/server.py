"""The listening process: binds, admits, knows its open sessions and lets them go in order.

Going (SIGTERM): stop listening; 421 4.3.2 to idle sessions; busy ones may end their transaction until
``drain_seconds``; 421 to the rest; commits whose clients have gone are waited for; the queue is closed by its owner.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterable
from ipaddress import ip_address

import structlog
from prometheus_client import CollectorRegistry

from config.settings import ListenerSettings, Settings, refuse_public
from relayd import replies
from relayd.accounts import Accounts
from relayd.auth import Authenticator, Book
from relayd.handler import Submission, SubmissionHandler
from relayd.listener.connection import Connection, Surroundings, mould
from relayd.listener.gate import Census, Gate
from relayd.listener.submission import SubmissionSession
from relayd.metrics import ListenerMetrics
from relayd.prepare import Preparation, Terms
from relayd.replies import Reply
from relayd.volume import Volume

BACKLOG = 1024

log = structlog.get_logger()


def terms(settings: Settings) -> Terms:
    retry = settings.delivery.retry
    return Terms(
        hostname=settings.relayd.hostname,
        max_recipients=settings.relayd.max_recipients,
        max_hops=settings.relayd.max_hops,
        expire_seconds=retry.expire_seconds,
        notice_seconds=retry.delay_notice_seconds,
    )


def tls_context(listener: ListenerSettings) -> ssl.SSLContext | None:
    """Server context of a listener; OSError or ssl.SSLError when its files do not serve."""
    if listener.tls == "none":
        return None
    assert listener.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(listener.certificate, listener.key)
    return context


def bind(listener: ListenerSettings) -> socket.socket:
    """A bound socket that shares its port with the other processes of this listener. ValueError: public address."""
    refuse_public(listener.address, listener.allow_public)
    family = socket.AF_INET6 if ip_address(listener.address).version == 6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)
        bound.bind((listener.address, listener.port))
    except OSError:
        bound.close()
        raise
    return bound


class Relayd:
    """Everything of one relayd process but its signals, its metrics port and the queue's life."""

    def __init__(self, settings: Settings, queue: Submission, registry: CollectorRegistry, book: Book) -> None:
        """ValueError: accounts that contradict each other."""
        self._settings = settings
        self._queue = queue
        self._metrics = ListenerMetrics(registry)
        self._accounts = Accounts(settings.accounts)
        self._authenticator = Authenticator(self._accounts, book)
        self._handler = SubmissionHandler(queue, Preparation(terms(settings), queue.new_id), self._metrics)
        self._census = Census()
        self._volume = Volume()
        self._sessions: set[Connection] = set()
        self._empty = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._around: dict[str, Surroundings] = {}
        self.addresses: dict[str, tuple[str, int]] = {}  # listener → bound address and port
        self.draining = False

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self, listeners: Iterable[ListenerSettings] | None = None) -> None:
        """Bind and listen, all or nothing; OSError, ssl.SSLError or ValueError says why not."""
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd tells every command at INFO
        loop = asyncio.get_running_loop()
        try:
            for listener in self._settings.relayd.listeners if listeners is None else listeners:
                self._around[listener.name] = self._surroundings(self._settings, listener)
                bound = bind(listener)
                name = listener.name
                server = await loop.create_server(lambda name=name: self._gate(name), sock=bound, backlog=BACKLOG)  # type: ignore[misc]
                self._servers.append(server)
                host, port = bound.getsockname()[:2]
                self.addresses[listener.name] = (host, port)
                log.info("listening", listener=listener.name, address=host, port=port, tls=listener.tls)
        except BaseException:
            self._stop_listening()
            raise

    def check(self, settings: Settings) -> list[str]:
        """What a reload would fail of, said before anything is swapped: OSError, ssl.SSLError or ValueError."""
        Accounts(settings.accounts)
        for listener in settings.relayd.listeners:
            tls_context(listener)
        return []

    def reload(self, settings: Settings) -> None:
        """Accounts, limits and certificates for what comes next; nothing is changed when anything is wrong.

        Listeners themselves (name, address, port) are what they were at start.
        """
        old = {one.name for one in self._settings.relayd.listeners}
        around = {one.name: self._surroundings(settings, one) for one in settings.relayd.listeners if one.name in old}
        self._accounts.swap(settings.accounts)
        self._handler.preparation = Preparation(terms(settings), self._queue.new_id)
        self._around.update(around)
        self._settings = settings

    async def drain(self) -> None:
        """The written order of going; returns when no session is left."""
        self.draining = True
        self._stop_listening()
        for session in list(self._sessions):
            session.drain()
        await self._wait_empty(self._settings.relayd.drain_seconds)
        for session in list(self._sessions):
            session.hang_up(replies.SHUTTING_DOWN)
        await self._wait_empty(1.0)
        if not await self._handler.settle(self._settings.queue.put_deadline_seconds):
            log.warning("commits still under way", action="left to the queue's deadline")
        self._authenticator.close()

    async def stop(self) -> None:
        """End without waiting for anybody."""
        self.draining = True
        self._stop_listening()
        for session in list(self._sessions):
            session.hang_up(replies.SHUTTING_DOWN)
        await self._wait_empty(1.0)
        self._authenticator.close()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _wait_empty(self, timeout: float) -> None:
        if not self._sessions:
            return
        self._empty.clear()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            log.info("sessions left", count=len(self._sessions))

    # -- sessions -------------------------------------------------------------------------------------------------

    def _surroundings(self, settings: Settings, listener: ListenerSettings) -> Surroundings:
        return Surroundings(
            listener=listener.name,
            settings=settings.relayd,
            handler=self._handler,
            accounts=self._accounts,
            authenticator=self._authenticator,
            metrics=self._metrics,
            register=self,
            volume=self._volume,
            mould=mould(self._handler, settings.relayd, tls_context(listener), asyncio.get_running_loop()),
        )

    def _gate(self, listener: str) -> Gate:
        around = self._around[listener]
        loop = asyncio.get_running_loop()
        return Gate(self._admit, lambda address: SubmissionSession(around, address, loop), self._metrics)

    def _admit(self, address: str) -> Reply | None:
        if self.draining:
            return replies.SHUTTING_DOWN
        if self._authenticator.shuns(address) and self._accounts.by_address(address) is None:
            return replies.TOO_MANY_FAILED_AUTH
        limits = self._settings.relayd
        return self._census.join(address, limits.max_connections, limits.max_connections_per_address)

    def joined(self, session: Connection) -> None:
        self._sessions.add(session)
        self._metrics.connections.inc()
        self._metrics.connections_opened.inc()

    def left(self, session: Connection) -> None:
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        self._census.leave(session.address)
        self._metrics.connections.dec()
        if not self._sessions:
            self._empty.set()

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return len(self._sessions)
