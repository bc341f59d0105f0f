"""CPU per message of aiosmtpd's stock listener and of relayd's, in one run: the ratio is what counts, not the rate.

    python -m benchmarks.bench_listener [--messages 4000] [--size 10240] [--sessions 20]

The server runs in a process of its own (uvloop, a queue that keeps nothing) and tells its CPU time before and
after; the client is the same for both. Columns: reused = one connection per session, new = one per message.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from aiosmtpd.smtp import SMTP
from prometheus_client import CollectorRegistry

from config import logs
from config.settings import LogSettings, Settings
from mailqueue.message import Message, new_id
from relayd.server import Relayd
from tests.listening import Forgiving

LINE = b"x" * 74 + b"\r\n"
HEAD = b"From: a@sender.example\r\nTo: b@recipient.example\r\nSubject: benchmark\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Kept:
    kind: str
    id: str
    queued: int = 1


class KeepsNothing:
    accepting = True
    stopped = ""

    def new_id(self, account: str, idempotency_key: str | None = None) -> str:
        return new_id()

    async def campaigns(self) -> dict[str, set[str]]:
        return {}

    async def put(self, message: Message, **_: object) -> Kept:
        return Kept("queued", message.envelope.id)

    def emit(self, event: object) -> None: ...


class StockHandler:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 ok"


async def start_stock() -> int:
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(StockHandler(), hostname="stock.test", loop=loop, enable_SMTPUTF8=False), "127.0.0.1", 0
    )
    return int(server.sockets[0].getsockname()[1])


async def start_ours() -> int:
    listener = {"name": "bench", "address": "127.0.0.1", "port": 0, "tls": "none"}
    settings = Settings.model_validate(
        {
            "relayd": {"hostname": "ours.test", "listeners": [listener], "max_commands": 10_000_000},
            "accounts": [{"name": "bench", "networks": ["127.0.0.0/16"]}],
        }
    )
    relayd = Relayd(settings, KeepsNothing(), CollectorRegistry(), Forgiving())
    await relayd.start()
    return relayd.addresses["bench"][1]


def serve(kind: str, pipe: Connection) -> None:
    """Tells its port, then its CPU seconds each time it is asked, until it reads None."""

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # log lines are written, nobody reads them
    logs.configure(LogSettings(level="info"), "relayd")

    async def scenario() -> None:
        pipe.send(await (start_stock() if kind == "stock" else start_ours()))
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def asked() -> None:
            if pipe.recv() is None:
                done.set()
            else:
                pipe.send(time.process_time())

        loop.add_reader(pipe.fileno(), asked)
        await done.wait()

    uvloop.run(scenario())


async def expect(reader: asyncio.StreamReader, code: bytes) -> None:
    while True:
        line = await reader.readuntil(b"\n")
        if line[:4] == code + b" ":
            return
        assert line[:4] == code + b"-", line


async def client(port: int, messages: int, content: bytes, *, reuse: bool, pipelined: bool) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    for _ in range(messages):
        if connection is None:
            connection = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = connection
            await expect(reader, b"220")
            writer.write(b"EHLO client.example\r\n")
            await expect(reader, b"250")
        await send(reader, writer, content, pipelined=pipelined)
        if not reuse:
            writer.write(b"QUIT\r\n")
            await expect(reader, b"221")
            writer.close()
            connection = None
    if connection is not None:
        connection[1].close()


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes, *, pipelined: bool) -> None:
    commands = (b"MAIL FROM:<a@sender.example>\r\n", b"RCPT TO:<b@recipient.example>\r\n", b"DATA\r\n")
    if pipelined:
        writer.write(b"".join(commands))
    for command, code in zip(commands, (b"250", b"250", b"354"), strict=True):
        if not pipelined:
            writer.write(command)
        await expect(reader, code)
    writer.write(content)
    await expect(reader, b"250")


def measure(kind: str, options: argparse.Namespace, *, reuse: bool, pipelined: bool = False) -> float:
    """CPU milliseconds of the server per message."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, theirs), daemon=True)
    process.start()
    port = ours.recv()
    content = HEAD + LINE * max(1, (options.size - len(HEAD)) // len(LINE)) + b".\r\n"

    async def load(messages: int) -> None:
        each = max(1, messages // options.sessions)
        await asyncio.gather(
            *(client(port, each, content, reuse=reuse, pipelined=pipelined) for _ in range(options.sessions))
        )

    def cpu() -> float:
        ours.send("cpu")
        return float(ours.recv())

    try:
        uvloop.run(load(options.messages // 10))  # warm
        before = cpu()
        uvloop.run(load(options.messages))
        spent = cpu() - before
    finally:
        process.kill()
        process.join()
    return spent * 1000 / options.messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--sessions", type=int, default=20)
    options = parser.parse_args()
    print(f"server CPU ms per message of {options.size} octets, {options.sessions} sessions, uvloop")
    for name, stock, ours in (
        ("reused", {"reuse": True}, {"reuse": True}),
        ("reused, pipelined", {"reuse": True, "pipelined": True}, {"reuse": True, "pipelined": True}),
        ("new", {"reuse": False}, {"reuse": False}),
    ):
        a, b = measure("stock", options, **stock), measure("ours", options, **ours)
        print(f"{name:20} stock {a:.3f}   ours {b:.3f}   ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
