"""The DNS server: UDP and TCP on one loopback port, real packets, every answer built once per question.

``pause`` makes it answer SERVFAIL, REFUSED or nothing, for all names or for one and those below it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

import dns.exception
import dns.flags
import dns.message

from sandbox.loopback import EphemeralPort, bound
from sandbox.scenario import DnsMode
from sandbox.world import World
from sandbox.zones import Zones

_MOST_CACHED = 8192  # answers; then the cache starts anew
_MOST_TCP = 64  # connections at once
_TCP_IDLE = 10.0  # seconds


class DnsServer:
    """Answers for a world; ``start`` binds, ``address`` is what it bound."""

    def __init__(self, world: World, address: str = "127.0.0.1", port: int = 0, zones: Zones | None = None) -> None:
        self._world = world
        self._zones = zones or Zones(world)
        self._where = (address, port)
        self._cache: dict[bytes, bytes | None] = {}
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams: set[asyncio.Transport] = set()
        self.questions = 0

    @property
    def address(self) -> str:
        """``"127.0.0.1:5353"``, as settings.delivery.nameservers wants it."""
        host, port = self._where
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Bind both transports to the same port; OSError when it is taken."""
        host, port = self._where
        loop = asyncio.get_running_loop()
        for attempt in EphemeralPort(port):
            with attempt:
                datagrams = bound(host, attempt.port, socket.SOCK_DGRAM)
                attempt.hold(datagrams)
                port = int(datagrams.getsockname()[1])
                attempt.hold(stream := bound(host, port, socket.SOCK_STREAM))
        self._where = (host, port)
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=datagrams)
        self._tcp = await loop.create_server(lambda: _Stream(self, self._streams), sock=stream)

    async def stop(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for transport in tuple(self._streams):
            transport.abort()

    def pause(self, mode: DnsMode = "servfail", name: str = "") -> None:
        """Answer so until :meth:`resume`; ``name`` limits it to one name and those below."""
        if mode == "normal":
            self.resume(name)
            return
        self._world.dns_modes[name] = mode
        self._cache.clear()

    def resume(self, name: str = "") -> None:
        self._world.dns_modes.pop(name, None)
        self._cache.clear()

    def answer(self, packet: bytes, stream: bool = False) -> bytes | None:
        """The response packet; None for silence and for what is no query."""
        self.questions += 1
        if b"_domainkey" in packet.lower():  # keys come and go while it runs
            built = self._build(packet, stream)
            return None if built is None else packet[:2] + built
        key = (b"T" if stream else b"U") + packet[2:]
        try:
            cached = self._cache[key]
        except KeyError:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            cached = self._cache[key] = self._build(packet, stream)
        return None if cached is None else packet[:2] + cached

    def _build(self, packet: bytes, stream: bool) -> bytes | None:
        """The response without its id; cut and marked TC when it does not fit a datagram (RFC 6891 §6.2.3)."""
        try:
            query = dns.message.from_wire(packet)
            if query.flags & dns.flags.QR:
                return None
            response = self._zones.respond(query)
        except (dns.exception.DNSException, ValueError):
            return None
        if response is None:
            return None
        most = 65535 if stream else max(512, query.payload)
        try:
            return response.to_wire(max_size=most)[2:]
        except dns.exception.TooBig:
            response.answer.clear()
            response.authority.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()[2:]


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        answer = self._server.answer(data)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


class _Stream(asyncio.Protocol):
    """One TCP connection: packets behind a 16-bit length (RFC 1035 §4.2.2)."""

    def __init__(self, server: DnsServer, streams: set[asyncio.Transport]) -> None:
        self._server = server
        self._streams = streams
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        if len(self._streams) >= _MOST_TCP:
            transport.abort()
            return
        self._streams.add(transport)
        self._idle = asyncio.get_running_loop().call_later(_TCP_IDLE, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 2:
            (length,) = struct.unpack_from("!H", self._buffer)
            if len(self._buffer) < 2 + length:
                break
            packet = bytes(self._buffer[2 : 2 + length])
            del self._buffer[: 2 + length]
            answer = self._server.answer(packet, stream=True)
            if answer is not None and self._transport is not None:
                self._transport.write(struct.pack("!H", len(answer)) + answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._transport is not None:
            self._streams.discard(self._transport)
