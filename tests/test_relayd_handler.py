"""From the end of data to the queue's verdict: what is put, what is said."""

from __future__ import annotations

import asyncio

import pytest

from mailqueue.errors import QueueDown
from tests.listening import Kept, RecordingQueue, listening, run, settings


def test_the_envelope() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            content = "X-Tambo-Campaign: c1\r\nX-Tambo-Idempotency-Key: k1\r\nX-Tambo-Class: transactional\r\nSubject: x\r\n\r\n"
            reply = await client.transaction(content)
            (message,) = house.queue.messages
            envelope = message.envelope
            assert reply == f"250 2.0.0 queued as {envelope.id}"
            assert (envelope.account, envelope.reverse_path, envelope.recipients) == (
                "app",
                "a@b.example",
                ("b@c.example",),
            )
            assert (envelope.campaign, envelope.class_, envelope.unknown, envelope.pool) == (
                "c1",
                "transactional",
                "retry",
                "default",
            )
            assert envelope.expires_at - envelope.received_at == 432_000_000
            assert envelope.notify_after - envelope.received_at == 14_400_000
            assert (envelope.body, house.queue.keys, house.queue.clients) == ("7BIT", ["k1"], ["127.0.0.1"])
            assert house.queue.content == b"Subject: x\r\n\r\n"
            assert message.content.startswith(
                b"Received: from client.example ([127.0.0.1])\r\n\tby relay.test with ESMTP id "
            )

    run(scenario())


def test_eight_bit_content_says_so_whatever_body_said() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            await client.transaction("Subject: x\r\n\r\nma\xf1ana\r\n")
            assert house.queue.messages[0].envelope.body == "8BITMIME"

    run(scenario())


@pytest.mark.parametrize(
    ("queue", "reply"),
    [
        (RecordingQueue(verdict="full"), "452 4.3.1 queue full, try again later"),
        (RecordingQueue(verdict="duplicate"), "250 2.0.0 queued as firstid (duplicate, already queued)"),
        (
            RecordingQueue(refusal=Kept("over_quota", "x", left=3)),
            "550 5.7.1 quota exhausted: 3 recipients left, message has 1",
        ),
        (
            RecordingQueue(refusal=Kept("over_quota", "x", why="quota valid until 2026-12-31")),
            "550 5.7.1 quota valid until 2026-12-31",
        ),
        (
            RecordingQueue(refusal=Kept("over_rate", "x", limit="1000/hour", until=1, clock="14:00:00 -0500")),
            "451 4.7.1 rate limit of 1000/hour reached, try again at 14:00:00 -0500",
        ),
        (
            RecordingQueue(refusal=Kept("over_rate", "x", limit="50/minute")),
            "550 5.7.1 message has 1 recipients, rate limit is 50/minute: send it in parts",
        ),
        (RecordingQueue(failure=QueueDown("no answer")), "451 4.3.0 queue not available, try again"),
        (RecordingQueue(failure=RuntimeError("secret detail")), "451 4.3.0 queue not available, try again"),
    ],
)
def test_verdicts(queue: RecordingQueue, reply: str) -> None:
    async def scenario() -> None:
        async with listening(queue) as house:
            client = await house.connect()
            await client.hello()
            assert await client.transaction() == reply
            queue.failure, queue.refusal, queue.verdict = None, None, "queued"
            assert (await client.transaction()).startswith("250 2.0.0 queued")  # the session is whole

    run(scenario())


def test_a_queue_that_does_not_accept_refuses_before_the_content() -> None:
    async def scenario() -> None:
        async with listening(RecordingQueue(accepting=False)) as house:
            client = await house.connect()
            await client.hello()
            assert await client.ask("MAIL FROM:<a@b.example>") == "452 4.3.1 cannot take mail now, try again later"
            assert house.metric("smtp_server_rejections", reason="queue_full") == 1

    run(scenario())


def test_a_fault_of_ours_is_transient_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("redis down secret")

    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            with monkeypatch.context() as patch:
                patch.setattr("relayd.trace.received", broken)
                assert await client.transaction() == "451 4.3.0 temporary failure, try again"
            assert (await client.transaction()).startswith("250 ")  # not "nested MAIL"

    run(scenario())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_hangs_up_does_not_cancel_the_commit(how: str) -> None:
    async def scenario() -> None:
        queue = RecordingQueue(gate=asyncio.Event())
        async with listening(queue) as house:
            client = await house.connect()
            await client.hello()
            for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
                await client.ask(command)
            await client.send("From: a@b.example\r\n\r\nx\r\n.\r\n")
            await queue.begun.wait()
            await client.close() if how == "close" else client.reset()
            assert queue.gate is not None
            if how == "reset":
                await house.emptied()
            queue.gate.set()
            await queue.kept.wait()

    run(scenario())


def test_a_header_that_cannot_count_refuses_the_message_and_is_told() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            reply = await client.transaction("X-Tambo-Class: emergency\r\n\r\n")
            assert reply == "550 5.6.0 X-Tambo-Class: class emergency is not granted to this account"
            (event,) = house.queue.events
            assert (event.kind, event.status, event.account, event.client) == ("rejected", "5.6.0", "app", "127.0.0.1")
            assert event.diagnostic_code == f"smtp; {reply}"

    run(scenario())


def test_rejected_events_are_bounded_per_session() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_errors=1000)) as house:
            client = await house.connect()
            await client.hello()
            await client.send("MAIL FROM:<a@b.example>\r\n" + "RCPT TO:<x>\r\n" * 150 + "QUIT\r\n")
            assert (await client.rest()).count("553 5.1.3") == 150
            assert len(house.queue.events) == 100

    run(scenario())


def test_an_empty_path_that_is_refused_is_no_word_about_those_accepted() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "RCPT TO:<>"):
                await client.ask(command)
            assert [(event.kind, event.recipient) for event in house.queue.events] == [("rejected", "")]

    run(scenario())


def test_the_reverse_path_lies_within_the_senders() -> None:
    async def scenario() -> None:
        base = settings()
        app = base.accounts[1].model_copy(update={"senders": ("agency.pe", "a@b.example")})
        async with listening(settings_=base.model_copy(update={"accounts": (app,)})) as house:
            client = await house.connect()
            await client.hello()
            assert await client.ask("MAIL FROM:<x@b.example>") == "550 5.7.1 sender not allowed for account app"
            for path in ("X@AGENCY.PE", "A@b.example", ""):
                assert (await client.ask(f"MAIL FROM:<{path}>")).startswith("250 ")
                assert (await client.ask("RSET")).startswith("250 ")

    run(scenario())
