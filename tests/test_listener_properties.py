"""No input makes the listener say 250 without a durable message, or 5xx for a fault of its own; and every session ends.

One client talks verb by verb and keeps count of what it was told; another throws octets at the listener and looks only
at the ids that it was given.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mailqueue.errors import QueueDown
from mailqueue.message import Message
from relayd import replies
from tests.listening import Client, Kept, RecordingQueue, listening, run, settings

OUTCOMES = ("queued", "full", "down", "broken", "timeout", "cancelled", "duplicate")
QUEUED = re.compile(r"250 2\.0\.0 queued as ([0-9a-v]{20})$")
MOST_EXAMPLES = examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(slots=True)
class Moody(RecordingQueue):
    """Each put goes as the next of ``moods`` says, "queued" when there are none left; ``went`` = how they went."""

    moods: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)

    async def put(self, message: Message, *arguments: Any, **more: Any) -> Kept:
        mood = self.moods.pop(0) if self.moods else "queued"
        self.went.append(mood)
        await asyncio.sleep(0)
        failures: dict[str, BaseException] = {
            "down": QueueDown("no answer"),
            "broken": RuntimeError("a fault of ours"),
            "timeout": TimeoutError(),
            "cancelled": asyncio.CancelledError(),
        }
        if mood in failures:
            raise failures[mood]
        self.verdict = mood
        # Not super(): dataclasses with slots are made anew, and the zero-argument form would look at the old class.
        return await RecordingQueue.put(self, message, *arguments, **more)


CONTENT = st.lists(
    st.sampled_from(
        [b"\r\n", b"\n", b"\r", b".", b"\0", b"x", b"\xff", b"X-Tambo-Class: bulk\r\n", b"RCPT TO:<evil@x.test>"]
    ),
    max_size=12,
).map(lambda parts: b"From: a@b.test\r\nSubject: x\r\n\r\n" + b"".join(parts))

PLAIN = [
    "EHLO c.test", "HELO c.test", "EHLO", "NOOP", "RSET", "RSET now", "VRFY x", "HELP", "EXPN x", "FOO", "STARTTLS",
    "AUTH PLAIN AAAA", "MAIL FROM:<>", "MAIL FROM:<a@b.test>", "MAIL FROM:<a@b.test> RET=FULL ENVID=e SMTPUTF8",
    "MAIL FROM:<a@b.test> SIZE=99999999999", "MAIL FROM:<a@b.test> RET=x", "MAIL FROM:<é@b.test> SMTPUTF8",
    "RCPT TO:<bad>", "RCPT TO:<c@d.test> NOTIFY=x", "RCPT TO:<ñ@d.test>",
]  # fmt: skip
RECIPIENT = st.integers(0, 5).map(lambda n: f"RCPT TO:<r{n}@d.test>") | st.just("RCPT TO:<q@d.test> NOTIFY=SUCCESS")
STEP = st.one_of(
    st.sampled_from(PLAIN).map(lambda text: ("line", text.encode())),
    st.just(("line", b"MAIL FROM:<a@b.test>")),
    RECIPIENT.map(lambda text: ("line", text.encode())),
    CONTENT.map(lambda content: ("data", content)),
    CONTENT.map(lambda content: ("bdat", content)),
    CONTENT.map(lambda content: ("last", content)),
)
STEPS = st.lists(STEP, max_size=25).map(
    lambda steps: [("line", b"EHLO c.test"), ("line", b"MAIL FROM:<a@b.test>"), ("line", b"RCPT TO:<r@d.test>"), *steps]
)


class Teller:
    """A client that knows what it may expect of the queue from what it was told."""

    def __init__(self, client: Client, queue: Moody) -> None:
        self._client = client
        self._queue = queue
        self._recipients: list[str] = []
        self._open = False  # a transaction is under way

    async def step(self, kind: str, text: bytes) -> None:
        if kind == "line":
            await self._line(text)
        elif kind == "data":
            await self._client.send(b"DATA\r\n")
            if (await self._reply()).startswith("354 "):
                stuffed = (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:]
                await self._ended(stuffed + b"\r\n.\r\n")
        elif kind == "last":
            await self._ended(b"BDAT %d LAST\r\n" % len(text) + text)
        else:
            await self._client.send(b"BDAT %d\r\n" % len(text) + text)
            if not (await self._reply()).startswith("250 "):
                self._over()

    async def _line(self, line: bytes) -> None:
        await self._client.send(line + b"\r\n")
        reply = await self._reply()
        if not reply.startswith("250"):
            return
        if line.startswith(b"RCPT"):
            self._recipients.append(line.decode().partition("<")[2].partition(">")[0])
        elif line.startswith(b"MAIL"):
            self._open = True
        elif line[:4] in (b"EHLO", b"HELO", b"RSET"):
            self._over()

    async def _ended(self, octets: bytes) -> None:
        """The end of a message: what is said of it is what became of it."""
        messages, puts = len(self._queue.messages), len(self._queue.went)
        await self._client.send(octets)
        reply = await self._reply()
        went = self._queue.went[puts:]
        if went == ["queued"]:
            found = QUEUED.fullmatch(reply)
            message = self._queue.messages[-1]
            assert found is not None and message.envelope.id == found[1], reply
            assert message.envelope.recipients == tuple(dict.fromkeys(self._recipients))
            assert len(self._queue.messages) == messages + 1
        else:
            assert len(self._queue.messages) == messages and len(went) <= 1
            assert reply.startswith({"": "5", "duplicate": "250 "}.get("".join(went), "4")), (went, reply)
            # Not even tried: there was no transaction, its content was refused, or BDAT came after HELO.
            fault = reply.startswith("55") or reply == str(replies.HELLO_FIRST)
            assert went or not (self._open and self._recipients) or fault, reply
        self._over()

    def _over(self) -> None:
        self._recipients, self._open = [], False

    async def _reply(self) -> str:
        reply = await asyncio.wait_for(self._client.reply(), 5)
        assert re.match(r"(?:250[- ](?!\d\.)|354 |[245]\d\d [245]\.\d\.\d{1,2} )", reply), reply
        return reply


@MOST_EXAMPLES
@given(steps=STEPS, moods=st.lists(st.sampled_from(OUTCOMES), max_size=6))
def test_250_is_a_durable_message_with_exactly_these_recipients(
    steps: list[tuple[str, bytes]], moods: list[str]
) -> None:
    async def scenario() -> None:
        queue = Moody(moods=list(moods))
        async with listening(queue, settings(max_errors=1000)) as house:
            client = await house.connect()
            assert (await client.reply()).startswith("220 ")
            teller = Teller(client, queue)
            for kind, text in steps:
                await teller.step(kind, text)
            assert await asyncio.wait_for(client.ask("QUIT"), 5) == "221 2.0.0 bye"
            assert await asyncio.wait_for(client.rest(), 5) == ""

    with capture_logs() as logs:
        run(scenario())
    assert not [entry for entry in logs if entry["event"] in ("session failed", "command failed")]


PIECE = st.one_of(
    st.sampled_from(PLAIN).map(lambda text: text.encode() + b"\r\n"),
    RECIPIENT.map(lambda text: text.encode() + b"\r\n"),
    st.sampled_from([
        b"MAIL FROM:<a@b.test>\r\n", b"DATA\r\n", b".\r\n", b"\r\n.\r\n", b"BDAT 0 LAST\r\n", b"BDAT 5\r\n", b"BDAT 21 LAST\r\n",
        b"BDAT 9999999\r\n", b"BDAT\r\n", b"From: a@b.test\r\n\r\n", b"\n", b"\r", b"\0", b"QUIT\r\n",
    ]),
    CONTENT,
    st.binary(max_size=30),
)  # fmt: skip
OPENING = b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<r@d.test>\r\n"


@MOST_EXAMPLES
@given(
    pieces=st.lists(PIECE, max_size=30),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
    moods=st.lists(st.sampled_from(OUTCOMES), max_size=6),
)
def test_whatever_comes_the_ids_that_were_told_are_those_that_were_kept(
    pieces: list[bytes], cuts: list[int], moods: list[str]
) -> None:
    wire = OPENING + b"".join(pieces)
    edges = sorted({0, len(wire), *(min(cut, len(wire)) for cut in cuts)})

    async def scenario() -> None:
        queue = Moody(moods=list(moods))
        async with listening(queue, settings(max_errors=30)) as house:
            client = await house.connect()
            try:
                for start, end in itertools.pairwise(edges):
                    await client.send(wire[start:end])
                    await asyncio.sleep(0)
                client.writer.write_eof()
            except ConnectionError:
                pass  # sent away in the midst of it
            try:
                said = (await asyncio.wait_for(client.reader.read(), 10)).decode()
            except ConnectionError:
                return  # reset: what was told is lost
            told = re.findall(r"^250 2\.0\.0 queued as ([0-9a-v]{20})\r$", said, re.MULTILINE)
            assert told == [message.envelope.id for message in queue.messages]
            assert all(message.envelope.recipients for message in queue.messages)
            await house.emptied()

    with capture_logs() as logs:
        run(scenario())
    assert not [entry for entry in logs if entry["event"] in ("session failed", "command failed")]
