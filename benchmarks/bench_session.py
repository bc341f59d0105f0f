"""CPU of one delivered message, client side only: delivery.session beside aiosmtplib, same sink, same run.

    python benchmarks/bench_session.py [--messages 4000] [--sessions 20] [--sizes 10240,102400]

The sink is a process of its own that reads everything and answers; the figure is this process's CPU time (user and
system) per message. Rounds alternate, the median counts. Trust ratios more than milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiosmtplib
import uvloop

from config.settings import TimeoutSettings
from delivery.session import Session
from delivery.transaction import Transaction

RECIPIENT = "recipient@in.test"
Sender = Callable[[int], Awaitable[None]]


class Sink(asyncio.Protocol):
    """Answers each command line, swallows content up to the dot; nothing else."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""
        self.content = False
        self.transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        replies = []
        while True:
            if self.content:
                end = self.buffer.find(b"\r\n.\r\n")
                if end < 0:
                    self.buffer = self.buffer[-4:]
                    break
                self.buffer, self.content = self.buffer[end + 5 :], False
                replies.append(b"250 2.0.0 queued\r\n")
                continue
            line, mark, rest = self.buffer.partition(b"\r\n")
            if not mark:
                break
            self.buffer = rest
            verb = line[:4].upper()
            if verb == b"DATA":
                self.content = True
                replies.append(b"354 go\r\n")
            elif verb == b"EHLO":
                replies.append(b"250-sink\r\n250-PIPELINING\r\n250-SIZE 0\r\n250 8BITMIME\r\n")
            elif verb == b"QUIT":
                replies.append(b"221 bye\r\n")
            else:
                replies.append(b"250 ok\r\n")
        self.transport.write(b"".join(replies))


def sink(pipe: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        server.close()

    uvloop.run(serve())


def message(size: int) -> bytes:
    head = b"From: a@out.test\r\nTo: recipient@in.test\r\nSubject: benchmark\r\n\r\n"
    return head + (b"x" * 74 + b"\r\n") * ((size - len(head)) // 76)


async def open_session(port: int) -> Session:
    return await Session.open(
        "mx.test", "127.0.0.1", port, source="127.0.1.1", hostname="out.test", timeouts=TimeoutSettings()
    )


async def ours(port: int, sessions: int, content: bytes, messages: int) -> None:
    async def one(count: int) -> None:
        session = await open_session(port)
        for _ in range(count):
            result = await session.send(Transaction("a@out.test", (RECIPIENT,), content))
            assert result.recipients[0].delivered, result
        await session.quit()

    await asyncio.gather(*(one(messages // sessions) for _ in range(sessions)))


async def ours_hooked(port: int, sessions: int, content: bytes, messages: int) -> None:
    """With both hooks, as the engine uses it."""

    async def yes() -> bool:
        return True

    async def one(count: int) -> None:
        session = await open_session(port)
        for _ in range(count):
            await session.send(
                Transaction("a@out.test", (RECIPIENT,), content, before_mail=lambda: True, before_dot=yes)
            )
        await session.quit()

    await asyncio.gather(*(one(messages // sessions) for _ in range(sessions)))


async def ours_new_connection(port: int, sessions: int, content: bytes, messages: int) -> None:
    async def one(count: int) -> None:
        for _ in range(count):
            session = await open_session(port)
            await session.send(Transaction("a@out.test", (RECIPIENT,), content))
            await session.quit()

    await asyncio.gather(*(one(messages // sessions // 4) for _ in range(sessions)))


async def theirs(port: int, sessions: int, content: bytes, messages: int) -> None:
    async def one(count: int) -> None:
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, local_hostname="out.test", start_tls=False)
        await client.connect()
        for _ in range(count):
            await client.sendmail("a@out.test", [RECIPIENT], content)
        await client.quit()

    await asyncio.gather(*(one(messages // sessions) for _ in range(sessions)))


RUNS = {
    "aiosmtplib sendmail": (theirs, 1),
    "session": (ours, 1),
    "session, with hooks": (ours_hooked, 1),
    "session, new connection each": (ours_new_connection, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="10240,102400")
    options = parser.parse_args()
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.Process(target=sink, args=(its,))
    process.start()
    port = mine.recv()
    try:
        for size in map(int, options.sizes.split(",")):
            figures: dict[str, list[float]] = {name: [] for name in RUNS}
            content = message(size)
            for _ in range(options.rounds):
                for name, (run, share) in RUNS.items():
                    before = time.process_time()
                    uvloop.run(run(port, options.sessions, content, options.messages))
                    spent = time.process_time() - before
                    figures[name].append(spent * 1000 / (options.messages / share))
            base = statistics.median(figures["aiosmtplib sendmail"])
            print(f"{size} bytes, {options.messages} messages over {options.sessions} sessions, CPU ms per message")
            for name, values in figures.items():
                median = statistics.median(values)
                print(f"  {name:30} {median:7.3f}   ratio {median / base:5.2f}   {[round(v, 3) for v in values]}")
    finally:
        mine.send(None)
        process.join()


if __name__ == "__main__":
    main()
