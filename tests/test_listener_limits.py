"""What a peer may make us hold or wait for: each limit, its reply and its count."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.listening import Client, House, RecordingQueue, listening, run, settings


def test_connections_per_address() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_connections_per_address=2)) as house:
            first, second = await house.connect(), await house.connect()
            await first.hello()
            await second.hello()
            assert await (await house.connect()).rest() == "421 4.7.0 too many connections from your address\r\n"
            await (await house.connect("127.0.0.2")).hello()  # another address is not concerned
            assert await first.ask("QUIT") == "221 2.0.0 bye"
            await first.rest()
            await (await house.connect()).hello()
            assert house.metric("total_connections_denied") == 1
            assert house.metric("connection_count") == 3

    run(scenario())


def test_connections_in_all() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_connections=1)) as house:
            await (await house.connect()).hello()
            assert (await (await house.connect("127.0.0.2")).rest()).startswith("421 4.7.0 too many connections,")

    run(scenario())


def test_errors() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_errors=3)) as house:
            client = await house.connect()
            await client.hello()
            await client.send("FOO\r\n" * 5)
            text = await client.rest()
            assert text.splitlines() == ["500 5.5.1 command not recognized"] * 3 + ["421 4.7.0 too many errors"]

    run(scenario())


def test_a_message_that_gets_through_clears_the_errors() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_errors=3)) as house:
            client = await house.connect()
            await client.hello()
            for _ in range(3):
                await client.ask("FOO")
                await client.ask("FOO")
                assert (await client.transaction()).startswith("250 ")

    run(scenario())


def test_commands() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_commands=10)) as house:
            client = await house.connect()
            await client.hello()
            await client.send("NOOP\r\n" * 20)
            assert (await client.rest()).splitlines()[8:] == [
                "250 2.0.0 ok",
                "421 4.7.0 too many commands in one session, connect again",
            ]

    run(scenario())


def test_the_limit_of_commands_lets_a_transaction_end() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_commands=10)) as house:
            client = await house.connect()
            await client.hello()
            for _ in range(7):
                await client.ask("NOOP")
            assert (await client.transaction()).startswith("250 ")
            assert (await client.reply()).startswith("421 4.7.0 too many commands")

    run(scenario())


def test_recipients() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_recipients=2)) as house:
            client = await house.connect()
            await client.hello()
            await client.ask("MAIL FROM:<a@b.example>")
            answers = [await client.ask(f"RCPT TO:<r{n}@c.example>") for n in range(3)]
            assert answers == ["250 2.1.5 ok"] * 2 + ["452 4.5.3 too many recipients in one transaction"]
            await client.ask("DATA")
            assert (await client.ask("From: a@b.example\r\n\r\nx\r\n.")).startswith("250 ")
            assert len(house.queue.messages[0].envelope.recipients) == 2

    run(scenario())


def test_hops() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_hops=3)) as house:
            client = await house.connect()
            await client.hello()
            assert (await client.transaction("Received: x\r\n" * 3 + "\r\n")).startswith("554 5.4.6 too many hops")
            assert (await client.transaction("Received: x\r\n" * 2 + "\r\n")).startswith("250 ")

    run(scenario())


@pytest.mark.parametrize("said", [b"", b"EHLO x\r\n", b"NOO"])
def test_idle(said: bytes) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=0.2)) as house:
            client = await house.connect()
            await client.send(said)
            assert (await client.rest()).splitlines()[-1] == "421 4.4.2 idle for too long"

    run(scenario())


def test_a_command_that_drips_is_idle() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=0.3)) as house:
            client = await house.connect()
            answer = asyncio.ensure_future(client.farewell())
            while not answer.done():
                await client.send(b"N")
                await asyncio.wait([answer], timeout=0.05)
            assert answer.result().startswith("421 4.4.2")

    run(scenario())


def test_a_commit_that_takes_long_is_not_the_clients_idleness() -> None:
    async def scenario() -> None:
        queue = RecordingQueue(gate=asyncio.Event())
        async with listening(queue, settings(idle_seconds=0.2)) as house:
            client = await house.connect()
            await client.hello()
            answer = asyncio.ensure_future(client.transaction())
            await queue.begun.wait()
            await asyncio.wait([answer], timeout=0.6)
            assert not answer.done()
            assert queue.gate is not None
            queue.gate.set()
            assert (await answer).startswith("250 ")

    run(scenario())


def test_a_client_that_does_not_read_is_cut() -> None:
    """Replies pile up only until the socket is full; then the session waits, and is idle."""

    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=0.3, max_commands=10**7, max_errors=10**7)) as house:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", house.port))
            with pytest.raises(ConnectionError):
                while True:
                    await loop.sock_sendall(raw, b"EHLO x\r\n" * 1000)
            raw.close()
            await house.emptied()

    run(scenario())


def test_metrics_count_a_session() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            await client.transaction()
            await client.ask("RCPT TO:<x@y.example>")
            assert house.metric("connection_count") == 1
            assert house.metric("total_connection_count") == 1
            assert house.metric("total_messages_received") == 1
            assert house.metric("smtp_server_rejections", reason="sequence") == 1
            for name in ("read_data", "process_data", "transaction"):
                assert house.metric(f"smtpsrv_{name}_duration_count") == 1

    run(scenario())


async def under_way(house: House) -> Client:
    client = await house.connect()
    await client.hello()
    await client.ask("MAIL FROM:<a@b.example>")
    await client.ask("RCPT TO:<c@d.example>")
    return client


def test_drain_ends_idle_sessions_and_lets_busy_ones_finish() -> None:
    async def scenario() -> None:
        async with listening() as house:
            idle, busy = await house.connect(), await under_way(house)
            await idle.hello()
            drain = asyncio.ensure_future(house.relayd.drain())
            assert await idle.rest() == "421 4.3.2 shutting down, connect again\r\n"
            with pytest.raises(ConnectionError):
                await house.connect()
            await busy.ask("DATA")
            assert (await busy.ask("From: a@b.example\r\n\r\nx\r\n.")).startswith("250 2.0.0 queued")
            assert await busy.rest() == "421 4.3.2 shutting down, connect again\r\n"
            await drain
            assert len(house.queue.messages) == 1

    run(scenario())


def test_drain_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(drain_seconds=0.2)) as house:
            busy = await under_way(house)
            await house.relayd.drain()
            assert await busy.rest() == "421 4.3.2 shutting down, connect again\r\n"

    run(scenario())


def test_drain_waits_for_the_commit_of_a_client_that_has_gone() -> None:
    async def scenario() -> None:
        queue = RecordingQueue(gate=asyncio.Event())
        async with listening(queue) as house:
            client = await under_way(house)
            await client.ask("DATA")
            await client.send("From: a@b.example\r\n\r\nx\r\n.\r\n")
            await queue.begun.wait()
            client.reset()
            await house.emptied()
            drain = asyncio.ensure_future(house.relayd.drain())
            await asyncio.wait([drain], timeout=0.1)
            assert not drain.done()
            assert queue.gate is not None
            queue.gate.set()
            await drain
            assert len(queue.messages) == 1

    run(scenario())
