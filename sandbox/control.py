"""Steering a sandbox from another process: JSON lines over a unix socket (0600).

``{"cmd": "report"}`` · ``{"cmd": "addresses"}`` · ``{"cmd": "flush"}``
``{"cmd": "behaviour", "domain": "gmail.test", "set": "down"|"greylist"|…|"normal", "sources": ["127.0.1.3"]}``
``{"cmd": "dns", "mode": "servfail"|"silent"|"refused"|"normal", "domain": ""}``
``{"cmd": "wait", "messages": 2000, "seconds": 60}``: answers when so many are on file, or time is up.
Every answer is one line: ``{"ok": true, …}`` or ``{"ok": false, "error": "…"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, get_args

import orjson

from sandbox.ledger import Ledger
from sandbox.scenario import DnsMode

_MAX_LINE = 65536
_MAX_WAIT = 3600.0

Answer = dict[str, Any]


class Steered(Protocol):
    """What the commands act on: a sandbox."""

    @property
    def ledger(self) -> Ledger: ...
    def endpoints(self) -> Answer: ...
    async def set_behaviour(self, name: str, behaviour: str, sources: tuple[str, ...] = ()) -> None: ...
    def pause_dns(self, mode: DnsMode = "servfail", name: str = "") -> None: ...


class ControlSocket:
    """The listening side."""

    def __init__(self, sandbox: Steered, path: Path) -> None:
        self._sandbox = sandbox
        self.path = path
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._commands: dict[str, Callable[[Answer], Awaitable[Answer]]] = {
            "report": self._report,
            "addresses": self._addresses,
            "flush": self._flush,
            "behaviour": self._behaviour,
            "dns": self._dns,
            "wait": self._wait,
        }

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
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    async def _report(self, _: Answer) -> Answer:
        self._sandbox.ledger.flush()
        return self._sandbox.ledger.report()

    async def _addresses(self, _: Answer) -> Answer:
        return self._sandbox.endpoints()

    async def _flush(self, _: Answer) -> Answer:
        self._sandbox.ledger.flush()
        return {}

    async def _behaviour(self, command: Answer) -> Answer:
        await self._sandbox.set_behaviour(command["domain"], command["set"], tuple(command.get("sources", ())))
        return {}

    async def _dns(self, command: Answer) -> Answer:
        mode = command["mode"]
        if mode not in get_args(DnsMode):
            raise ValueError(f"no mode {mode!r}; there are: {', '.join(get_args(DnsMode))}")
        self._sandbox.pause_dns(mode, command.get("domain", ""))
        return {}

    async def _wait(self, command: Answer) -> Answer:
        """Both outcomes are an answer: "reached" tells which."""
        reached = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(float(command.get("seconds", 60)), _MAX_WAIT)):
                await self._sandbox.ledger.accepted_at_least(int(command["messages"]))
                reached = True
        return {"reached": reached, "messages": self._sandbox.ledger.messages}


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
