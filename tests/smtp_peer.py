"""A scripted SMTP server over a real socket: a map from verb to what it does, and a log of what it heard.

Keys: "greeting", "EHLO", "HELO", "STARTTLS", "MAIL", "RCPT", "DATA", "." (end of data), "RSET", "QUIT". Values: the
reply's text without the last CRLF, DROP (close), SILENCE (say nothing), bytes (written as they are), or a list of
these, one for each time the verb comes (the last one stays).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

DROP = object()
SILENCE = object()

PLAIN: Mapping[str, Any] = {
    "greeting": "220 mx.test ESMTP",
    "EHLO": "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 50000000\r\n250-8BITMIME\r\n250 SMTPUTF8",
    "HELO": "250 mx.test",
    "STARTTLS": "220 go on",
    "MAIL": "250 2.1.0 sender ok",
    "RCPT": "250 2.1.5 recipient ok",
    "DATA": "354 go ahead",
    ".": "250 2.0.0 queued",
    "RSET": "250 2.0.0 reset",
    "QUIT": "221 2.0.0 bye",
}
NO_PIPELINING = {"EHLO": "250-mx.test\r\n250 8BITMIME"}


class Peer:
    """``heard``: command lines of all connections in order; ``messages``: contents as on the wire, without the dot."""

    def __init__(self, script: Mapping[str, Any], context: ssl.SSLContext | None) -> None:
        self.script: dict[str, Any] = {**PLAIN, **script}
        self.context = context
        self.times: dict[str, int] = {}
        self.heard: list[str] = []
        self.messages: list[bytes] = []
        self.peers: list[tuple[str, int]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.gone = asyncio.Event()  # a client hung up
        self.asked = asyncio.Event()  # a verb met SILENCE
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername"))
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            if await self._act("greeting", writer):
                while line := await reader.readline():
                    verb = line.split(b" ")[0].strip().upper().decode("ascii", "replace")
                    self.heard.append(line.decode("utf-8", "replace").rstrip())
                    if not await self._act(verb, writer):
                        break
                    reply = self._last
                    if verb == "DATA" and reply.startswith("354"):
                        if not await self._content(reader, writer):
                            break
                    elif verb == "STARTTLS" and reply.startswith("220") and self.context is not None:
                        await writer.start_tls(self.context)
        self.gone.set()
        writer.close()

    async def _content(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = []
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                return False
            lines.append(line)
        self.messages.append(b"".join(lines))
        self.heard.append(".")
        return await self._act(".", writer)

    async def _act(self, verb: str, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is to be closed."""
        action = self.script.get(verb, "500 5.5.1 what?")
        if isinstance(action, list):
            count = self.times.get(verb, 0)
            self.times[verb] = count + 1
            action = action[min(count, len(action) - 1)]
        self._last = action if isinstance(action, str) else ""
        if action is DROP:
            return False
        if action is SILENCE:
            self.asked.set()
            return True
        writer.write(action if isinstance(action, bytes) else action.encode() + b"\r\n")
        await writer.drain()
        return True

    def verbs(self) -> list[str]:
        return [line.split(" ")[0] for line in self.heard]


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """The port on which ``serve`` answers; at the end every connection is closed, and seen to be."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        with suppress(asyncio.CancelledError):  # asyncio 3.11 stumbles over a cancelled connection task
            await serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        for _ in range(3):  # the handles under the transports close in the next turns of the loop
            await asyncio.sleep(0)


@asynccontextmanager
async def peer(script: Mapping[str, Any] | None = None, context: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    scripted = Peer(script or {}, context)
    async with listening(scripted.serve) as scripted.port:
        yield scripted


@asynccontextmanager
async def peer_that(serve: Serve) -> AsyncIterator[Peer]:
    """A peer that does something else altogether; only its port counts."""
    other = Peer({}, None)
    async with listening(serve) as other.port:
        yield other
