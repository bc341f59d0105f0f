"""A submission client that keeps a ledger: what it was promised, Message-ID by Message-ID.

Every message goes out under a Message-ID of its own. One that is not answered 250, for whatever reason, is sent again
under a new one, so that a Message-ID has one fate only: *accepted* (250 read), *refused* (4xx or 5xx to the final dot:
it must not go out) or *unanswered* (the connection ended after the final dot: it may go out or not).
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

ANSWER_SECONDS = 60.0
PAUSE_SECONDS = 0.1  # before the next connection when one failed
_QUEUED = re.compile(rb"queued as (\S+)")
_LINE = b"Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod.\r\n"


@dataclass(frozen=True, slots=True)
class Accepted:
    """One 250. ``at`` Unix seconds; ``account`` the label of the source address it was submitted from."""

    message_id: str
    queue_id: str
    recipients: tuple[str, ...]
    account: str
    at: float


class Refused(Exception):
    """The relay said no, or nothing; the connection is of no more use."""


@dataclass(slots=True)
class Client:
    """``accounts``: label → our own address, which the relay knows the account by. Every fifth message has three
    recipients at one domain or at several, the others one. ``path``: the ledger, one JSON line per 250."""

    port: int
    path: Path
    accounts: Mapping[str, str]
    domains: Sequence[str]
    sessions: int = 20
    octets: int = 2000
    seed: int = 0
    local_part: str = "u"
    host: str = "127.0.0.1"
    accepted: dict[str, Accepted] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # Message-ID → reply to the final dot
    unanswered: set[str] = field(default_factory=set)
    troubles: int = 0  # connections that failed or were of no more use
    last_trouble: str = ""
    _number: int = 0

    async def run(self, messages: int) -> None:
        """Until so many more were accepted."""
        left = len(self.accepted) + messages
        rng = random.Random(self.seed)
        with self.path.open("ab", buffering=0) as ledger:
            await asyncio.gather(
                *(
                    self._session(label, source, left, random.Random(rng.random()), ledger.write)
                    for index in range(self.sessions)
                    for label, source in [list(self.accounts.items())[index % len(self.accounts)]]
                )
            )

    async def _session(self, label: str, source: str, goal: int, rng: random.Random, write) -> None:  # type: ignore[no-untyped-def]
        while len(self.accepted) < goal:
            writer = None
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=(source, 0))
                    await _expect(reader, b"220")
                    writer.write(b"EHLO client.entidad.test\r\n")
                    await _expect(reader, b"250")
                while len(self.accepted) < goal:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        accepted = await self._message(reader, writer, label, rng)
                    self.accepted[accepted.message_id] = accepted
                    write(orjson.dumps(asdict(accepted), option=orjson.OPT_APPEND_NEWLINE))
            except (OSError, EOFError, Refused) as trouble:
                self.troubles += 1
                self.last_trouble = f"{type(trouble).__name__}: {trouble}"
                await asyncio.sleep(PAUSE_SECONDS * rng.uniform(0.5, 1.5))
            finally:
                if writer is not None:
                    writer.close()

    async def _message(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, label: str, rng: random.Random
    ) -> Accepted:
        self._number += 1
        number = self._number
        message_id = f"<{self.seed}.{number}.{rng.getrandbits(40):x}@client.entidad.test>"
        recipients = self._recipients(number, rng)
        commands = [b"MAIL FROM:<aviso@entidad.test>\r\n", *(f"RCPT TO:<{one}>\r\n".encode() for one in recipients)]
        writer.write(b"".join(commands) + b"DATA\r\n")
        for _ in commands:
            await _expect(reader, b"250")
        await _expect(reader, b"354")
        head = f"From: aviso@entidad.test\r\nMessage-ID: {message_id}\r\nSubject: {number}\r\n\r\n".encode()
        self.unanswered.add(message_id)
        writer.write(head + _LINE * max(1, self.octets // len(_LINE)) + b".\r\n")
        try:
            reply = await _expect(reader, b"250")
        except Refused as refusal:
            self.unanswered.discard(message_id)
            self.refused[message_id] = str(refusal)
            raise
        self.unanswered.discard(message_id)
        queued = _QUEUED.search(reply)
        return Accepted(message_id, queued[1].decode() if queued else "", recipients, label, time.time())

    def _recipients(self, number: int, rng: random.Random) -> tuple[str, ...]:
        domains = [rng.choice(self.domains)]
        if number % 5 == 0:
            domains += [rng.choice(self.domains), domains[0]]
        return tuple(f"{self.local_part}{number}.{index}@{domain}" for index, domain in enumerate(domains))


async def _expect(reader: asyncio.StreamReader, code: bytes) -> bytes:
    """The reply's last line; EOFError when the connection ended, Refused for another code."""
    while True:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        if line[3:4] != b"-":
            if line[:3] != code:
                raise Refused(line.decode(errors="replace").strip())
            return line
