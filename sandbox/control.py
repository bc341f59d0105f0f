"""Steering a sandbox from another process: JSON lines over a unix socket (0600).

``{"cmd": "behaviour", "domain": "gmail.test", "set": "down", "sources": ["127.0.1.3"]}``; :mod:`sandbox.commands` has all.
Every answer is one line: ``{"ok": true, …}`` or ``{"ok": false, "error": "…"}``.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import orjson

from sandbox.commands import Answer, Commands, Steered

_MAX_LINE = 65536


class ControlSocket:
    """The listening side."""

    def __init__(self, sandbox: Steered, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._commands = Commands(sandbox).table

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=_MAX_LINE)
        self.path.chmod(0o600)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while line := await reader.readline():
                writer.write(orjson.dumps(await self._answer(line), option=orjson.OPT_APPEND_NEWLINE))
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # the peer left, sent an endless line, or the sandbox stops
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            command = orjson.loads(line)
            work = self._commands.get(command["cmd"])
            if work is None:
                raise ValueError(f"no command {command['cmd']!r}; there are: {', '.join(self._commands)}")
            return {"ok": True, **await work(command)}
        except (ValueError, KeyError, TypeError, OSError) as error:
            text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
            return {"ok": False, "error": text}


def tell(path: Path, patience: float = 120.0, **command: Any) -> Answer:
    """One command to a running sandbox, from blocking code: ``tell(path, cmd="report")``.

    ``patience`` in seconds must outlast what a ``wait`` asks for.

    Raises OSError when nobody listens, RuntimeError with the sandbox's words when it refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(patience)
        control.connect(str(path))
        control.sendall(orjson.dumps(command, option=orjson.OPT_APPEND_NEWLINE))
        with control.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise ConnectionError(f"the sandbox behind {path} closed without an answer")
    answer: Answer = orjson.loads(line)
    if not answer["ok"]:
        raise RuntimeError(answer["error"])
    return answer
