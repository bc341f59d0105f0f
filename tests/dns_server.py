"""A tiny authoritative DNS server over real UDP and TCP: a map from (name, type) to answers, and a log of questions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

SERVFAIL, NXDOMAIN, REFUSED = "SERVFAIL", "NXDOMAIN", "REFUSED"
SILENT, GARBAGE, TRUNCATED = "silent", "garbage", "truncated"

Zone = dict[tuple[str, str], list[str] | str]


class DnsServer(asyncio.DatagramProtocol):
    """``zone``: ("in.test", "MX") → ["10 mx1.in.test.", …], or one of the words above; ("*", "*") for the rest.

    A name without entry is NXDOMAIN, a name with entries of other types only an empty answer with a SOA. ``ttl`` in
    seconds. CNAMEs are given out and, with ``chase``, followed. ``hold``: answers wait until it is set.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.ttl = 300
        self.chase = True
        self.hold: asyncio.Event | None = None
        self.asked: list[tuple[str, str, str]] = []  # name, type, udp | tcp
        self.heard = asyncio.Event()
        self.address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    # -- transports ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._udp(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _udp(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = await self._answer(data, "udp")
        if answer is not None:
            self.transport.sendto(answer, addr)

    async def tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                answer = await self._answer(await reader.readexactly(size), "tcp")
                if answer is None:
                    break
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        writer.close()

    # -- answers ---------------------------------------------------------------------------------------------------

    async def _answer(self, data: bytes, way: str) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, way))
        self.heard.set()
        if self.hold is not None:
            await self.hold.wait()
        found = self.zone.get((name, kind), self.zone.get(("*", "*")))
        if found == SILENT:
            return None
        if found == GARBAGE:
            return data[:2] + b"\xff" * 9
        response = dns.message.make_response(query)
        if found == TRUNCATED and way == "udp":
            response.flags |= dns.flags.TC
        elif isinstance(found, str) and found != TRUNCATED:
            response.set_rcode(dns.rcode.from_text(found))
        else:
            self._fill(response, name, kind)
        return response.to_wire(max_size=65_535)

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        while (name, "CNAME") in self.zone:
            target = self.zone[name, "CNAME"][0]
            response.answer.append(dns.rrset.from_text(name + ".", self.ttl, "IN", "CNAME", target))
            if not self.chase:
                return
            name = target.removesuffix(".")
        records = self.zone.get((name, kind))
        if records == TRUNCATED:
            records = self.zone[name, kind + " over TCP"]
        if isinstance(records, list):
            response.answer.append(dns.rrset.from_text_list(name + ".", self.ttl, "IN", kind, records))
            return
        if not any(known == name for known, _ in self.zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns.test. host.test. 1 3600 600 86400 {self.ttl}"
        response.authority.append(dns.rrset.from_text("test.", self.ttl, "IN", "SOA", soa))


@asynccontextmanager
async def dns_server(zone: Zone) -> AsyncIterator[DnsServer]:
    server = DnsServer(zone)
    connections: set[asyncio.Task[None]] = set()

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(asyncio.CancelledError):
            await server.tcp(reader, writer)
        writer.transport.abort()

    loop = asyncio.get_running_loop()
    listener = await asyncio.start_server(tcp, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", port))
    server.address = f"127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        transport.close()
        tasks = [*connections, *server._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # the handles under the transports close in the next turns of the loop
            await asyncio.sleep(0)
