"""A session with a smarthost over real sockets: TLS verified, AUTH, and the same promises as our own client's."""

from __future__ import annotations

import asyncio
import base64
import hmac
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import pytest
import uvloop
from aiosmtpd.smtp import SMTP as Server
from aiosmtpd.smtp import AuthResult
from aiosmtplib import SMTP
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from config.route_files import trust
from config.settings import RouteSettings
from delivery.connect import SessionFailed
from delivery.reply import Phase
from delivery.smarthost import Smarthost, SmarthostSession
from tests.smtp_peer import DROP, SILENCE, Peer, peer, peer_that
from tests.test_session import mail, seen, timeouts

OFFERED = {"EHLO": "250-mx.test\r\n250-STARTTLS\r\n250-8BITMIME\r\n250-SIZE 50000000\r\n250 AUTH PLAIN LOGIN"}
KNOWN = {**OFFERED, "AUTH": "235 2.7.0 welcome"}


@pytest.fixture
def server_context(certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


@pytest.fixture
def trusted(certificate: Any) -> ssl.SSLContext:
    return trust(str(certificate.certificate))


def smarthost(port: int, context: ssl.SSLContext | None = None, **keys: Any) -> Smarthost:
    facts = {"host": "mx.test", "user": "relay", **keys} if context else {"host": "127.0.0.1", "tls": "none", **keys}
    route = RouteSettings.model_validate({"name": "formal", "port": port, "accounts": ["a"], **facts})
    return Smarthost(route, SecretStr("clave"), context)


@asynccontextmanager
async def session_with(
    server: Peer, context: ssl.SSLContext | None = None, limits: Any = None, on_lost: Any = None, **keys: Any
) -> AsyncIterator[SmarthostSession]:
    session = await SmarthostSession.open(
        smarthost(server.port, context, **keys),
        "127.0.0.1",
        source="127.0.0.5",
        hostname="relay.test",
        timeouts=limits or timeouts(),
        on_lost=on_lost,
    )
    try:
        yield session
    finally:
        session.abort()
        await session.wait_closed()


async def failure(server: Peer, context: ssl.SSLContext | None = None, **keys: Any) -> SessionFailed:
    with pytest.raises(SessionFailed) as caught:
        async with session_with(server, context, **keys):
            pass
    return caught.value


# ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_mail_under_verified_tls(loop: Any, server_context: ssl.SSLContext, trusted: ssl.SSLContext) -> None:
    async def scenario() -> None:
        async with peer(KNOWN, server_context) as server, session_with(server, trusted) as session:
            assert session.tls.startswith("TLSv1.3 ")
            assert seen(await session.send(mail())) == [(250, "end-of-data")]
            large = b"0123456789abcd\r\n" * 20_000
            assert seen(await session.send(mail(content=large))) == [(250, "end-of-data")]
            assert server.messages[1] == large
            assert server.peers[0][0] == "127.0.0.5"
            secret = base64.b64encode(b"\0relay\0clave").decode()
            assert server.heard[:4] == ["EHLO relay.test", "STARTTLS", "EHLO relay.test", f"AUTH PLAIN {secret}"]
            assert (session.sent, session.alive, session.closing, session.failure) == (2, True, False, "")
            await session.quit()
            assert server.verbs()[-1] == "QUIT"
            assert not session.alive

    loop(scenario())


class Directory:
    """Who may log in at the aiosmtpd peer, and what it got."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.got: list[tuple[str, list[str], bytes]] = []

    def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.tried.append(mechanism)
        known = (data.login, data.password) == (b"relay", b"clave")
        return AuthResult(success=known, handled=False, auth_data=data)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((envelope.mail_from, envelope.rcpt_tos, envelope.original_content))
        return "250 2.0.0 kept"


@asynccontextmanager
async def aiosmtpd_peer(context: ssl.SSLContext, directory: Directory, **options: Any) -> AsyncIterator[Peer]:
    server = Peer({}, None)
    loop = asyncio.get_running_loop()
    implicit = options.pop("implicit", False)

    def made() -> Server:
        return Server(
            directory,
            authenticator=directory,
            auth_required=not implicit,
            tls_context=None if implicit else context,
            require_starttls=not implicit,
            loop=loop,
            **options,
        )

    listener = await loop.create_server(made, "127.0.0.1", 0, ssl=context if implicit else None)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("keys", "options", "mechanism"),
    [
        ({}, {}, "PLAIN"),
        ({}, {"auth_exclude_mechanism": ["PLAIN"]}, "LOGIN"),
        ({"tls": "implicit"}, {"implicit": True, "auth_require_tls": False}, "PLAIN"),
    ],
)
def test_a_real_server_knows_us(
    keys: Any, options: Any, mechanism: str, server_context: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    async def scenario() -> None:
        directory = Directory()
        async with aiosmtpd_peer(server_context, directory, **options) as server:
            async with session_with(server, trusted, **keys) as session:
                assert seen(await session.send(mail("b@x.test"))) == [(250, "end-of-data")]
                assert session.tls.startswith("TLSv1.3 ")
                await session.quit()
            assert directory.tried == [mechanism]
            assert directory.got[0][1] == ["b@x.test"]
            other = smarthost(server.port, trusted, **keys)
            with pytest.raises(SessionFailed) as caught:
                await SmarthostSession.open(
                    Smarthost(other.settings, SecretStr("otra"), trusted),
                    "127.0.0.1",
                    source=None,
                    hostname="relay.test",
                    timeouts=timeouts(),
                )
            assert (caught.value.kind, caught.value.phase) == ("auth", Phase.AUTH)
            assert caught.value.reply is not None
            assert caught.value.reply.code == 535
            assert directory.tried == [mechanism] * 2, "one try a session"
            assert "otra" not in str(caught.value)

    uvloop.run(scenario())


def test_cram_md5(server_context: ssl.SSLContext, trusted: ssl.SSLContext) -> None:
    challenge = b"<1896.697170952@mx.test>"
    answer = base64.b64encode(b"relay " + hmac.new(b"clave", challenge, "md5").hexdigest().encode()).decode()
    script = {
        "EHLO": "250-mx.test\r\n250-STARTTLS\r\n250 AUTH CRAM-MD5 XOAUTH2",
        "AUTH": f"334 {base64.b64encode(challenge).decode()}",
        answer.upper(): "235 2.7.0 welcome",  # the peer takes every line for a verb
    }

    async def scenario() -> None:
        async with peer(script, server_context) as server, session_with(server, trusted) as session:
            assert seen(await session.send(mail())) == [(250, "end-of-data")]
            assert server.heard[3:5] == ["AUTH CRAM-MD5", answer]

    uvloop.run(scenario())


def test_another_name_or_another_authority(
    server_context: ssl.SSLContext, trusted: ssl.SSLContext, certificate: Any
) -> None:
    async def scenario() -> None:
        async with peer(KNOWN, server_context) as server:
            for context, host in ((trusted, "other.test"), (trust(None), "mx.test")):
                failed = await failure(server, context, host=host)
                assert (failed.kind, failed.phase) == ("tls", Phase.TLS)
                assert "certificate verify failed" in failed.text
            assert "AUTH" not in server.verbs()
        directory = Directory()
        async with aiosmtpd_peer(server_context, directory, implicit=True) as server:
            failed = await failure(server, trusted, host="other.test", tls="implicit")
            assert (failed.kind, failed.phase, directory.tried) == ("tls", Phase.TLS, [])
            assert "certificate verify failed" in failed.text

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("script", "kind", "phase"),
    [
        ({"greeting": "554 5.7.1 go away"}, "reply", Phase.GREETING),
        ({"greeting": "421 4.3.2 later"}, "reply", Phase.GREETING),
        ({"greeting": DROP}, "lost", Phase.GREETING),
        ({"greeting": "220 a\r\n220 b"}, "lost", Phase.GREETING),
        ({"greeting": "hello"}, "lost", Phase.GREETING),
        ({"EHLO": "550 no"}, "reply", Phase.EHLO),
        ({"EHLO": SILENCE}, "timeout", Phase.EHLO),
        ({"EHLO": "250 mx.test"}, "tls", Phase.EHLO),
        ({**OFFERED, "STARTTLS": "454 4.7.0 not now"}, "tls", Phase.STARTTLS),
        ({**OFFERED, "STARTTLS": DROP}, "tls", Phase.TLS),
        ({**OFFERED, "AUTH": "535 5.7.8 no"}, "auth", Phase.AUTH),
        ({**OFFERED, "AUTH": "454 4.7.0 ask later"}, "auth", Phase.AUTH),
        ({**OFFERED, "AUTH": "538 5.7.11 encrypt"}, "auth", Phase.AUTH),
        ({**OFFERED, "AUTH": SILENCE}, "timeout", Phase.AUTH),
        ({"EHLO": "250-mx.test\r\n250-STARTTLS\r\n250 AUTH GSSAPI"}, "auth", Phase.AUTH),
    ],
)
def test_no_session(
    script: Any, kind: str, phase: Phase, server_context: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    async def scenario() -> None:
        async with peer(script, server_context) as server:
            failed = await failure(server, trusted, limits=timeouts(ehlo=0.2, mail=0.2, starttls=0.5))
            assert (failed.kind, failed.phase) == (kind, phase), failed

    uvloop.run(scenario())


def test_nobody_listens() -> None:
    async def scenario() -> None:
        with pytest.raises(SessionFailed) as caught:
            await SmarthostSession.open(
                smarthost(1), "127.0.0.1", source=None, hostname="relay.test", timeouts=timeouts()
            )
        assert (caught.value.kind, caught.value.phase) == ("refused", Phase.CONNECT)

    uvloop.run(scenario())


def test_what_was_injected_before_the_handshake_is_not_heard(
    server_context: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    injected = "220 go on\r\n250-mx.test\r\n250 AUTH LOGIN"

    async def scenario() -> None:
        async with peer({**KNOWN, "STARTTLS": injected}, server_context) as server:
            async with session_with(server, trusted) as session:
                assert seen(await session.send(mail())) == [(250, "end-of-data")]
            assert server.heard[3].startswith("AUTH PLAIN ")

    uvloop.run(scenario())


# ── transactions ───────────────────────────────────────────────────────────────────────────────────────────────────


def play(script: Any, story: Callable[[Peer, SmarthostSession], Awaitable[None]], **options: Any) -> None:
    """Without TLS and AUTH: what is said afterwards is the same."""

    async def scenario() -> None:
        async with peer(script) as server, session_with(server, **options) as session:
            await story(server, session)

    uvloop.run(scenario())


CONTENT = b".dot\r\n..two\r\nS: \xc3\xb1\r\n\r\n.\r\nend"


def test_content_passes_byte_for_byte() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        await session.send(mail(content=CONTENT + b"\r\n", body="8BITMIME"))
        bare = b"bare \n and \r inside\r\n"
        await session.send(mail(content=bare))
        assert server.messages[0].replace(b"\r\n..", b"\r\n.")[1:] == CONTENT + b"\r\n"
        assert server.messages[1] == bare, "nothing is normalised: a signature stands over it"

    play({}, story)


def test_each_recipient_has_its_reply() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        result = await session.send(mail("a@x.test", "b@x.test", "c@x.test"))
        assert seen(result) == [(250, "end-of-data"), (550, "rcpt"), (450, "rcpt")]
        assert [reply.reply.status for reply in result.recipients if reply.reply] == ["2.0.0", "5.1.1", "4.2.1"]
        assert len(server.messages) == 1
        result = await session.send(mail("a@x.test"))
        assert seen(result) == [(450, "rcpt")], "the last reply of the script stays"
        await session.send(mail("a@x.test"))
        assert server.verbs().count("RSET") == 1, "after a transaction that was left open"

    play({"RCPT": ["250 ok", "550 5.1.1 unknown", "450 4.2.1 later"]}, story)


@pytest.mark.parametrize(
    ("script", "expected", "alive"),
    [
        ({"MAIL": "550 5.7.1 no"}, [(550, "mail")], True),
        ({"MAIL": "452 4.3.1 full"}, [(452, "mail")], True),
        ({"MAIL": "421 4.3.2 bye"}, [(421, "mail")], False),
        ({"RCPT": "421 4.3.2 bye"}, [(421, "rcpt")], False),
        ({"DATA": "554 5.5.1 no"}, [(554, "data")], True),
        ({".": "554 5.6.0 spam"}, [(554, "end-of-data")], True),
        ({".": "421 4.3.2 bye"}, [(421, "end-of-data")], False),
    ],
)
def test_refusals(script: Any, expected: Any, alive: bool) -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        assert seen(await session.send(mail())) == expected
        assert session.alive is alive

    play(script, story)


@pytest.mark.parametrize(
    ("script", "phase", "unknown"),
    [
        ({"MAIL": DROP}, "mail", False),
        ({"RCPT": DROP}, "rcpt", False),
        ({"DATA": DROP}, "data", False),
        ({"DATA": "250 what"}, "data", False),
        ({".": DROP}, "end-of-data", True),
        ({".": SILENCE}, "end-of-data", True),
        ({".": "354 more"}, "end-of-data", True),
        ({".": "nonsense"}, "end-of-data", True),
        ({"MAIL": "250 ok\r\n250 ok"}, "mail", False),
        ({"RCPT": "nonsense"}, "rcpt", False),
    ],
)
def test_losses(script: Any, phase: str, unknown: bool) -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        session._limits[Phase.END_OF_DATA] = 0.2  # the settings allow no less than 300 s
        result = await session.send(mail("a@x.test", "b@x.test"))
        assert {(one.phase.value, one.unknown, one.reply) for one in result.recipients} == {(phase, unknown, None)}
        assert session.failure
        assert not session.alive
        assert (await session.send(mail())).recipients[0].lost == session.failure

    play(script, story)


@pytest.mark.parametrize("behind", ["421 4.3.2 no more", "nonsense"])
def test_what_comes_behind_the_answer_to_the_dot_does_not_undo_it(behind: str) -> None:
    """The smarthost has the message: to take that for unknown would send it twice."""

    async def story(server: Peer, session: SmarthostSession) -> None:
        assert seen(await session.send(mail())) == [(250, "end-of-data")]
        assert not session.alive
        await session.quit()

    play({".": f"250 2.0.0 kept\r\n{behind}"}, story)


@pytest.mark.parametrize("hangs_up", [True, False])
def test_content_is_refused_before_the_dot(hangs_up: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx.test\r\n")
        for reply in (b"250 mx.test\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n"):
            await reader.readline()
            writer.write(reply)
        await reader.readexactly(100_000)
        writer.write(b"552 5.3.4 too large\r\n")
        if not hangs_up:
            while await reader.read(65_536):
                pass
        writer.close()

    async def a_moment() -> bool:
        await asyncio.sleep(0.1)
        return True

    async def scenario() -> None:
        async with peer_that(serve) as server, session_with(server) as session:
            session._limits[Phase.END_OF_DATA] = 1.0
            large = b"0123456789abcd\r\n" * 10_000
            result = await session.send(mail(content=large, before_dot=a_moment))
            assert seen(result) == [(552, "content")]
            assert not session.alive

    uvloop.run(scenario())


@pytest.mark.parametrize("reply", ["530 5.7.0 log in first", "535 5.7.8 no", "538 5.7.11 encrypt"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_a_peer_that_wants_a_login_says_nothing_of_the_mail(verb: str, reply: str) -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        result = await session.send(mail())
        assert result.recipients[0].reply is None
        assert (result.recipients[0].unknown, session.failure, session.alive) == (False, reply, False)

    play({verb: reply}, story)


def test_the_owner_says_no() -> None:
    async def no() -> bool:
        return False

    async def story(server: Peer, session: SmarthostSession) -> None:
        result = await session.send(mail(before_mail=lambda: False))
        assert (result.aborted, server.verbs(), session.alive) == (True, ["EHLO"], True)
        result = await session.send(mail(before_dot=no))
        assert (result.aborted, result.recipients[0].unknown, session.alive) == (True, False, False)
        await asyncio.wait_for(server.gone.wait(), 2)
        assert server.messages == []

    play({}, story)


def test_the_owner_is_asked_before_the_dot_of_a_large_content() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        asked: list[int] = []

        async def yes() -> bool:
            await asyncio.sleep(0.05)
            asked.append(len(server.messages))
            return True

        large = b"x" * 70 + b"\r\n"
        assert seen(await session.send(mail(content=large * 5000, before_dot=yes))) == [(250, "end-of-data")]
        assert (asked, server.messages) == ([0], [large * 5000])

    play({}, story)


def test_a_peer_gone_before_the_dot_knows_nothing() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        async def hang_up() -> bool:
            server.writers[0].transport.abort()
            await asyncio.sleep(0.05)
            return True

        result = await session.send(mail(before_dot=hang_up))
        assert (result.recipients[0].unknown, result.recipients[0].phase.value) == (False, "content")

    play({}, story)


def test_what_does_not_fit_is_refused_here() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        result = await session.send(mail(smtputf8=True))
        assert [(one.reply.code, one.reply.status, one.local) for one in result.recipients if one.reply] == [
            (550, "5.6.7", True)
        ]
        result = await session.send(mail(body="8BITMIME", content=b"\xc3\xb1\r\n"))
        assert seen(result) == [(554, "mail")]
        result = await session.send(mail("a\r\nRCPT TO:<x@y.test>", "ok@x.test"))
        assert [one.local for one in result.recipients] == [True, False]
        assert server.verbs() == ["EHLO", "MAIL", "RCPT", "DATA", "."]

    play({"EHLO": "250 mx.test"}, story)


@pytest.mark.parametrize("offered", [True, False])
def test_dsn_parameters_are_passed_on_where_offered(offered: bool) -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        result = await session.send(
            mail(
                "a@x.test",
                "b@x.test",
                ret="HDRS",
                envid="e1",
                notify=("SUCCESS", ""),
                orcpt=("rfc822;A@x.test", "rfc822;b@x.test"),
            )
        )
        assert result.dsn is offered
        heard = [line for line in server.heard if line.startswith(("MAIL", "RCPT"))]
        assert ("RET=HDRS ENVID=e1" in heard[0]) is offered
        assert heard[1].endswith(" NOTIFY=SUCCESS ORCPT=rfc822;A@x.test") is offered
        assert heard[2].endswith(" ORCPT=rfc822;b@x.test") is offered

    play({"EHLO": "250-mx.test\r\n250-SIZE\r\n250 DSN" if offered else "250 mx.test"}, story)


def test_an_idle_session_is_lost_and_said() -> None:
    async def scenario() -> None:
        told: list[str] = []
        async with (
            peer() as server,
            session_with(server, on_lost=lambda session, why: told.append(f"{session.host} {why}")) as session,
        ):
            await session.send(mail())
            server.writers[0].transport.abort()
            await asyncio.wait_for(session.wait_closed(), 2)
            assert (told, session.alive) == (["127.0.0.1 connection closed by the peer"], False)
            await session.quit()

    uvloop.run(scenario())


def test_cancelled_is_hung_up() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        sending = asyncio.create_task(session.send(mail()))
        await asyncio.wait_for(server.asked.wait(), 2)
        with pytest.raises(RuntimeError):
            await session.send(mail())
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not session.alive
        await asyncio.wait_for(server.gone.wait(), 2)

    play({"RCPT": SILENCE}, story)


def test_quit_does_not_wait_for_ever() -> None:
    async def story(server: Peer, session: SmarthostSession) -> None:
        await asyncio.wait_for(session.quit(), 2)
        assert not session.alive

    play({"QUIT": SILENCE}, story, limits=timeouts(quit=0.2))


def test_what_we_lean_on_in_aiosmtplib() -> None:
    """Private names, read in 5.1.3: when this fails, read delivery/smarthost.py beside the new source."""
    assert version("aiosmtplib") == "5.1.3"
    assert "self._on_connection_lost" in inspect.getsource(SMTP._create_connection)
    assert inspect.iscoroutinefunction(SMTPProtocol._drain_helper)
    assert "self._buffer = bytearray()" in inspect.getsource(SMTPProtocol.__init__)
    heard = inspect.getsource(SMTPProtocol.data_received)
    assert "not self._response_pending or self._response_waiter.done()" in heard, "dropped unless somebody waits"
