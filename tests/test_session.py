"""Sessions over real sockets: transactions, time-outs, losses at each phase, idle drops, quit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import uvloop
from pydantic import ValidationError

from config.settings import TimeoutSettings
from delivery.connect import connect
from delivery.reply import Phase
from delivery.session import BLOCK, Session, SessionFailed
from delivery.transaction import Transaction, TransactionResult
from tests.smtp_peer import DROP, NO_PIPELINING, SILENCE, Peer, Serve, peer, peer_that

CONTENT = b"Subject: x\r\n\r\n.dot\r\nhello\r\n"


def timeouts(**seconds: float) -> TimeoutSettings:
    """Small ones, past the validation that keeps an operator from setting them."""
    values: dict[str, Any] = {**dict.fromkeys(TimeoutSettings.model_fields, 5.0), **seconds}
    return TimeoutSettings.model_construct(None, **values)


def mail(*recipients: str, content: bytes = CONTENT, **more: Any) -> Transaction:
    return Transaction("a@out.test", recipients or ("b@in.test",), content, **more)


@contextlib.asynccontextmanager
async def session_with(server: Peer, **options: Any) -> AsyncIterator[Session]:
    options = {"source": None, "hostname": "out.test", "timeouts": timeouts(), **options}
    session = await Session.open("mx.test", "127.0.0.1", server.port, **options)
    try:
        yield session
    finally:
        session.abort()
        await session.wait_closed()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    uvloop.run(scenario)


def seen(result: TransactionResult) -> list[tuple[int, str]]:
    return [(r.reply.code if r.reply else 0, r.phase.value) for r in result.recipients]


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("script", [{}, NO_PIPELINING])
def test_several_transactions_on_one_session(loop: Any, script: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with peer({**script, "RCPT": ["250 ok", "550 5.1.1 no", "250 ok"]}) as server:
            async with session_with(server) as session:
                first = await session.send(mail("b@in.test", "c@in.test"))
                second = await session.send(mail("d@in.test"))
                assert (session.alive, session.sent) == (True, 2)
                assert repr(session) == "<Session mx.test[127.0.0.1] from None, idle, 2 sent, clear>"
                await session.quit()
                assert not session.alive
            assert seen(first) == [(250, "end-of-data"), (550, "rcpt")]
            assert seen(second) == [(250, "end-of-data")]
            assert server.messages == [b"Subject: x\r\n\r\n..dot\r\nhello\r\n"] * 2
            mails = ["MAIL", "RCPT", "RCPT", "DATA", ".", "MAIL", "RCPT", "DATA", "."]
            assert server.verbs() == ["EHLO", *mails, "QUIT"]

    loop(scenario())


def test_commands_of_a_transaction_are_one_write_when_pipelined() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.read(1000)
        writer.write(b"250-hi\r\n250 PIPELINING\r\n")
        chunks.append(await reader.read(1000))
        writer.write(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
        chunks.append(await reader.read(1000))
        writer.write(b"250 ok\r\n")
        await reader.read(1000)
        writer.close()

    async def scenario() -> None:
        async with peer_that(serve) as server, session_with(server) as session:
            await session.send(mail("b@in.test", "c@in.test"))

    chunks: list[bytes] = []
    run(scenario())
    assert chunks[0].count(b"\r\n") == 4
    assert chunks[1].endswith(b"hello\r\n.\r\n")


def test_refused_everywhere_leaves_the_session_usable_after_a_reset() -> None:
    async def scenario() -> None:
        script = {"RCPT": ["550 no", "250 ok"], "DATA": ["554 no valid recipients", "354 go"]}
        async with peer(script) as server, session_with(server) as session:
            assert seen(await session.send(mail())) == [(550, "rcpt")]
            assert seen(await session.send(mail())) == [(250, "end-of-data")]
            assert server.verbs() == ["EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA", "."]

    run(scenario())


def test_lone_dot_when_354_comes_for_nobody() -> None:
    async def scenario() -> None:
        script = {"RCPT": ["550 no", "250 ok"], ".": ["554 nobody", "250 ok"]}
        async with peer(script) as server, session_with(server) as session:
            assert seen(await session.send(mail())) == [(550, "rcpt")]
            assert server.messages == [b""]
            assert seen(await session.send(mail())) == [(250, "end-of-data")]

    run(scenario())


# -- opening -----------------------------------------------------------------------------------------------------------


async def failure_of(server: Peer, **options: Any) -> SessionFailed:
    with pytest.raises(SessionFailed) as caught:
        async with session_with(server, **options):
            pass
    return caught.value


@pytest.mark.parametrize(
    ("script", "kind", "phase"),
    [
        ({"greeting": "554 no service"}, "reply", Phase.GREETING),
        ({"greeting": "421 too busy"}, "reply", Phase.GREETING),
        ({"greeting": DROP}, "lost", Phase.GREETING),
        ({"greeting": SILENCE}, "timeout", Phase.GREETING),
        ({"greeting": b"SSH-2.0-OpenSSH\r\n"}, "lost", Phase.GREETING),
        ({"EHLO": "451 later"}, "reply", Phase.EHLO),
        ({"EHLO": "502 what?", "HELO": "550 no"}, "reply", Phase.EHLO),
        ({"EHLO": DROP}, "lost", Phase.EHLO),
        ({"EHLO": SILENCE}, "timeout", Phase.EHLO),
    ],
)
def test_what_keeps_a_session_from_opening(script: dict[str, Any], kind: str, phase: Phase) -> None:
    async def scenario() -> None:
        async with peer(script) as server:
            failed = await failure_of(server, timeouts=timeouts(greeting=0.1, ehlo=0.1))
            assert (failed.kind, failed.phase, failed.reply is not None) == (kind, phase, kind == "reply")

    run(scenario())


def test_helo_when_ehlo_is_refused() -> None:
    async def scenario() -> None:
        async with peer({"EHLO": "500 what?"}) as server, session_with(server) as session:
            assert seen(await session.send(mail())) == [(250, "end-of-data")]
            assert server.heard[1:3] == ["HELO out.test", "MAIL FROM:<a@out.test>"]

    run(scenario())


def test_a_greeting_that_drips_gains_nothing() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"220-still here\r\n")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.02)
        writer.close()

    async def scenario() -> None:
        async with peer_that(drip) as server:
            failed = await failure_of(server, timeouts=timeouts(greeting=0.2))
        assert (failed.kind, failed.phase) == ("timeout", Phase.GREETING)

    run(scenario())


def test_connection_refused_and_addresses_that_are_not_ours() -> None:
    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            server = Peer({}, None)
            server.port = unused.getsockname()[1]
            assert (await failure_of(server)).kind == "refused"
        assert (await failure_of(server, source="192.0.2.1")).kind == "address_gone"
        assert (await failure_of(server, source="::1")).kind == "refused"

    run(scenario())


def test_a_source_that_has_no_port_left_is_not_gone() -> None:
    """The range of one port: the second connection from the same source to the same next hop finds none."""

    async def scenario() -> None:
        async with peer() as server:
            with (
                await connect("127.0.0.1", server.port, "127.0.7.7", 5) as first,
                pytest.MonkeyPatch.context() as patch,
                pytest.raises(SessionFailed) as caught,
            ):
                port = first.getsockname()[1]
                patch.setattr("delivery.connect._bound", lambda address, source: narrow(port))
                await connect("127.0.0.1", server.port, "127.0.7.7", 5)
            assert (caught.value.kind, caught.value.phase) == ("address_in_use", Phase.CONNECT)

    def narrow(port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_IP, 51, struct.pack("I", port << 16 | port))  # IP_LOCAL_PORT_RANGE, Linux ≥ 6.3
        except OSError:
            made.close()
            pytest.skip("this kernel cannot narrow the port range of one socket")
        made.setsockopt(socket.SOL_IP, 24, 1)
        made.bind(("127.0.7.7", 0))
        return made

    run(scenario())


def test_one_source_reaches_two_next_hops_from_one_port() -> None:
    """IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect, for the pair of addresses."""

    async def scenario() -> None:
        async with peer() as server:
            made = await connect("127.0.0.1", server.port, "127.0.1.5", 5)
            assert made.getsockopt(socket.SOL_IP, 24) == 1
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert made.getsockname()[0] == "127.0.1.5"
            made.close()
            async with session_with(server, source="127.0.1.6"):
                assert server.peers[-1][0] == "127.0.1.6"

    run(scenario())


def test_connect_times_out() -> None:
    async def scenario() -> None:
        with socket.socket() as full:  # a listener whose queue is full does not answer
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            fillers = [socket.socket() for _ in range(3)]
            try:
                for filler in fillers:
                    filler.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        filler.connect(address)
                with pytest.raises(SessionFailed) as caught:
                    await connect("127.0.0.1", address[1], None, 0.1)
                assert caught.value.kind == "timeout"
            finally:
                for filler in fillers:
                    filler.close()

    run(scenario())


# -- transactions that fail --------------------------------------------------------------------------------------------

PHASES = {"MAIL": "mail", "RCPT": "rcpt", "DATA": "data", ".": "end-of-data"}


@pytest.mark.parametrize("base", [{}, NO_PIPELINING])
@pytest.mark.parametrize("verb", PHASES)
@pytest.mark.parametrize("action", [DROP, SILENCE, "421 4.3.2 going down", b"?\r\n"])
def test_trouble_at_each_phase(base: dict[str, Any], verb: str, action: Any) -> None:
    async def scenario() -> None:
        short = timeouts(mail=0.1, rcpt=0.1, data=0.1, end_of_data=0.1)
        async with peer({**base, verb: action}) as server, session_with(server, timeouts=short) as session:
            result = await session.send(mail("b@in.test", "c@in.test"))
            code = 421 if isinstance(action, str) else 0
            expected = [(code, PHASES[verb])] * 2
            if action is SILENCE and not base and verb in ("MAIL", "RCPT"):
                expected = [(0, "rcpt")] * 2  # the next command's 354 comes as a recipient's answer: out of step
            assert seen(result) == expected
            assert [r.unknown for r in result.recipients] == [verb == "." and code == 0] * 2
            assert all(bool(r.lost) == (code == 0) for r in result.recipients)
            assert not session.alive
            again = await session.send(mail())
            assert (again.recipients[0].phase, again.recipients[0].unknown) == (Phase.MAIL, False)
            await session.quit()  # at once: it is over

    run(scenario())


@pytest.mark.parametrize("verb", PHASES)
def test_the_timeout_of_the_phase_applies(verb: str) -> None:
    async def scenario() -> None:
        name = {".": "end_of_data"}.get(verb, verb.lower())
        short = timeouts(**{name: 0.05})
        async with peer({**NO_PIPELINING, verb: SILENCE}) as server, session_with(server, timeouts=short) as session:
            result = await session.send(mail())
            assert result.recipients[0].lost == "no answer within 0.05 s"
            assert result.recipients[0].phase == PHASES[verb]

    run(scenario())


def test_the_end_of_data_gets_five_minutes_at_least() -> None:
    with pytest.raises(ValidationError):
        TimeoutSettings(end_of_data=299)
    assert TimeoutSettings().end_of_data >= 300


def test_partial_refusals_keep_their_order() -> None:
    async def scenario() -> None:
        codes = [250, 550, 452, 250, 553]
        async with peer({"RCPT": [f"{code} x" for code in codes]}) as server, session_with(server) as session:
            result = await session.send(mail(*(f"r{i}@in.test" for i in range(5))))
            assert seen(result) == [(code, "end-of-data" if code == 250 else "rcpt") for code in codes]

    run(scenario())


def test_421_after_the_last_message_closes_the_session() -> None:
    async def scenario() -> None:
        async with peer({".": "250 ok\r\n421 that was enough"}) as server, session_with(server) as session:
            assert seen(await session.send(mail())) == [(250, "end-of-data")]
            assert (session.alive, session.closing) == (False, True)

    run(scenario())


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_before_mail_says_no_and_nothing_is_written() -> None:
    async def scenario() -> None:
        async with peer() as server, session_with(server) as session:
            result = await session.send(mail(before_mail=lambda: False))
            assert result.aborted
            assert (session.alive, session.sent) == (True, 0)
            assert not (await session.send(mail(before_mail=lambda: True))).aborted
            assert server.verbs().count("MAIL") == 1

    run(scenario())


SIZES = pytest.mark.parametrize("content", [CONTENT, b"x" * 70 + b"\r\n", b"0123456789abcd\r\n" * 40_000])


@SIZES
def test_before_dot_says_no_and_nothing_is_delivered(content: bytes) -> None:
    async def no() -> bool:
        return False

    async def scenario() -> None:
        async with peer() as server, session_with(server) as session:
            result = await session.send(mail(content=content, before_dot=no))
            (recipient,) = result.recipients
            assert (result.aborted, recipient.unknown, recipient.phase) == (True, False, Phase.CONTENT)
            assert not session.alive
            await server.gone.wait()
            assert server.messages == []

    run(scenario())


@SIZES
def test_before_dot_says_yes(content: bytes) -> None:
    async def yes() -> bool:
        moments.append(len(server_box[0].messages))
        return True

    async def scenario() -> None:
        async with peer() as server, session_with(server) as session:
            server_box.append(server)
            assert seen(await session.send(mail(content=content, before_dot=yes))) == [(250, "end-of-data")]
            assert server.messages[0].replace(b"\r\n..", b"\r\n.") == content

    moments: list[int] = []
    server_box: list[Peer] = []
    run(scenario())
    assert moments == [0]


def test_a_peer_that_leaves_during_before_dot_never_gets_the_dot() -> None:
    async def scenario() -> None:
        async with peer({"DATA": ["354 go"]}) as server, session_with(server) as session:

            async def leave() -> bool:
                server.writers[0].transport.abort()
                await session.wait_closed()
                return True

            (recipient,) = (await session.send(mail(before_dot=leave))).recipients
            assert (recipient.unknown, recipient.phase, bool(recipient.lost)) == (False, Phase.CONTENT, True)

    run(scenario())


def test_an_error_in_before_dot_closes_the_session() -> None:
    async def fail() -> bool:
        raise LookupError("queue")

    async def scenario() -> None:
        async with peer() as server, session_with(server) as session:
            with pytest.raises(LookupError):
                await session.send(mail(before_dot=fail))
            assert not session.alive
            await server.gone.wait()
            assert server.messages == []

    run(scenario())


def test_cancellation_closes_the_session() -> None:
    async def scenario() -> None:
        async with peer({".": SILENCE}) as server, session_with(server) as session:
            sending = asyncio.create_task(session.send(mail()))
            await server.asked.wait()
            with pytest.raises(RuntimeError):
                await session.send(mail())
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert not session.alive
            await server.gone.wait()

    run(scenario())


# -- large contents ----------------------------------------------------------------------------------------------------


def stuck(said: bytes, after: int) -> Serve:
    """A peer that answers up to 354, reads ``after`` bytes of content, then says ``said`` and reads no more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (b"220 hi\r\n", b"250-hi\r\n250 PIPELINING\r\n", b"250 ok\r\n250 ok\r\n354 go\r\n"):
            writer.write(reply)
            await reader.read(1000)
        await reader.readexactly(after)
        writer.write(said)
        await asyncio.Event().wait()

    return serve


@pytest.mark.parametrize(
    ("said", "code", "lost"),
    [
        (b"", 0, "no answer within 0.2 s"),
        (b"552 5.3.4 too big\r\n", 552, ""),
        (b"250 what?\r\n", 0, "reply out of turn: 250 what?"),
    ],
)
def test_a_peer_that_stops_reading_or_speaks_into_the_content(said: bytes, code: int, lost: str) -> None:
    async def scenario() -> None:
        short = timeouts(content=0.2)
        async with peer_that(stuck(said, 20_000)) as server, session_with(server, timeouts=short) as session:
            (recipient,) = (await session.send(mail(content=b"x" * 70 + b"\r\n" * 16_000_000))).recipients
            assert (recipient.reply.code if recipient.reply else 0, recipient.lost) == (code, lost)
            assert (recipient.phase, recipient.unknown) == (Phase.CONTENT, False)
            assert not session.alive

    run(scenario())


@pytest.mark.parametrize("size", [BLOCK - 2, BLOCK, BLOCK + 2, 5 * BLOCK + 18])
def test_contents_around_the_block_size_arrive_as_they_are(size: int) -> None:
    async def scenario() -> None:
        content = (b"." * 62 + b"\r\n") * (size // 64 + 1)
        content = content[: size - 2] + b"\r\n"
        async with peer() as server, session_with(server) as session:
            await session.send(mail(content=content))
            await session.send(mail(content=content))
            lines = [line.removeprefix(b".") for line in server.messages[1].split(b"\r\n")]
            assert b"\r\n".join(lines) == content

    run(scenario())


# -- idle and quit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"421 idle too long\r\n", b"250 what?\r\n"])
def test_a_peer_that_leaves_while_idle_is_noticed(said: bytes) -> None:
    async def scenario() -> None:
        told: asyncio.Queue[str] = asyncio.Queue()

        def tell(_: Session, text: str) -> None:
            told.put_nowait(text)

        async with peer() as server, session_with(server, on_lost=tell) as session:
            await session.send(mail())
            if said:
                server.writers[0].write(said)
            else:
                server.writers[0].close()
            text = await told.get()
            assert not session.alive
            assert text == session.failure
            assert (said.split(b"\r")[0].decode() in text) and text
            await session.wait_closed()
            assert told.empty()

    run(scenario())


def test_our_own_end_is_not_told() -> None:
    async def scenario() -> None:
        told: list[str] = []
        async with peer() as server:
            for end in ("abort", "quit"):
                async with session_with(server, on_lost=lambda who, text: told.append(text)) as session:
                    if end == "quit":
                        await session.quit()
                    session.abort()
                    await session.wait_closed()
        assert told == []

    run(scenario())


def test_quit_waits_for_the_peer() -> None:
    async def scenario() -> None:
        async with peer({"QUIT": SILENCE}) as server, session_with(server) as session:
            quitting = asyncio.create_task(session.quit())
            await server.asked.wait()
            assert not quitting.done()
            server.writers[0].write(b"221 bye\r\n")
            await quitting

    run(scenario())


@pytest.mark.parametrize("said", [DROP, b"?\r\n", "421 x", "500 what?"])
def test_quit_ends_whatever_the_peer_says(said: Any) -> None:
    async def scenario() -> None:
        async with peer({"QUIT": said}) as server, session_with(server) as session:
            await session.quit()
            await session.wait_closed()
            assert server.verbs() == ["EHLO", "QUIT"]

    run(scenario())


def test_quit_gives_up_after_its_time() -> None:
    async def scenario() -> None:
        async with peer({"QUIT": SILENCE}) as server, session_with(server, timeouts=timeouts(quit=0.05)) as session:
            await session.quit()
            assert not session.alive

    run(scenario())
