"""Every verb in every state: one reply, with an enhanced code of its class, and in the order of the commands."""

from __future__ import annotations

import asyncio
import re

import pytest

from relayd import replies
from relayd.listener.session import COMMAND_OCTETS_OF
from relayd.listener.submission import SubmissionSession
from tests.conftest import Certificate
from tests.listening import Client, listening, run, settings

STATES = {
    "connected": [],
    "helo": ["HELO c.test"],
    "ehlo": ["EHLO c.test"],
    "mail": ["EHLO c.test", "MAIL FROM:<a@b.test>"],
    "rcpt": ["EHLO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>"],
    "refused": ["EHLO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<bad@>"],
    "chunks": ["EHLO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "BDAT 0"],
    "after": ["EHLO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "BDAT 0 LAST"],
}
ARGUMENTS = ("", "x", "FROM:<a@b.test>", "TO:<c@d.test>", "PLAIN", "0 LAST", "c.test")
REPLY = re.compile(r"([245])\d\d \1\.[0-7]\.\d{1,2} \S.*")
UNCODED = re.compile(r"354 \S.*|334 .*|220 relay\.test ESMTP|250[- ](?!\d\.\d)\S.*")


def is_well_formed(reply: str) -> bool:
    """`code enhanced text`, but for the greeting, the answers to EHLO and HELO, 334 and 354 (RFC 2034 §4)."""
    lines = reply.split("\n")
    return all(REPLY.fullmatch(line) or UNCODED.fullmatch(line) for line in lines) and all(len(x) <= 510 for x in lines)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_every_verb_in_every_state(state: str, tls: bool, certificate: Certificate) -> None:
    files = (str(certificate.certificate), str(certificate.key)) if tls else None

    async def one(client: Client, command: str) -> None:
        assert is_well_formed(await client.reply())
        for before in STATES[state]:
            assert is_well_formed(await client.ask(before))
        reply = await client.ask(command)
        assert is_well_formed(reply), (command, reply)
        if reply.startswith("354"):
            await client.send("From: a@b.test\r\n\r\n.\r\n")
            reply = await client.reply()
            assert is_well_formed(reply), reply
        elif reply.startswith("334"):
            assert await client.ask("*") == str(replies.AUTH_CANCELLED)
        if reply[:3] in ("221", "421"):
            assert await client.rest() == ""
        elif not reply.startswith("220"):
            assert await client.ask("NOOP") == "250 2.0.0 ok"
        await client.close()

    async def scenario() -> None:
        async with listening(settings_=settings(tls=files)) as house:
            for verb in (*SubmissionSession.verbs, "FOO"):
                for argument in ARGUMENTS:
                    await one(await house.connect(), f"{verb} {argument}".rstrip())

    run(scenario())


def test_every_reply_in_the_list_is_well_formed() -> None:
    found = [value for value in vars(replies).values() if isinstance(value, replies.Reply)]
    assert len(found) > 60
    for reply in found:
        assert is_well_formed(str(reply)), reply
    for made in (replies.queued("0" * 20), replies.duplicate("0" * 20), replies.chunk(10**20)):
        assert is_well_formed(str(made)), made


def test_replies_come_in_the_order_of_the_commands_and_in_one_write() -> None:
    """RFC 2920 §3.2: nothing is held back once input has run out, and nothing leaves in pieces before."""

    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            group = [b"MAIL FROM:<a@b.test>"] + [b"RCPT TO:<r%d@d.test>" % n for n in range(20)] + [b"RCPT TO:<bad>"]
            chunk = b"From: a@b.test\r\n\r\n"
            await client.send(
                b"\r\n".join(
                    [*group, b"BDAT %d" % len(chunk), chunk + b"BDAT 4 LAST", b"textNOOP", b"MAIL FROM:<bad>", b""]
                )
            )
            said = (await client.reader.read(65_536)).decode().splitlines()
            codes = [line[:9] for line in said]
            assert codes == [
                "250 2.1.0",
                *["250 2.1.5"] * 20,
                "553 5.1.3",
                "250 2.0.0",
                "250 2.0.0",
                "250 2.0.0",
                "553 5.1.7",
            ]
            assert [len(message.envelope.recipients) for message in house.queue.messages] == [20]
            await client.close()

    run(scenario())


def test_a_line_has_room_for_all_that_may_be_in_it() -> None:
    """RFC 5321 §4.5.3.1 and what the extensions add; in octets."""
    path, coded = "x" * 64 + "@" + "d" * 190, "+2B" * 100
    mail = f"MAIL FROM:<{path}> SIZE={'9' * 20} BODY=8BITMIME AUTH={'a' * 495} RET=FULL ENVID={coded} SMTPUTF8"
    rcpt = f"RCPT TO:<{path}> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT={'o' * 500}"
    assert len(mail) <= COMMAND_OCTETS_OF["MAIL"] and len(rcpt) <= COMMAND_OCTETS_OF["RCPT"]


async def in_chunks(client: Client, *commands: bytes) -> None:
    await client.hello()
    for command in ("MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>"):
        assert (await client.ask(command)).startswith("250 ")
    for command in commands:
        await client.send(command)


@pytest.mark.parametrize("size", [b"10", b"3000"])
def test_a_chunk_that_stops_coming_ends_the_session(size: bytes) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=0.2, max_message_bytes=1024)) as house:
            client = await house.connect()
            await in_chunks(client, b"BDAT " + size + b" LAST\r\n12345")
            assert await client.rest() == "421 4.4.2 content took too long\r\n"
            assert house.queue.messages == []

    run(scenario())


@pytest.mark.parametrize("between", [b"BDAT 1\r\nx", b"NOOP\r\n"])
def test_chunks_that_drip_end_at_the_total_limit(between: bytes) -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=5, data_seconds=0.6)) as house:
            client = await house.connect()
            await in_chunks(client, b"BDAT 1\r\nx")
            began = asyncio.get_running_loop().time()
            answer = asyncio.ensure_future(client.farewell())
            while not answer.done():
                await client.send(between)
                await asyncio.wait([answer], timeout=0.1)
            assert answer.result().startswith("421 4.4.2 ")
            assert asyncio.get_running_loop().time() - began < 3
            assert house.relayd._volume.total == 0

    run(scenario())


def test_chunks_count_in_the_volume_and_are_given_back() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_message_bytes=100_000, max_data_bytes=150_000)) as house:
            first, second, third = [await house.connect() for _ in range(3)]
            await in_chunks(first, b"BDAT 90000\r\n" + b"x" * 90_000)
            assert (await first.reply()).startswith("250 ")
            assert house.relayd._volume.total == 90_000
            await in_chunks(second, b"BDAT 80000\r\n" + b"QUIT\r\n" * 13_333 + b"..", b"BDAT 4 LAST\r\nQUIT")
            assert await second.reply() == str(replies.NO_ROOM)
            assert await second.reply() == str(replies.MAIL_FIRST)
            assert house.relayd._volume.total == 90_000
            first.reset()
            await in_chunks(third, b"BDAT 50000\r\n" + b"x" * 50_000, b"RSET\r\n")
            assert (await third.reply()).startswith("250 ") and (await third.reply()).startswith("250 ")
            assert house.relayd._volume.total == 0
            assert house.queue.messages == []
            for client in (second, third):
                await client.close()

    run(scenario())


def test_a_fault_in_the_midst_of_content_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would follow is content, not commands."""

    def fails(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr("relayd.volume.Share.hold", fails)

    async def scenario() -> None:
        async with listening() as house:
            for command in (b"BDAT 6 LAST\r\nQUIT\r\nRSET\r\n", b"DATA\r\nxxxxxxxxxx"):
                client = await house.connect()
                await in_chunks(client, command)
                said = (await client.rest()).splitlines()
                assert said[-1] == str(replies.BROKEN_OFF) and len(said) == 1 + command.startswith(b"DATA")

    run(scenario())
