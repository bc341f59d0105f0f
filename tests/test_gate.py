"""Before a session: TLS from the first octet, headers of balancers, caps; all on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

import pytest
import structlog

from relayd.listener import gate
from tests.conftest import Certificate
from tests.listening import PASSWORD, Client, House, b64, listening, proxied, run, settings

BALANCER = "127.9.0.1"  # in no account's network
MODES = ["none", "starttls", "implicit"]


def listener(certificate: Certificate, tls: str, **more: object) -> dict[str, object]:
    files = {} if tls == "none" else {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    return {"tls": tls, **files, **more}


def proxy(certificate: Certificate, tls: str, **more: object) -> dict[str, object]:
    return listener(certificate, tls, proxy_from=["127.9.0.0/24"], **more)


def test_implicit_tls_offers_auth_at_once(certificate: Certificate) -> None:
    async def scenario() -> None:
        house_settings = settings(listener=listener(certificate, "implicit"), network=False)
        async with listening(settings_=house_settings) as house:
            client = await house.connect(tls=True)
            assert (await client.reply()).startswith("220 ")
            offered = await client.ask("EHLO x")
            assert "AUTH PLAIN LOGIN" in offered and "STARTTLS" not in offered
            assert await client.ask("STARTTLS") == "503 5.5.1 TLS is active already"
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("530 ")
            assert (await client.ask("AUTH PLAIN " + b64(f"\0user\0{PASSWORD}"))).startswith("235 ")
            assert (await client.transaction()).startswith("250 ")
            assert b"with ESMTPSA id" in house.queue.messages[0].content

    run(scenario())


def test_what_comes_with_the_end_of_the_handshake_is_not_lost(certificate: Certificate) -> None:
    """The client's Finished and its first commands in one segment."""

    async def scenario() -> None:
        async with listening(settings_=settings(listener=listener(certificate, "implicit"))) as house:
            loop = asyncio.get_running_loop()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing)
            raw = socket.create_connection(("127.0.0.1", house.port))
            raw.setblocking(False)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await loop.sock_sendall(raw, outgoing.read())
                    incoming.write(await loop.sock_recv(raw, 65536))
            tls.write(b"EHLO x\r\nQUIT\r\n")
            await loop.sock_sendall(raw, outgoing.read())
            text = b""
            while b"221 " not in text:
                try:
                    text += tls.read(65536)
                except ssl.SSLWantReadError:
                    incoming.write(await loop.sock_recv(raw, 65536))
            raw.close()
            assert b"250-relay.test" in text

    run(scenario())


@pytest.mark.parametrize("sent", [b"", b"EHLO x\r\n", b"\x16\x03\x01\x00\x05hello"])
def test_a_handshake_that_fails_ends_in_silence(
    certificate: Certificate, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 0.3)

    async def scenario() -> None:
        async with listening(settings_=settings(listener=listener(certificate, "implicit"))) as house:
            client = await house.connect()
            await client.send(sent)
            assert b"421" not in await silence(client)
            await gone(house)
            assert house.metric("smtp_server_rejections", reason="handshake") == 1

    run(scenario())


async def gone(house: House) -> None:
    """Every connection is counted out."""
    async with asyncio.timeout(5):
        while house.relayd.doors.census.total:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def silence(client: Client) -> bytes:
    """What came until the end, which may be a reset."""
    try:
        return await client.reader.read()
    except ConnectionError:
        return b""


def test_caps_count_before_the_handshake(certificate: Certificate) -> None:
    async def scenario() -> None:
        house_settings = settings(listener=listener(certificate, "implicit"), max_connections_per_address=2)
        async with listening(settings_=house_settings) as house:
            for _ in range(2):
                await house.connect()
            await asyncio.sleep(0.1)
            assert (house.relayd.doors.census.total, house.relayd.sessions) == (2, 0)
            assert await silence(await house.connect()) == b""
            assert house.metric("smtp_server_rejections", reason="connections_per_address") == 1
            assert house.metric("total_connections_denied") == 1

    run(scenario())


def test_a_listeners_own_cap() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener={"max_connections": 1})) as house:
            first = await house.connect()
            await first.hello()
            assert (
                await (await house.connect("127.0.0.2")).rest()
            ) == "421 4.7.0 too many connections here, try again later\r\n"
            assert house.metric("smtp_server_rejections", reason="connections_of_listener") == 1
            await first.ask("QUIT")
            await house.emptied()
            await (await house.connect()).hello()

    run(scenario())


def test_the_drain_ends_what_has_no_session_yet(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, "implicit"))) as house:
            clients = [await house.connect(), await house.connect(BALANCER)]
            await asyncio.sleep(0.1)
            await house.relayd.drain()
            for client in clients:
                assert await silence(client) == b""
            assert house.relayd.doors.census.total == 0

    run(scenario())


# -- balancers ------------------------------------------------------------------------------------------------------


async def through(house: House, client: str | None, tls: str) -> Client:
    return await house.connect(BALANCER, header=proxied(client), tls=tls == "implicit")


@pytest.mark.parametrize("tls", MODES)
def test_the_client_of_a_header_is_the_client(certificate: Certificate, tls: str) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, tls))) as house:
            client = await through(house, "127.0.0.77", tls)
            await client.hello()
            if tls == "starttls":
                await client.upgrade()
            assert (await client.transaction()).startswith("250 ")
            assert b"from client.example ([127.0.0.77])" in house.queue.messages[0].content
            assert house.queue.clients == ["127.0.0.77"]

    run(scenario())


def test_an_ipv4_client_in_ipv6_clothes_is_an_ipv4_client(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, "none"))) as house:
            client = await through(house, "::ffff:127.0.0.5", "none")
            await client.hello()
            assert (await client.transaction()).startswith("250 ")
            assert house.queue.clients == ["127.0.0.5"]

    run(scenario())


def test_no_descriptor_left_ends_the_connection_alone(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=listener(certificate, "implicit"))) as house:
            with monkeypatch.context() as patched:
                patched.setattr(gate.os, "dup", lambda _number: os.open("/nowhere/at/all", os.O_RDONLY))
                assert await silence(await house.connect()) == b""
            assert house.relayd.doors.census.total == 0
            await (await house.connect(tls=True)).hello()

    run(scenario())


@pytest.mark.parametrize("tls", MODES)
@pytest.mark.parametrize("client", ["192.0.2.7", "127.9.0.1", "2001:db8::7", None])
def test_a_client_that_is_nobodys_stays_one(certificate: Certificate, tls: str, client: str | None) -> None:
    """None: the balancer speaks for itself, which is no account either, though its own network were one's."""

    async def scenario() -> None:
        own = settings(listener=listener(certificate, tls, proxy_from=["127.0.0.0/16", "127.9.0.0/24"]))
        async with listening(settings_=own) as house:
            source = "127.0.0.9" if client is None else BALANCER
            spoken = await house.connect(source, header=proxied(client), tls=tls == "implicit")
            await spoken.hello()
            assert (await spoken.ask("MAIL FROM:<a@b.example>")).startswith("530 ")
            if tls == "starttls":
                await spoken.upgrade()
                assert (await spoken.ask("MAIL FROM:<a@b.example>")).startswith("530 ")

    run(scenario())


def test_a_header_in_pieces_with_the_greeting_behind_it(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, "none"))) as house:
            client = await house.connect(BALANCER)
            octets = proxied("127.0.0.5", checksum=True) + b"EHLO x\r\n"
            for octet in octets[:40]:
                await client.send(bytes((octet,)))
                await asyncio.sleep(0.001)
            await client.send(octets[40:])
            assert (await client.reply()).startswith("220 ")
            assert (await client.reply()).startswith("250-relay.test")

    run(scenario())


@pytest.mark.parametrize("tls", MODES)
@pytest.mark.parametrize(
    "sent", [b"", b"EHLO x\r\n", b"PROXY TCP4 127.0.0.1 127.0.0.2 1 2\r\n", proxied("127.0.0.1")[:20]]
)
def test_a_balancer_without_a_header_is_closed(
    certificate: Certificate, tls: str, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PROXY_SECONDS", 0.2)

    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, tls))) as house:
            client = await house.connect(BALANCER)
            await client.send(sent)
            assert await silence(client) == b""
            await gone(house)
            assert house.metric("smtp_server_rejections", reason="proxy") == 1

    run(scenario())


def test_a_balancer_that_only_looks_whether_we_live_is_no_news(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, "none"))) as house:
            with structlog.testing.capture_logs() as logs:
                for sent in (b"", proxied("127.0.0.1")[:20]):
                    client = await house.connect(BALANCER)
                    await client.send(sent)
                    await client.close()
                    await asyncio.sleep(0.05)
            refused = [each for each in logs if each["event"] == "proxy header refused"]
            assert [each["log_level"] for each in refused] == ["debug", "warning"]

    run(scenario())


def test_from_all_others_a_header_is_no_header(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(listener=proxy(certificate, "none"), network=False)) as house:
            client = await house.connect(
                "127.8.0.1", header=proxied("127.0.0.1") + b"\r\nEHLO x\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n"
            )
            text = await client.rest()
            assert "500 5.5.2 lines are printable ASCII" in text
            assert "530 " in text

    run(scenario())


def test_caps_behind_a_balancer_are_the_clients() -> None:
    async def scenario() -> None:
        own = settings(listener={"proxy_from": ["127.9.0.0/24"]}, max_connections_per_address=1, max_connections=3)
        async with listening(settings_=own) as house:
            for address in ("10.0.0.1", "10.0.0.2"):
                await (await through(house, address, "none")).hello()
            refused = await through(house, "10.0.0.2", "none")
            assert (await refused.rest()).startswith("421 4.7.0 too many connections from your address")
            await house.connect(BALANCER)  # counts before it has said anything
            await asyncio.sleep(0.05)
            assert (await (await through(house, "10.0.0.3", "none")).rest()).startswith(
                "421 4.7.0 too many connections,"
            )

    run(scenario())


@pytest.mark.parametrize(
    ("addresses", "refused"),
    [
        (("2001:db8::1", "2001:db8::2"), True),  # one host has them all
        (("2001:db8::1", "2001:db8:0:1::1"), False),
        (("fd00::1", "fd00::2"), False),  # a network of ours: many hosts
        (("192.0.2.1", "192.0.2.2"), False),
        (("192.0.2.1", "192.0.2.1"), True),
    ],
)
def test_whom_the_cap_of_an_address_counts_together(addresses: tuple[str, str], refused: bool) -> None:
    census = gate.Census()
    for _ in addresses:
        assert census.join("a", 9, None) is None
    assert census.claim(addresses[0], 1) is None
    assert (census.claim(addresses[1], 1) is not None) == refused
    census.leave("a", addresses[0])
    assert census.claim(addresses[1], 2) is None
    census.leave("a", addresses[1])
    if not refused:
        census.leave("a", addresses[1])
    assert not census._by_address
