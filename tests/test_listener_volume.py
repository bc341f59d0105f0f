"""What all sessions hold together is bounded, and what was held is always given back."""

from __future__ import annotations

import asyncio

import pytest

from config.settings import RelaydSettings
from mailqueue.content import MAX_CONTENT
from mailqueue.errors import QueueDown
from tests.listening import HEADER, Client, House, RecordingQueue, listening, run, settings
from tests.queue_kit import eventually

NO_ROOM = "452 4.3.1 too much mail is coming in at once, try again later"
LIMITS = settings(max_message_bytes=100_000, max_data_bytes=150_000, idle_seconds=5)


async def sending(house: House, size: int) -> Client:
    """A client in the middle of its content; returns when the process holds all but the last octets of it."""
    client = await house.connect()
    await client.hello()
    for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
        await client.ask(command)
    before = house.relayd._volume.total
    await client.send(HEADER + b"x" * (size - len(HEADER)))

    async def held() -> bool:
        return house.relayd._volume.total >= before + size - 4

    await eventually(held, 5)
    return client


async def given_back(house: House) -> None:
    async def nothing_held() -> bool:
        return house.relayd._volume.total == 0

    await eventually(nothing_held, 5)


def test_who_would_exceed_it_is_refused_and_the_others_go_on() -> None:
    async def scenario() -> None:
        async with listening(settings_=LIMITS) as house:
            first, second = await sending(house, 90_000), await house.connect()
            await second.hello()
            assert await second.transaction(b"y" * 80_000 + b"\r\n") == NO_ROOM
            assert house.metric("smtp_server_rejections", reason="volume") == 1
            await first.send("\r\n.\r\n")
            assert (await first.reply()).startswith("250 ")
            await given_back(house)
            assert (await second.transaction(b"y" * 80_000 + b"\r\n")).startswith("250 "), "the session is whole"
            assert await second.transaction(b"y" * 300_000 + b"\r\n") == "552 5.3.4 message too big"
            await given_back(house)

    run(scenario())


def test_a_full_process_refuses_before_the_content() -> None:
    async def scenario() -> None:
        queue = RecordingQueue(gate=asyncio.Event())
        async with listening(queue, settings(max_message_bytes=1024, max_data_bytes=1024)) as house:
            first, second = await house.connect(), await house.connect()
            for client in (first, second):
                await client.hello()
            answer = asyncio.ensure_future(first.transaction(b"x" * (1022 - len(HEADER)) + b"\r\n"))
            await queue.begun.wait()
            for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"):
                assert (await second.ask(command)).startswith("250 ")
            assert await second.ask("DATA") == NO_ROOM
            assert queue.gate is not None
            queue.gate.set()
            assert (await answer).startswith("250 ")
            assert (await second.ask("DATA")).startswith("354 "), "the transaction stands: DATA may be repeated"
            assert (await second.ask("From: a@b.example\r\n\r\nx\r\n.")).startswith("250 ")
            await given_back(house)

    run(scenario())


def test_what_waits_for_the_queue_counts_though_its_client_has_gone() -> None:
    async def scenario() -> None:
        queue = RecordingQueue(gate=asyncio.Event())
        async with listening(queue, LIMITS) as house:
            client = await sending(house, 90_000)
            await client.send("\r\n.\r\n")
            await queue.begun.wait()
            client.reset()
            await house.emptied()
            assert house.relayd._volume.total == 90_002
            assert queue.gate is not None
            queue.gate.set()
            await given_back(house)

    run(scenario())


@pytest.mark.parametrize("how", ["close", "reset", "idle", "refused", "down"])
def test_it_is_given_back_however_the_transaction_ends(how: str) -> None:
    async def scenario() -> None:
        queue = RecordingQueue(failure=QueueDown("no answer") if how == "down" else None)
        limits = settings(max_message_bytes=100_000, max_data_bytes=150_000, idle_seconds=0.3)
        async with listening(queue, limits) as house:
            client = await sending(house, 90_000)
            if how == "close":
                await client.close()
            elif how == "reset":
                client.reset()
            elif how == "idle":
                assert (await client.rest()).startswith("421 4.4.2")
            elif how == "refused":
                await client.send("\r\nX-Tambo-Class: \xe9\r\n.\r\n")
                await client.reply()
            else:
                await client.send("\r\n.\r\n")
                assert (await client.reply()).startswith("451 ")
            await given_back(house)

    run(scenario())


def test_the_bounds_of_the_settings() -> None:
    largest = {"max_message_bytes": 134_217_728}
    assert RelaydSettings.model_validate(largest).max_message_bytes < MAX_CONTENT
    with pytest.raises(ValueError, match="less than or equal"):
        RelaydSettings.model_validate({"max_message_bytes": 134_217_729})
    with pytest.raises(ValueError, match="would never fit"):
        RelaydSettings.model_validate({"max_message_bytes": 2048, "max_data_bytes": 2047})
