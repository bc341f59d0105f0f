"""Mail that came back: kept durably for whoever reads it, apart from the queue, which cannot be reached from here.

The process that takes it holds an :class:`InboundStore` and no :class:`~mailqueue.queue.Queue`: it has no way to put
outgoing mail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import orjson
import zstandard

from config.settings import QueueSettings
from mailqueue import content, keys, scripts, server
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.marks import Marks, refusals
from mailqueue.pulse import Pulse
from mailqueue.scripts import Shard

_PAGE = 100  # entries a round trip


@dataclass(frozen=True, slots=True)
class Addressee:
    """One accepted recipient; ``id`` and ``index`` = what its signed return path refers to, "" and None when it has none."""

    recipient: str
    id: str = ""
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """One mail as it came in; ``entry`` is its place in the stream, "" before it has one."""

    id: str
    at: int  # Unix ms
    reverse_path: str
    addressees: tuple[Addressee, ...]
    client: str
    content: bytes
    entry: str = ""

    def events(self) -> list[Event]:
        """``returned`` for each verified reference, else ``unverified``: law 10."""
        return [
            Event(
                kind="unverified" if one.index is None else "returned",
                at=self.at,
                id=one.id,
                index=one.index,
                reverse_path=self.reverse_path,
                recipient=one.recipient,
                size=len(self.content),
                client=self.client,
            )
            for one in self.addressees
        ]


class InboundStore:
    """Made by :meth:`open`. ``most`` = entries kept, replaced on reload."""

    def __init__(self, settings: QueueSettings, shard: Shard, most: int) -> None:
        self.most = most
        self._patience = settings.put_deadline_seconds
        self.shard = shard
        self.marks = Marks(shard, settings)
        self._pulse = Pulse([shard], self.marks.reached)
        self._compressor = zstandard.ZstdCompressor(level=content.LEVEL, write_checksum=True)

    @classmethod
    async def open(cls, settings: QueueSettings, most: int, *, patience: float = 30.0) -> Self:
        """Waits ``patience`` seconds for the server. Raises QueueRefused or QueueDown, as the queue does."""
        password = settings.password.get_secret_value() if settings.password else None
        shard = Shard(scripts.connect(settings.url, password), 0, scripts.load_sources())
        try:
            await server.await_server(shard, settings, patience)
        except BaseException:
            with suppress(Exception):
                await shard.client.aclose()
            raise
        return cls(settings, shard, most)

    @property
    def accepting(self) -> bool:
        """False while the server is known to be down or full."""
        return self._pulse.felt and not self.marks.full

    @property
    def refusals(self) -> list[str]:
        """Why it does not accept, each reason; [] while it does."""
        return refusals(self._pulse.felt, self.marks, "the queue server does not answer")

    def watch(self) -> None:
        self._pulse.start()

    async def keep(self, mail: Returned) -> str:
        """The entry's id once it is on disk, "" at the memory mark. Raises QueueDown: it may have been kept all the same."""
        try:
            async with asyncio.timeout(self._patience):
                if await self.marks.reached(len(mail.content)):
                    return ""
                return await self._add(mail)
        except TimeoutError:
            raise QueueDown("no answer from the queue server in time") from None
        except ServerAnswer as answer:
            if str(answer).startswith("OOM"):
                return ""
            raise

    async def _add(self, mail: Returned) -> str:
        events = [event.to_json() for event in mail.events()]
        addressees = orjson.dumps([[one.recipient, one.id, one.index] for one in mail.addressees])
        fields: list[scripts.Argument] = ["id", mail.id, "at", mail.at, "from", mail.reverse_path, "to", addressees]
        fields += ["client", mail.client, "z", self._compressor.compress(mail.content)]
        entry = await self.shard.run("inbound", [self.most, len(events), *events, *fields])
        return bytes(entry).decode()

    async def close(self) -> None:
        await self._pulse.stop()
        with suppress(Exception):
            await self.shard.client.aclose()


async def newest(shard: Shard, count: int) -> AsyncIterator[Returned]:
    """The last ``count`` entries of shard 0, the newest first."""
    before = "+"
    while count > 0:
        page = await shard.command("XREVRANGE", keys.inbound(), before, "-", "COUNT", min(count, _PAGE))
        for entry, fields in page:
            yield _read(entry, fields)
        count = count - len(page) if len(page) == _PAGE else 0
        before = "(" + page[-1][0].decode() if page else ""


async def find(shard: Shard, entry: str) -> Returned | None:
    """ValueError when it is damaged; ServerAnswer for what is no entry's id."""
    found = await shard.command("XRANGE", keys.inbound(), entry, entry)
    return _read(*found[0]) if found else None


def _read(entry: bytes, fields: list[bytes]) -> Returned:
    said: dict[bytes, Any] = dict(zip(fields[::2], fields[1::2], strict=True))
    return Returned(
        id=said[b"id"].decode(),
        at=int(said[b"at"]),
        reverse_path=said[b"from"].decode(),
        addressees=tuple(Addressee(*one) for one in orjson.loads(said[b"to"])),
        client=said[b"client"].decode(),
        content=content.expand(said[b"z"]),
        entry=entry.decode(),
    )
