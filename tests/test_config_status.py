"""The status port against a raw socket: whole, byte by byte, too much, too slow."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from prometheus_client import CollectorRegistry, Counter

from config.status import MOST_CONNECTIONS, StatusServer

Scenario = Callable[[str, int, list[str]], Awaitable[None]]


def serve(scenario: Scenario, seconds: float = 10.0) -> None:
    async def main() -> None:
        registry = CollectorRegistry()
        Counter("tambo_words", "Words", registry=registry).inc(3)
        reasons: list[str] = []
        server = StatusServer(registry, lambda: reasons, request_seconds=seconds)
        bound = await server.start("127.0.0.1:0")
        assert bound is not None and bound[1] > 0
        try:
            async with asyncio.timeout(20):
                await scenario(*bound, reasons)
        finally:
            await server.close()
        with pytest.raises(OSError):
            await asyncio.open_connection(*bound)

    uvloop.run(main())


async def ask(host: str, port: int, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields in lower case, body; the pieces are written one by one."""
    reader, writer = await asyncio.open_connection(host, port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), body


def test_metrics_whole_and_byte_by_byte() -> None:
    async def scenario(host: str, port: int, reasons: list[str]) -> None:
        request = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
        whole = await ask(host, port, request)
        pieces = await ask(host, port, *(request[i : i + 1] for i in range(len(request))))
        tail = await ask(host, port, request + b"GET /healthz HTTP/1.1\r\n\r\n")
        assert whole == pieces == tail
        status, fields, body = whole
        assert status == 200 and b"tambo_words_total 3.0\n" in body
        assert fields["content-type"].startswith("text/plain; version=0.0.4")
        assert int(fields["content-length"]) == len(body) and fields["connection"] == "close"

    serve(scenario)


def test_health_and_readiness() -> None:
    async def scenario(host: str, port: int, reasons: list[str]) -> None:
        assert (await ask(host, port, b"GET /healthz HTTP/1.0\r\n\r\n"))[0::2] == (200, b"alive\n")
        status, fields, body = await ask(host, port, b"GET /readyz HTTP/1.0\r\n\r\n")
        assert (status, fields["content-type"]) == (200, "application/json")
        assert json.loads(body) == {"ready": True, "reasons": []}
        reasons.append("queue: down")
        status, _, body = await ask(host, port, b"GET /readyz HTTP/1.0\r\n\r\n")
        assert status == 503 and json.loads(body) == {"ready": False, "reasons": ["queue: down"]}
        status, fields, body = await ask(host, port, b"HEAD /healthz HTTP/1.0\r\n\r\n")
        assert (status, fields["content-length"], body) == (200, "6", b"")

    serve(scenario)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.0\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics SMTP\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\xff\x00 \xff \xff\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.0\r\nX: " + b"x" * 9000, 431),
    ],
)
def test_refused(request_: bytes, status: int) -> None:
    async def scenario(host: str, port: int, reasons: list[str]) -> None:
        assert (await ask(host, port, request_))[0] == status

    serve(scenario)


def test_slow_and_silent_clients() -> None:
    async def scenario(host: str, port: int, reasons: list[str]) -> None:
        assert (await ask(host, port, b"GET /met"))[0] == 408
        assert (await ask(host, port))[0] == 408

    serve(scenario, seconds=0.05)


def test_a_client_that_goes_away_and_close_with_open_connections() -> None:
    async def scenario(host: str, port: int, reasons: list[str]) -> None:
        _, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET")
        writer.close()
        await writer.wait_closed()
        waiting = await asyncio.open_connection(host, port)
        assert (await ask(host, port, b"GET /healthz HTTP/1.0\r\n\r\n"))[0] == 200
        waiting[1].transport.abort()
        left.append(socket.create_connection((host, port)))  # open and silent: close() must not wait for it

    left: list[socket.socket] = []
    serve(scenario)
    left[0].close()


def test_connections_are_bounded() -> None:
    async def scenario(host: str, port: int, reasons: list[str]) -> None:
        held = [await asyncio.open_connection(host, port) for _ in range(MOST_CONNECTIONS)]
        with pytest.raises((ConnectionError, IndexError)):  # reset, or closed without a word
            await ask(host, port, b"GET /healthz HTTP/1.0\r\n\r\n")
        for _, writer in held:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for _, writer in held), return_exceptions=True)
        while True:
            try:
                if (await ask(host, port, b"GET /healthz HTTP/1.0\r\n\r\n"))[0] == 200:
                    return
            except (ConnectionError, IndexError):
                continue

    serve(scenario)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "8.8.8.8:0", "localhost:0", "127.0.0.1"])
def test_addresses_refused(address: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError):
            await StatusServer(CollectorRegistry(), list).start(address)

    asyncio.run(main())


def test_no_address_no_port() -> None:
    async def main() -> None:
        server = StatusServer(CollectorRegistry(), list)
        assert await server.start("") is None
        await server.close()

    asyncio.run(main())
