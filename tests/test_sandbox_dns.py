"""The sandbox's DNS, asked with real packets over UDP and TCP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import pytest

from sandbox.dns import DnsServer
from sandbox.scenario import load
from sandbox.world import World


def asked(scenario: Callable[[DnsServer, dns.asyncresolver.Resolver], Awaitable[None]]) -> None:
    """Run a scenario against a server of its own."""

    async def run() -> None:
        server = DnsServer(
            World(load(extra={"domains": [{"name": "big.test", "txt": [f"{n}" * 250 for n in range(8)]}]}))
        )
        await server.start()
        resolver = dns.asyncresolver.Resolver(configure=False)
        address, _, port = server.address.partition(":")
        resolver.nameservers, resolver.port, resolver.lifetime = [address], int(port), 1.0
        try:
            await scenario(server, resolver)
        finally:
            await server.stop()

    asyncio.run(run())


def test_mx_and_addresses() -> None:
    async def scenario(_: DnsServer, resolver: dns.asyncresolver.Resolver) -> None:
        answer = await resolver.resolve("Gmail.test", "MX")
        assert sorted((r.preference, str(r.exchange).lower()) for r in answer) == [
            (5, "mx1.gmail.test."),
            (10, "mx2.gmail.test."),
        ]
        for record in answer:
            (address,) = await resolver.resolve(record.exchange, "A")
            assert address.address.startswith("127.0.2.")
        assert (await resolver.resolve("gmail.test", "TXT"))[0].to_text().startswith('"v=spf1')
        assert (await resolver.resolve("mx.six.test", "AAAA"))[0].address == "::1"

    asked(scenario)


def test_absence_in_all_its_forms() -> None:
    async def scenario(_: DnsServer, resolver: dns.asyncresolver.Resolver) -> None:
        for name in ("nx.test", "gmail.com", "mx.nx.test"):
            with pytest.raises(dns.resolver.NXDOMAIN):
                await resolver.resolve(name, "MX")
        with pytest.raises(dns.resolver.NoAnswer):
            await resolver.resolve("nomx.test", "MX")
        assert await resolver.resolve("nomx.test", "A")
        with pytest.raises(dns.resolver.NoAnswer):
            await resolver.resolve("mx1.gmail.test", "AAAA")
        (null,) = await resolver.resolve("null.test", "MX")
        assert (null.preference, str(null.exchange)) == (0, ".")

    asked(scenario)


def test_alias_and_wildcard() -> None:
    async def scenario(_: DnsServer, resolver: dns.asyncresolver.Resolver) -> None:
        answer = await resolver.resolve("alias.test", "MX")
        assert str(answer.canonical_name) == "gob.test." and len(answer) == 2
        answer = await resolver.resolve("d4711.many.test", "MX")
        assert {str(r.exchange) for r in answer} == {"mx1.many.test.", "mx2.many.test."}

    asked(scenario)


def test_long_answer_goes_by_tcp() -> None:
    async def scenario(server: DnsServer, resolver: dns.asyncresolver.Resolver) -> None:
        address, _, port = server.address.partition(":")
        query = dns.message.make_query("big.test", "TXT", use_edns=False)
        short = await dns.asyncquery.udp(query, address, port=int(port), timeout=2)
        assert short.flags & dns.flags.TC and not short.answer
        assert len(await resolver.resolve("big.test", "TXT")) == 8
        assert (await dns.asyncquery.tcp(query, address, port=int(port), timeout=2)).answer

    asked(scenario)


def test_outages() -> None:
    async def scenario(server: DnsServer, resolver: dns.asyncresolver.Resolver) -> None:
        async def rcode(name: str) -> dns.rcode.Rcode:
            address, _, port = server.address.partition(":")
            query = dns.message.make_query(name, "MX")
            return (await dns.asyncquery.udp(query, address, port=int(port), timeout=0.3)).rcode()

        assert await rcode("servfail.test") == await rcode("mx.servfail.test") == dns.rcode.SERVFAIL
        assert await rcode("gmail.test") == dns.rcode.NOERROR
        server.pause()
        assert await rcode("gmail.test") == await rcode("nx.test") == dns.rcode.SERVFAIL
        server.pause("silent")
        with pytest.raises(dns.exception.Timeout):
            await rcode("gmail.test")
        server.resume()
        assert await rcode("gmail.test") == dns.rcode.NOERROR
        server.pause("refused", "gmail.test")
        assert await rcode("gmail.test") == dns.rcode.REFUSED
        assert await rcode("gob.test") == dns.rcode.NOERROR
        with pytest.raises(dns.resolver.NoNameservers):
            await resolver.resolve("servfail.test", "MX")

    asked(scenario)


def test_garbage_and_foreign_packets_are_let_pass() -> None:
    server = DnsServer(World(load()))
    response = dns.message.make_response(dns.message.make_query("gmail.test", "MX")).to_wire()
    for packet in (b"", b"\x00", b"\xff" * 40, response):
        assert server.answer(packet) is None
    assert server.answer(dns.message.make_query("a..test".replace("..", "."), "ANY").to_wire())


def test_answers_are_built_once() -> None:
    """Each question is answered from the cache: well below the cost of building, and the cache is bounded."""
    server = DnsServer(World(load()))
    packet = dns.message.make_query("gmail.test", "MX").to_wire()
    begun = time.process_time()
    for number in range(20_000):
        answer = server.answer(number.to_bytes(2, "big") + packet[2:])
        assert answer is not None and answer[:2] == number.to_bytes(2, "big")
    assert time.process_time() - begun < 1.0
    for number in range(9000):
        server.answer(packet[:-4] + number.to_bytes(4, "big"))
    assert len(server._cache) <= 8192


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "localhost", "10.0.0.1"])
def test_only_loopback(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loopback"):
        asyncio.run(DnsServer(World(load()), address).start())
