"""The protocol of a connection's first moments: counts it, learns who it is, puts TLS on, hands it to a session.

In this order: caps in all and of the listener · PROXY header, where the peer is a balancer · cap of the client's address ·
TLS handshake, where TLS is implicit · session. A connection that does not come to its session costs a counter and
one line, not a session (which is ten times dearer).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Protocol, cast

import structlog

from config.addresses import is_inside
from mailqueue.failures import client_network
from mailqueue.traces import Tap
from relayd import replies
from relayd.listener.connection import HANDSHAKE_SECONDS, Arrival, Connection
from relayd.listener.overhear import Overheard
from relayd.listener.proxy import Header, Malformed, Unsaid
from relayd.metrics import ListenerMetrics
from relayd.replies import Reply

PROXY_SECONDS = 5.0  # for the whole header

log = structlog.get_logger()


class Census:
    """Open connections: in all and by listener as they come in, by client address as soon as it is known."""

    def __init__(self) -> None:
        self.total = 0
        self._by_listener: Counter[str] = Counter()
        self._by_address: Counter[str] = Counter()

    def join(self, listener: str, most: int, most_of_listener: int | None) -> Reply | None:
        """Count the connection in, or the refusal."""
        if self.total >= most:
            return replies.TOO_MANY_CONNECTIONS
        if most_of_listener is not None and self._by_listener[listener] >= most_of_listener:
            return replies.TOO_MANY_ON_LISTENER
        self.total += 1
        self._by_listener[listener] += 1
        return None

    def claim(self, address: str, most_per_address: int) -> Reply | None:
        """Count a joined connection to its client, or the refusal."""
        party = _party(address)
        if self._by_address[party] >= most_per_address:
            return replies.TOO_MANY_FROM_ADDRESS
        self._by_address[party] += 1
        return None

    def leave(self, listener: str, address: str | None) -> None:
        """``address``: the client's, None when it was not counted."""
        self.total -= 1
        self._by_listener[listener] -= 1
        if address is not None:
            party = _party(address)
            self._by_address[party] -= 1
            if self._by_address[party] <= 0:
                del self._by_address[party]


def _party(address: str) -> str:
    """What connections of a client count under: a public IPv6 address by its /64, for that is what one host has; in a
    network of ours each host by its own."""
    if ":" not in address or is_inside(ipaddress.IPv6Address(address)):
        return address
    return client_network(address)


def plain_address(peer: object) -> str:
    """The peer's IP address without port and zone, IPv4 where it is one in IPv6 clothes."""
    text = str(peer[0]) if isinstance(peer, tuple) and peer else "0.0.0.0"  # noqa: S104 - no bind
    if ":" not in text:
        return text
    parsed = ipaddress.IPv6Address(text.partition("%")[0])
    return str(parsed.ipv4_mapped or parsed)


class Door(Protocol):
    """What a gate needs of the listener it stands at."""

    name: str

    @property
    def tap(self) -> Tap: ...
    @property
    def implicit_tls(self) -> ssl.SSLContext | None: ...
    def is_balancer(self, address: str) -> bool: ...
    def join(self) -> Reply | None: ...
    def claim(self, address: str) -> Reply | None: ...
    def leave(self, address: str | None) -> None: ...
    def build(self, arrival: Arrival) -> Connection: ...


class Gate(asyncio.Protocol):
    """One connection until its session; `waiting` holds the gates that are not through, for the drain.

    Where something comes before the session, the socket is taken from its transport, which would read more than is
    wanted (uvloop's begins to read whatever is said in connection_made), and gets another one when it is time.
    """

    def __init__(
        self, door: Door, metrics: ListenerMetrics, waiting: set[Gate], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._door = door
        self._metrics = metrics
        self._waiting = waiting
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._counted: str | None = None  # under this address
        self._given = False  # the socket to a transport, whose end is its end
        self._through = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        peer = plain_address(transport.get_extra_info("peername"))
        refusal = self._door.join()
        if refusal is not None:
            self._refuse(refusal, peer, transport.write)
            transport.close()
        elif self._door.is_balancer(peer) or self._door.implicit_tls is not None:
            self._take(transport, peer)
        elif (refusal := self._door.claim(peer)) is not None:
            self._door.leave(None)
            self._refuse(refusal, peer, transport.write)
            transport.close()
        else:
            self._hand_over(transport, Arrival(peer))

    def _take(self, transport: asyncio.Transport, peer: str) -> None:
        try:
            connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError as error:
            log.error("connection lost", listener=self._door.name, client=peer, error=str(error))  # out of descriptors
            self._door.leave(None)
            return
        finally:
            transport.abort()
        connection.setblocking(False)
        self._waiting.add(self)
        self._task = self._loop.create_task(self._pass(connection, peer))
        self._task.add_done_callback(lambda task: self._passed(task, connection))

    def abort(self) -> None:
        """The process is going."""
        if self._task is not None:
            self._task.cancel()

    def _refuse(self, refusal: Reply, client: str, write: Callable[[bytes], object]) -> None:
        """In clear; where the client waits for a handshake a reply would be noise, so there it is the end alone."""
        self._metrics.connections_denied.inc()
        self._metrics.rejected(refusal.reason)
        if self._door.tap.on:
            Overheard(self._door.tap, self._door.name, client).hear("", "S", str(refusal))
        if self._door.implicit_tls is None:
            with contextlib.suppress(OSError):
                write(refusal.line)

    def _hand_over(self, transport: asyncio.Transport, arrival: Arrival) -> None:
        session = self._door.build(arrival)
        transport.set_protocol(session)
        self._through = True
        session.connection_made(transport)

    # -- what takes time ------------------------------------------------------------------------------------------

    async def _pass(self, connection: socket.socket, peer: str) -> None:
        arrival = await self._arrival(connection, peer)
        if arrival is None:
            return
        refusal = self._door.claim(arrival.address)
        if refusal is not None:
            self._refuse(refusal, arrival.address, connection.send)
            return
        self._counted = arrival.address
        context = self._door.implicit_tls
        self._given = True
        try:
            await self._loop.connect_accepted_socket(
                lambda: _Entry(self._hand_over, arrival),
                connection,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if context is not None else None,
            )
        except (ssl.SSLError, OSError, TimeoutError) as error:
            self._metrics.rejected("handshake")
            log.info("handshake failed", client=arrival.address, listener=self._door.name, error=str(error))

    def _passed(self, task: asyncio.Task[None], connection: socket.socket) -> None:
        """Whatever happened in :meth:`_pass`, and if it was cancelled before it began."""
        self._waiting.discard(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("gate failed", listener=self._door.name, client=self._counted, exc_info=error)
        if not self._through:
            self._door.leave(self._counted)
        if not self._given:
            connection.close()

    async def _arrival(self, connection: socket.socket, peer: str) -> Arrival | None:
        """Who it is. Of a client that a balancer does not name nothing is known, whatever network the balancer is in."""
        tls = self._door.implicit_tls is not None
        if not self._door.is_balancer(peer):
            return Arrival(peer, tls=tls)
        try:
            async with asyncio.timeout(PROXY_SECONDS):
                named = await self._read_header(connection)
        except (Malformed, OSError, TimeoutError) as error:
            why = "no header in time" if isinstance(error, TimeoutError) else str(error)
            self._metrics.rejected("proxy")
            told = log.debug if isinstance(error, Unsaid) else log.warning  # how balancers see whether we live
            told("proxy header refused", listener=self._door.name, balancer=peer, why=why)
            return None
        if named is None:
            return Arrival(peer, known=False, tls=tls)
        return Arrival(plain_address((named,)), tls=tls)

    async def _read_header(self, connection: socket.socket) -> str | None:
        """Not one octet more than the header has: what follows may be a handshake."""
        header = Header()
        while header.lacks:
            octets = await self._loop.sock_recv(connection, header.lacks)
            if not octets:
                raise Unsaid("the connection ended at once") if header.untouched else Malformed("cut off")
            header.feed(octets)
        return header.address


class _Entry(asyncio.Protocol):
    """Gives way to the session when the transport is ready, the handshake done."""

    def __init__(self, hand_over: Callable[[asyncio.Transport, Arrival], None], arrival: Arrival) -> None:
        self._hand_over = hand_over
        self._arrival = arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._hand_over(cast(asyncio.Transport, transport), self._arrival)
