"""A copy of all that the queue server holds, as of one moment, taken through the connection while it works.

The server is asked as a replica asks it (SYNC, as ``redis-cli --rdb`` does): it forks and sends the memory of that moment
as an RDB file. One fork, as for a rewrite of the append-only file; nothing is read key by key, so nothing moves meanwhile.
What follows the file (the commands since) is not wanted, and the connection is closed. Redis 6.2 to 7 and Valkey, by
unix socket, TCP or TLS; an ACL user needs +sync and +replconf.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from config.settings import QueueSettings
from mailqueue.errors import QueueDown, QueueRefused

CHUNK = 1024 * 1024
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = (
    120.0  # the server forks, or writes a file of its own first (repl-diskless-sync no); it says so now and then
)
_MARK_BYTES = 40


async def copy(settings: QueueSettings, take: Callable[[bytes], None]) -> int:
    """Hands the file to ``take`` piece by piece; its size. Raises QueueDown (nothing may be believed of what came before),
    QueueRefused with what the server says."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await _connect(settings)
    except (OSError, TimeoutError) as error:
        raise QueueDown(f"no queue server: {error or 'no answer'}") from error
    try:
        head = await _ask(reader, writer, settings)
        if head.startswith(b"$EOF:"):
            return await _until_mark(reader, head[5:].strip(), take)
        return await _counted(reader, int(head[1:]), take)
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        raise QueueDown(f"the copy was not finished: {error or 'the server fell silent'}") from error
    finally:
        writer.close()


async def _connect(settings: QueueSettings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    words: dict[str, Any] = dict(parse_url(settings.url))
    if path := words.get("path"):
        return await asyncio.open_unix_connection(path, limit=CHUNK)
    context = None
    if words.get("connection_class") is SSLConnection:
        context = ssl.create_default_context(cafile=words.get("ssl_ca_certs"))
    host, port = words.get("host", "localhost"), int(words.get("port", 6379))
    return await asyncio.open_connection(host, port, ssl=context, limit=CHUNK)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: QueueSettings) -> bytes:
    """The line in front of the file."""
    words: dict[str, Any] = dict(parse_url(settings.url))
    password = settings.password.get_secret_value() if settings.password else words.get("password")
    if password:
        await _say(reader, writer, "AUTH", *filter(None, (words.get("username"), password)))
    await _say(reader, writer, "REPLCONF", "capa", "eof", refused=True)
    await _say(reader, writer, "REPLCONF", "rdb-only", "1", refused=True)  # not known before Redis 7
    writer.write(hiredis.pack_command(("SYNC",)))
    while True:
        line = await _line(reader)
        if line.startswith(b"-"):
            raise QueueRefused(f"the queue server gives no copy: {line[1:].decode(errors='replace').strip()}")
        if line.startswith(b"$"):
            return line


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *words: str, refused: bool = False) -> None:
    asked: Any = words
    writer.write(hiredis.pack_command(asked))
    line = await _line(reader)
    if line.startswith(b"-") and not refused:
        raise QueueRefused(f"the queue server refuses us: {line[1:].decode(errors='replace').strip()}")


async def _line(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(SILENCE_SECONDS):
        line = await reader.readline()
    if not line:
        raise EOFError("the server closed the connection")
    return line


async def _counted(reader: asyncio.StreamReader, size: int, take: Callable[[bytes], None]) -> int:
    left = size
    while left:
        piece = await _piece(reader, min(left, CHUNK))
        left -= len(piece)
        take(piece)
    return size


async def _until_mark(reader: asyncio.StreamReader, mark: bytes, take: Callable[[bytes], None]) -> int:
    """The file ends with the 40 bytes that were said before it. With rdb-only the connection ends there, too; without, the
    server waits for our word before it goes on."""
    held, size = b"", 0
    while not held.endswith(mark):
        keep = len(held) - _MARK_BYTES
        if keep > 0:
            take(held[:keep])
            size += keep
            held = held[keep:]
        held += await _piece(reader, CHUNK)
    take(held[:-_MARK_BYTES])
    return size + len(held) - _MARK_BYTES


async def _piece(reader: asyncio.StreamReader, most: int) -> bytes:
    async with asyncio.timeout(SILENCE_SECONDS):
        piece = await reader.read(most)
    if not piece:
        raise EOFError("the server closed the connection")
    return piece
