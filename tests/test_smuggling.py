"""No input makes one message into two, here or at the next hop: bare CR and LF, NUL and dots in every combination,
through relayd with a real queue and delivery's real client to a Postfix and an Exim that are as lax as they get.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from config.settings import TimeoutSettings
from delivery.session import Session
from delivery.transaction import Transaction
from tests.conftest import RedisServer, lacking, require_tool
from tests.listening import Client, House, listening, settings
from tests.queue_kit import claim_all, opened, working
from tests.test_fixtures import free_port

TOOLS = Path(__file__).resolve().parent.parent / "tools"
ENDS = (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\0", b"\0\r\n")
DOTS = (b".", b"..")
CLASSIC = (
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n.\0\n",
)
FIRST = tuple(dict.fromkeys([*CLASSIC, *(end.lstrip(b"\r\n\0") for end in CLASSIC)]))  # DATA's own CRLF may count
REAL_END = b"\r\n.\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """``wire``: content as the client sends it, with the end that DATA needs; ``number`` marks its recipient."""

    number: int
    verb: str
    false_end: bytes
    place: str
    wire: bytes

    @property
    def recipient(self) -> str:
        return f"case-{self.number}@next.test"

    @property
    def cut(self) -> int:
        """Within the false end, each time elsewhere: where chunks and writes are parted."""
        return self.wire.index(self.false_end) + 1 + self.number % len(self.false_end)


def cases() -> Iterator[Case]:
    numbers = itertools.count()
    everywhere = list(dict.fromkeys([a + dot + b for a in ENDS for dot in DOTS for b in ENDS] + [*CLASSIC]))
    for verb in ("DATA", "BDAT"):
        for place, false_ends in (
            ("body", everywhere),
            ("header", CLASSIC),
            ("first", CLASSIC),
            ("last", CLASSIC),
            ("start", FIRST),
        ):
            for false_end in false_ends:
                if verb == "DATA" and REAL_END in false_end:
                    continue  # that is the end
                if verb == "DATA" and place == "start" and false_end.startswith(REAL_END[2:]):
                    continue  # so is that
                number = next(numbers)
                yield Case(number, verb, false_end, place, _wire(number, verb, false_end, place))


def _wire(number: int, verb: str, false_end: bytes, place: str) -> bytes:
    smuggled = (
        f"MAIL FROM:<evil@x.test>\r\nRCPT TO:<victim-{number}@next.test>\r\nDATA\r\nSubject: second\r\n\r\nsecond"
    ).encode()
    head = b"From: a@b.test\r\nSubject: first\r\n\r\nfirst"
    content = {
        "body": head + false_end + smuggled,
        "header": b"From: a@b.test\r\nSubject: first" + false_end + smuggled,
        "first": head.removesuffix(b"first") + false_end + smuggled,
        "start": false_end + smuggled,
        "last": head + b"\r\n" + smuggled + false_end,
    }[place]
    return content + REAL_END if verb == "DATA" else content


CASES = tuple(cases())
MESSAGES = tuple(case for case in CASES if case.place != "start")  # there the header is over before From


@dataclass
class Sink:
    """The end of the road, which takes CRLF only: (recipients, content) of every message."""

    messages: list[tuple[tuple[str, ...], bytes]] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipients: list[str] = []
        writer.write(b"220 sink.test\r\n")
        try:
            while True:
                line = await reader.readuntil(b"\r\n")
                verb, reply = line[:4].upper(), b"250 ok\r\n"
                if verb == b"EHLO":
                    reply = b"250-sink.test\r\n250 8BITMIME\r\n"
                elif verb == b"RCPT":
                    recipients.append(re.search(rb"<(.*?)>", line)[1].decode())  # type: ignore[index]
                elif verb == b"DATA":
                    writer.write(b"354 go\r\n")
                    self.messages.append(
                        (tuple(recipients), (await reader.readuntil(REAL_END)).replace(b"\r\n.", b"\r\n"))
                    )
                    recipients = []
                elif verb == b"QUIT":
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def count(self) -> Counter[str]:
        return Counter(recipient for recipients, _ in self.messages for recipient in recipients)

    async def quiet(self, least: int, seconds: float = 25.0) -> None:
        """At least so many messages are here, and no more have come for half a second."""
        async with asyncio.timeout(seconds):
            seen = -1
            while len(self.messages) < least or len(self.messages) != seen:
                seen = len(self.messages)
                await asyncio.sleep(0.5 if seen >= least else 0.1)


@asynccontextmanager
async def sink() -> AsyncIterator[Sink]:
    found = Sink()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, limit=1 << 20)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


class NextHop:
    """A private Postfix or Exim that relays everything to the sink."""

    def __init__(self, kind: str, directory: Path, to: int) -> None:
        self.port = free_port()
        self._instance = TOOLS / f"{kind}-instance"
        self._directory = directory
        self._to = to
        self._kind = kind

    async def __aenter__(self) -> NextHop:
        await self._tell("start", str(self.port), str(self._to))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tell("stop")

    async def deliver(self) -> None:
        if self._kind == "exim":
            await self._tell("deliver")

    async def _tell(self, verb: str, *arguments: str) -> None:
        command = [self._instance, verb, self._directory, *arguments]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=40)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(scenario, 100))


@pytest.fixture(params=["postfix", "exim"])
def kind(request: pytest.FixtureRequest) -> str:
    if os.geteuid() != 0:
        lacking("Postfix and Exim need root to start")
    tool = require_tool({"postfix": "postconf", "exim": "exim4"}[request.param])
    if ".tools" not in tool.parts:
        lacking("the private instances run from the unpacked tools only (make tools)")
    return str(request.param)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, and open to the users that Postfix and Exim turn into."""
    path = Path(tempfile.mkdtemp(prefix="smuggle", dir="/tmp"))
    path.chmod(0o755)
    yield path / "it"
    shutil.rmtree(path, ignore_errors=True)


async def submit(client: Client, case: Case) -> str:
    """The reply to the content, which comes in two writes or chunks."""
    for command in ("MAIL FROM:<a@b.test>", f"RCPT TO:<{case.recipient}>"):
        assert (await client.ask(command)).startswith("250 ")
    first, second = case.wire[: case.cut], case.wire[case.cut :]
    if case.verb == "DATA":
        assert (await client.ask("DATA")).startswith("354 ")
        await client.send(first)
        await asyncio.sleep(0)
        await client.send(second)
        return await client.reply()
    await client.send(b"BDAT %d\r\n" % len(first) + first)
    assert (await client.reply()).startswith("250 ")
    await client.send(b"BDAT %d LAST\r\n" % len(second) + second)
    return await client.reply()


async def submit_all(house: House) -> None:
    """Every case is answered by exactly one reply, and the session goes on."""
    client = await house.connect()
    await client.hello()
    for case in CASES:
        reply = await submit(client, case)
        wanted = "550 5.6.0 From: missing" if case.place == "start" else "250 2.0.0 queued as "
        assert reply.startswith(wanted), (case, reply)
    assert await client.ask("QUIT") == "221 2.0.0 bye"
    assert await client.rest() == ""


async def pass_on(port: int, items: list[Any]) -> None:
    """delivery's client, one session for all."""
    session = await Session.open(
        "next.test", "127.0.0.1", port, source=None, hostname="relay.test", timeouts=TimeoutSettings()
    )
    for item in items:
        envelope = item.message.envelope
        transaction = Transaction(envelope.reverse_path, (item.recipient,), item.message.content, envelope.body)
        (result,) = (await session.send(transaction)).recipients
        assert result.delivered, (item.recipient, result)
    await session.quit()


def test_each_submission_is_one_message_at_the_end(kind: str, directory: Path, shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with sink() as end, NextHop(kind, directory, end.port) as next_hop, opened(shared_redis.url) as queue:
            terms = settings(max_commands=100_000, max_errors=10_000)
            async with listening(cast(Any, queue), terms) as house:
                await submit_all(house)
            async with working(queue) as worker:
                items = await claim_all(worker, most=10_000)
                assert sorted(item.recipient for item in items) == sorted(case.recipient for case in MESSAGES)
                for item in items:
                    content = item.message.content
                    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
                await pass_on(next_hop.port, items)
            await next_hop.deliver()
            await end.quiet(len(MESSAGES))
            assert end.count() == Counter(case.recipient for case in MESSAGES)
            for recipients, content in end.messages:
                number = recipients[0].removeprefix("case-").removesuffix("@next.test")
                assert f"RCPT TO:<victim-{number}@next.test>".encode() in content
                assert content.count(b"Subject: second") == 1

    run(scenario())


def test_the_next_hops_are_lax(kind: str, directory: Path) -> None:
    """The control: the same contents said to them directly are two messages.

    Debian's Exim 4.96 carries the fix of CVE-2023-51766 and cannot be told to do without: it is the second reader only.
    """
    raw = [case for case in CASES if case.verb == "DATA" and case.place == "body" and case.false_end in CLASSIC]

    async def scenario() -> None:
        async with sink() as end, NextHop(kind, directory, end.port) as next_hop:
            taken = 0
            for case in raw:
                reader, writer = await asyncio.open_connection("127.0.0.1", next_hop.port)
                client = Client(reader, writer)
                await client.reply()
                await client.ask("EHLO evil.test")
                for command in ("MAIL FROM:<a@b.test>", f"RCPT TO:<{case.recipient}>", "DATA"):
                    await client.ask(command)
                await client.send(case.wire + b"QUIT\r\n")
                taken += len(re.findall(r"^250 .*(?:queued as|id=)", await client.rest(), re.MULTILINE))
                await client.close()
            await next_hop.deliver()
            await end.quiet(taken)
            smuggled = {case.false_end for case in raw if end.count()[f"victim-{case.number}@next.test"]}
            assert smuggled == {"postfix": {b"\n.\n", b"\n.\r\n", b"\r\n.\n"}, "exim": set()}[kind]

    run(scenario())
