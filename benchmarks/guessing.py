"""Clients of an AUTH run, as a process of their own: guessers at a pace, or a good client that is timed.

python -m benchmarks.guessing guess|work PORT SECONDS [RATE]   → one JSON object on standard output
"""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import orjson
import uvloop

USER, PASSWORD = "app", "correct horse battery"
GOOD_ADDRESS, FRESH_ADDRESS = "127.0.0.9", "127.0.0.10"
GUESSERS = 300
ADDRESSES = 8192  # 127.32.0.0 and on, taken in turn
USERS = (USER, "registry", "admin", "payroll")  # half of the guesses; the other half tries users that are none
CYCLE_SECONDS = 0.1  # between two visits of the good client

_CONTENT = b"Subject: aviso\r\nFrom: <a@entidad.test>\r\n\r\ntexto\r\n.\r\n"


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


@dataclass(slots=True)
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def secured(cls, port: int, source: str, tls: ssl.SSLContext) -> Wire | str:
        """After STARTTLS and the second EHLO; or the reply that sent us away."""
        wire = cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))
        for said in (b"", b"EHLO client.test\r\n", b"STARTTLS\r\n"):
            reply = await wire.ask(said)
            if reply[:1] != "2":
                wire.writer.close()
                return reply
        await wire.writer.start_tls(tls)
        await wire.ask(b"EHLO client.test\r\n")
        return wire

    async def ask(self, said: bytes) -> str:
        """The last line of the reply, "" at the end of input."""
        if said:
            self.writer.write(said)
        while line := await self.reader.readline():
            if line[3:4] != b"-":
                break
        return line.decode()


def auth(user: str, password: str) -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()) + b"\r\n"


@dataclass(slots=True)
class Guessing:
    """``heard``: replies to attempts by code; a connection that is refused at once is "421 at connect"."""

    port: int
    until: float
    rate: float
    heard: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    _slot: float = 0.0
    _turn: int = 0

    async def run(self) -> None:
        self._slot = time.monotonic()
        tls, rng = context(), random.Random(1)
        await asyncio.gather(*(self._guess(tls, rng) for _ in range(GUESSERS)))

    async def _pace(self) -> None:
        self._slot += 1 / self.rate
        wait = self._slot - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)

    async def _guess(self, tls: ssl.SSLContext, rng: random.Random) -> None:
        while time.monotonic() < self.until:
            self._turn += 1
            number = self._turn % ADDRESSES
            try:
                wire = await Wire.secured(self.port, f"127.32.{number >> 8}.{number & 255}", tls)
                if isinstance(wire, str):
                    await self._pace()
                    self.heard[f"{wire[:3]} at connect"] += 1
                else:
                    await self._guess_on(wire, rng)
            except (OSError, ssl.SSLError):
                self.heard["lost"] += 1

    async def _guess_on(self, wire: Wire, rng: random.Random) -> None:
        while time.monotonic() < self.until:
            await self._pace()
            user = rng.choice(USERS) if rng.random() < 0.5 else f"u{rng.random()}"
            began = time.monotonic()
            reply = await wire.ask(auth(user, f"guess{rng.random()}"))
            self.slowest = max(self.slowest, time.monotonic() - began)
            if reply[:3] in ("", "421"):  # said before the attempt was read: it is none
                self._slot -= 1 / self.rate
                break
            self.heard[reply[:3]] += 1
        wire.writer.close()


async def visit(port: int, source: str, tls: ssl.SSLContext) -> str:
    """Connect, STARTTLS, AUTH, one message: the first reply that is not as it should be, or "250"."""
    wire = await Wire.secured(port, source, tls)
    if isinstance(wire, str):
        return wire[:3]
    try:
        steps = (
            (auth(USER, PASSWORD), "235"),
            (b"MAIL FROM:<a@entidad.test>\r\n", "250"),
            (b"RCPT TO:<b@gob.test>\r\n", "250"),
            (b"DATA\r\n", "354"),
            (_CONTENT, "250"),
        )
        for said, wanted in steps:
            reply = await wire.ask(said)
            if reply[:3] != wanted:
                return reply[:3]
        return "250"
    finally:
        wire.writer.close()


async def work(port: int, until: float) -> dict[str, object]:
    """The good client's visits, one after the other: seconds each, and what it heard; beside it a client that is good
    and was never here, which may be put off while strangers crowd the door."""
    tls, seconds, heard = context(), list[float](), Counter[str]()
    while time.monotonic() < until:
        began = time.monotonic()
        heard[await visit(port, GOOD_ADDRESS, tls)] += 1
        seconds.append(time.monotonic() - began)
        await asyncio.sleep(max(CYCLE_SECONDS - seconds[-1], 0))
    return {"seconds": seconds, "heard": heard}


async def fresh(port: int, patience: float) -> dict[str, object]:
    """A good client that was never here: how often it is put off before it gets in, trying again each second."""
    tls, began, tries = context(), time.monotonic(), 0
    while time.monotonic() - began < patience:
        tries += 1
        if await visit(port, FRESH_ADDRESS, tls) == "250":
            return {"tries": tries, "seconds": time.monotonic() - began}
        await asyncio.sleep(1)
    return {"tries": tries, "seconds": None}


def main() -> int:
    kind, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    until = time.monotonic() + seconds
    if kind == "guess":
        guessing = Guessing(port, until, float(sys.argv[4]))
        uvloop.run(guessing.run())
        told: dict[str, object] = {"heard": guessing.heard, "slowest": guessing.slowest}
    elif kind == "work":
        told = uvloop.run(work(port, until))
    else:
        told = uvloop.run(fresh(port, seconds))
    print(orjson.dumps(told).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
