"""What the listener's tests stand on: a queue that writes down, a relayd on an ephemeral port, a raw client."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvloop
from argon2 import PasswordHasher
from prometheus_client import CollectorRegistry

from config.settings import Settings
from mailqueue.events import Event
from mailqueue.failures import Standing
from mailqueue.inbound import Returned
from mailqueue.message import Message, new_id
from relayd.auth import Book
from relayd.inbound import Inbound
from relayd.listener.proxy import SIGNATURE, crc32c
from relayd.server import Relayd

PASSWORD = "correct horse"
# Fields that every submission has or gets: content below them arrives as it was sent.
HEADER = b"From: a@b.example\r\nDate: Sat, 21 Nov 2026 01:25:26 +0000\r\nMessage-ID: <1@b.example>\r\n"
HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


@dataclass(frozen=True, slots=True)
class Kept:
    kind: str
    id: str
    queued: int = 0
    left: int = 0
    why: str = ""
    limit: str = ""
    until: int = 0
    clock: str = ""


@dataclass(slots=True)
class RecordingQueue:
    """Says what `verdict` says; `gate` holds puts back, `failure` is raised."""

    accepting: bool = True
    stopped: str = ""
    verdict: str = "queued"
    failure: Exception | None = None
    refusal: Kept | None = None
    gate: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    kept: asyncio.Event = field(default_factory=asyncio.Event)
    messages: list[Message] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    warnings: list[tuple[str, ...]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    open_campaigns: dict[str, set[str]] = field(default_factory=dict)

    def new_id(self, account: str, idempotency_key: str | None = None) -> str:
        return new_id()

    async def put(
        self,
        message: Message,
        idempotency_key: str | None = None,
        client: str = "",
        account: Any = None,
        warnings: tuple[str, ...] = (),
    ) -> Kept:
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.keys.append(idempotency_key)
        self.clients.append(client)
        self.warnings.append(warnings)
        if self.verdict == "queued":
            self.messages.append(message)
            self.kept.set()
        if self.refusal is not None:
            return self.refusal
        return Kept(self.verdict, message.envelope.id if self.verdict != "duplicate" else "firstid")

    async def campaigns(self) -> dict[str, set[str]]:
        if self.failure is not None:
            raise self.failure
        return self.open_campaigns

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def content(self) -> bytes:
        """Of the only message, without our Received field and without HEADER."""
        (message,) = self.messages
        assert message.content.startswith(b"Received: from ")
        rest = message.content
        for _ in range(3):
            rest = rest.partition(b"\r\n")[2]
        return rest.removeprefix(HEADER)


class Forgiving:
    """A book of failures in which nobody is refused, for tests of something else; ``told`` = what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    async def ask(self, address: str, user: str) -> Standing:
        return Standing(0, 0, False)

    async def failed(self, address: str, user: str) -> Standing:
        self.told.append(("failed", address, user))
        return Standing(0, 0, False)

    async def succeeded(self, address: str, user: str) -> Standing:
        self.told.append(("succeeded", address, user))
        return Standing(0, 0, True)


def settings(
    *,
    tls: tuple[str, str] | None = None,
    network: bool = True,
    listener: dict[str, Any] | None = None,
    account: dict[str, Any] | None = None,
    **relayd: Any,
) -> Settings:
    """One listener on 127.0.0.1; account `app` by network (unless network=False) and `user` by password. `listener`
    says more of it, for instance {"tls": "implicit"}, `account` more of `app`."""
    plain: dict[str, Any] = {"name": "a", "address": "127.0.0.1", "port": 0, "tls": "none"}
    if tls is not None:
        plain |= {"tls": "starttls", "certificate": tls[0], "key": tls[1]}
    listener = plain | (listener or {})
    accounts: list[dict[str, Any]] = [{"name": "user", "password_hash": HASH, "class": "transactional"}]
    if network:
        accounts.append({"name": "app", "networks": ["127.0.0.0/16"], "classes": ["transactional"], **(account or {})})
    return Settings.model_validate(
        {"relayd": {"hostname": "relay.test", "listeners": [listener], **relayd}, "accounts": accounts}
    )


@dataclass(slots=True)
class RecordingStore:
    """Keeps returned mail in a list; `verdict` is the entry's id, `failure` is raised."""

    accepting: bool = True
    verdict: str = "1-0"
    failure: BaseException | None = None
    mails: list[Returned] = field(default_factory=list)

    async def keep(self, mail: Returned) -> str:
        if self.failure is not None:
            raise self.failure
        if self.verdict:
            self.mails.append(mail)
        return self.verdict


def inbound_settings(key: Path, *, listener: dict[str, Any] | None = None, **inbound: Any) -> Settings:
    """One listener of kind inbound; return paths of bounce.test signed by `key`, and a mailbox."""
    plain = {"name": "a", "address": "127.0.0.1", "port": 0, "tls": "none", "kind": "inbound"}
    said = {"domains": ["bounce.test"], "mailboxes": ["abuse@relay.test", "postmaster@relay.test"]}
    return Settings.model_validate(
        {
            "relayd": {"hostname": "relay.test", "listeners": [plain | (listener or {})]},
            "signing": {"return_path_key": str(key)},
            "inbound": said | inbound,
        }
    )


@dataclass(slots=True)
class House:
    relayd: Relayd | Inbound
    queue: RecordingQueue
    registry: CollectorRegistry
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.relayd.doors.addresses["a"][1]

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, {"service": "esmtp_listener", **labels}) or 0.0

    async def emptied(self) -> None:
        """No session is left."""
        await self.relayd.doors.emptied(20)
        assert self.relayd.doors.sessions == 0

    async def connect(self, source: str = "127.0.0.1", *, header: bytes = b"", tls: bool = False) -> Client:
        """`header` goes before all else, in clear; `tls` = the handshake follows at once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        client = Client(reader, writer)
        self.clients.append(client)
        if header:
            await client.send(header)
        if tls:
            await client.encrypt()
        return client


@dataclass(slots=True)
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode("latin-1") if isinstance(text, str) else text)
        await self.writer.drain()

    async def reply(self) -> str:
        """One whole reply, lines joined by LF; "" at the end of input."""
        lines = []
        while line := (await self.reader.readline()).decode():
            assert line.endswith("\r\n")
            lines.append(line[:-2])
            if line[3] == " ":
                break
        return "\n".join(lines)

    async def ask(self, command: str) -> str:
        await self.send(command + "\r\n")
        return await self.reply()

    async def hello(self) -> None:
        assert (await self.reply()).startswith("220 ")
        assert (await self.ask("EHLO client.example")).startswith("250-relay.test")

    async def upgrade(self) -> None:
        """STARTTLS and the second EHLO."""
        assert (await self.ask("STARTTLS")).startswith("220 ")
        await self.encrypt()
        assert (await self.ask("EHLO client.example")).startswith("250-relay.test")

    async def encrypt(self) -> None:
        """The handshake, whoever the other end is."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        await self.writer.start_tls(context)
        self.reader._transport = self.writer.transport  # type: ignore[attr-defined]  # missing in 3.11

    async def transaction(self, content: str | bytes = "Subject: x\r\n\r\nhi\r\n", to: str = "b@c.example") -> str:
        """MAIL, RCPT, DATA, HEADER (unless there is a From), content; the last reply."""
        for command, code in (("MAIL FROM:<a@b.example>", "250"), (f"RCPT TO:<{to}>", "250"), ("DATA", "354")):
            reply = await self.ask(command)
            assert reply.startswith(code), reply
        octets = content.encode("latin-1") if isinstance(content, str) else content
        await self.send(octets if b"From:" in octets else HEADER + octets)
        await self.send(".\r\n")
        return await self.reply()

    async def farewell(self) -> str:
        """The reply 421, whatever comes before; "" without one. For who goes on sending: what comes behind the end of the
        session makes the kernel answer RST, and a reader of the rest would get that in place of what was said."""
        while (reply := await self.reply()) and not reply.startswith("421 "):
            pass
        return reply

    async def rest(self) -> str:
        return (await self.reader.read()).decode()

    def reset(self) -> None:
        """Go with RST instead of FIN."""
        self.writer.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def listening(
    queue: RecordingQueue | None = None, settings_: Settings | None = None, book: Book | None = None
) -> AsyncIterator[House]:
    registry = CollectorRegistry()
    queue = queue or RecordingQueue()
    relayd = Relayd(settings_ or settings(), queue, registry, book or Forgiving())
    async with _open(House(relayd, queue, registry)) as house:
        yield house


@asynccontextmanager
async def taking_returns(settings_: Settings, store: RecordingStore) -> AsyncIterator[House]:
    """The inbound process's listeners; the house's queue is one that nothing can reach."""
    registry = CollectorRegistry()
    async with _open(House(Inbound(settings_, store, registry), RecordingQueue(), registry)) as house:
        yield house


@asynccontextmanager
async def _open(house: House) -> AsyncIterator[House]:
    await house.relayd.start()
    try:
        yield house
    finally:
        await house.relayd.stop()
        for client in house.clients:
            await client.close()
        assert house.relayd.doors.sessions == 0
        assert house.metric("connection_count") == 0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def timed() -> None:
        await asyncio.wait_for(scenario, 30)

    uvloop.run(timed())


def proxied(source: str | None, *, command: int = 0x21, extensions: bytes = b"", checksum: bool = False) -> bytes:
    """A PROXY version 2 header that names `source` as the client; None = LOCAL."""
    if source is None:
        return SIGNATURE + b"\x20\0\0\0"
    address = ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    rest = address.packed + ip_address("192.0.2.9" if address.version == 4 else "2001:db8::9").packed
    rest += (40000).to_bytes(2, "big") + (25).to_bytes(2, "big") + extensions
    if not checksum:
        return SIGNATURE + bytes((command, family)) + len(rest).to_bytes(2, "big") + rest
    rest += b"\x03\0\x04"
    head = SIGNATURE + bytes((command, family)) + (len(rest) + 4).to_bytes(2, "big") + rest
    return head + crc32c(head + bytes(4)).to_bytes(4, "big")


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
