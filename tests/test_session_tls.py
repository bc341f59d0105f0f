"""STARTTLS over real sockets: upgrade, refusal, breakage, injection; and the memory of broken hosts."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
import uvloop

from delivery.reply import Phase
from delivery.session import Session, SessionFailed
from delivery.tls import BrokenTls, TlsMode, opportunistic_context
from tests.smtp_peer import DROP, SILENCE, Peer, peer, peer_that
from tests.test_session import mail, seen, session_with, timeouts

OFFERED = {"EHLO": "250-mx.test\r\n250-PIPELINING\r\n250 STARTTLS"}


@pytest.fixture
def server_context(certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def tls(mode: TlsMode, **options: Any) -> dict[str, Any]:
    return {"tls": mode, "context": opportunistic_context(), **options}


async def failure(server: Peer, mode: TlsMode, **options: Any) -> SessionFailed:
    with pytest.raises(SessionFailed) as caught:
        async with session_with(server, **tls(mode, **options)):
            pass
    return caught.value


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("mode", [TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED])
def test_mail_under_tls(loop: Any, mode: TlsMode, server_context: ssl.SSLContext) -> None:
    async def scenario() -> None:
        async with peer(OFFERED, server_context) as server, session_with(server, **tls(mode)) as session:
            assert session.tls.startswith("TLSv1.")
            large = b"0123456789abcd\r\n" * 20_000
            assert seen(await session.send(mail())) == [(250, "end-of-data")]
            assert seen(await session.send(mail(content=large))) == [(250, "end-of-data")]
            await session.quit()
            assert server.messages[1] == large
            assert server.verbs()[:4] == ["EHLO", "STARTTLS", "EHLO", "MAIL"]

    loop(scenario())


def test_not_offered_or_not_wanted() -> None:
    async def scenario() -> None:
        async with peer() as server:
            async with session_with(server, **tls(TlsMode.OPPORTUNISTIC)) as session:
                assert session.tls == ""
                assert seen(await session.send(mail())) == [(250, "end-of-data")]
            failed = await failure(server, TlsMode.REQUIRED)
            assert (failed.kind, failed.phase) == ("tls", Phase.EHLO)
        async with peer(OFFERED) as server, session_with(server) as session:
            assert (session.tls, server.verbs()) == ("", ["EHLO"])

    uvloop.run(scenario())


def test_454_goes_on_in_clear_unless_required() -> None:
    async def scenario() -> None:
        async with peer({**OFFERED, "STARTTLS": "454 not now"}) as server:
            async with session_with(server, **tls(TlsMode.OPPORTUNISTIC)) as session:
                assert seen(await session.send(mail())) == [(250, "end-of-data")]
            failed = await failure(server, TlsMode.REQUIRED)
            assert (failed.kind, failed.phase, failed.reply and failed.reply.code) == ("tls", Phase.STARTTLS, 454)

    uvloop.run(scenario())


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    ("answer", "phase"),
    [
        (b"220 go\r\n250 injected\r\n", Phase.STARTTLS),
        (b"220-go\r\n220 go\r\n250-half", Phase.STARTTLS),
        (DROP, Phase.STARTTLS),
        (SILENCE, Phase.STARTTLS),
        ("421 no", Phase.STARTTLS),
    ],
)
def test_trouble_with_the_command(loop: Any, answer: Any, phase: Phase) -> None:
    async def scenario() -> None:
        async with peer({**OFFERED, "STARTTLS": answer}) as server:
            failed = await failure(server, TlsMode.OPPORTUNISTIC, timeouts=timeouts(starttls=0.1))
            assert (failed.kind, failed.phase) == ("tls", phase)

    loop(scenario())


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("then", ["garbage", "silence", "drop"])
def test_broken_handshakes_are_kind_tls(loop: Any, then: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for reply in (b"220 hi\r\n", b"250-hi\r\n250 STARTTLS\r\n", b"220 go\r\n"):
                writer.write(reply)
                await reader.read(1000)
            if then == "garbage":
                writer.write(b"454 TLS not available after all\r\n" * 3)
            if then != "drop":
                while await reader.read(1000):
                    pass
        writer.transport.abort()

    async def scenario() -> None:
        async with peer_that(serve) as server:
            failed = await failure(server, TlsMode.OPPORTUNISTIC, timeouts=timeouts(starttls=0.2))
            assert (failed.kind, failed.phase) == ("tls", Phase.TLS)

    loop(scenario())


def test_a_peer_that_refuses_the_handshake_late(certificate: Any) -> None:
    """It asks for a client certificate: with TLS 1.3 our side of the handshake is done before it says no."""

    async def scenario() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        context.load_verify_locations(certificate.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        async with peer(OFFERED, context) as server:
            failed = await failure(server, TlsMode.OPPORTUNISTIC)
            assert (failed.kind, failed.phase) == ("tls", Phase.TLS)
            await server.gone.wait()

    uvloop.run(scenario())


def test_tls_needs_a_context() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="context"):
            await Session.open(
                "mx", "127.0.0.1", 1, source=None, hostname="x", timeouts=timeouts(), tls=TlsMode.REQUIRED
            )

    asyncio.run(scenario())


def test_broken_hosts_are_remembered_for_a_while() -> None:
    memory = BrokenTls(keep_seconds=10, most=2)
    wanted = TlsMode.OPPORTUNISTIC
    memory.remember("a", now=0)
    assert memory.mode("a", wanted, now=9.9) is TlsMode.NONE
    assert memory.mode("a", TlsMode.REQUIRED, now=9.9) is TlsMode.REQUIRED
    assert memory.mode("b", wanted, now=9.9) is wanted
    assert memory.mode("a", wanted, now=10) is wanted
    for host in "abc":
        memory.remember(host, now=0)
    assert [memory.mode(host, wanted, now=1) is TlsMode.NONE for host in "abc"] == [False, True, True]
    assert len(memory) == 2
