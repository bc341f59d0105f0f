"""The status port of a process: GET /metrics, /healthz, /readyz over HTTP/1.0, and nothing else.

Own and small, because a web framework has no place in a mail process. Bounded: a request is at most 8 KiB
and 10 s, an answer 10 s, 32 connections at once. Metrics are rendered in a thread: 2,000 series take 15 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from config.addresses import host_and_port, refuse_public

MOST_BYTES = 8192
REQUEST_SECONDS = 10.0
MOST_CONNECTIONS = 32

Answer = tuple[HTTPStatus, str, bytes]


class StatusServer:
    """``ready`` gives the reasons why the process is not ready; none = ready."""

    def __init__(
        self,
        registry: CollectorRegistry,
        ready: Callable[[], Sequence[str]],
        *,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._registry = registry
        self._ready = ready
        self._seconds = request_seconds
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> tuple[str, int] | None:
        """Listens at "host:port" (port 0 = any free one) and gives what it got; "" = nowhere.

        ValueError for an address that the outside could reach, OSError when it cannot be bound.
        """
        if not address:
            return None
        host, port = host_and_port(address)
        refuse_public(host)
        self._server = await asyncio.start_server(self._serve, host, port, limit=MOST_BYTES)
        bound = self._server.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """No new connections; those open are cut."""
        if self._server is not None:
            self._server.close()
            for task in tuple(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await self._exchange(reader, writer)
        except (OSError, TimeoutError):
            writer.transport.abort()
        except asyncio.CancelledError:  # only close() cancels; there is nobody above to tell
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                head = await reader.readuntil(b"\r\n\r\n")
            reply = await self._reply(head)
        except asyncio.IncompleteReadError:
            return
        except TimeoutError:
            reply = _http(_text(HTTPStatus.REQUEST_TIMEOUT, "the request took too long"))
        except asyncio.LimitOverrunError:
            reply = _http(
                _text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request has at most {MOST_BYTES} bytes")
            )
        writer.write(reply)
        async with asyncio.timeout(self._seconds):
            await writer.drain()

    async def _reply(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _http(_text(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request"))
        if words[0] not in (b"GET", b"HEAD"):
            return _http(_text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only"))
        return _http(await self._answer(words[1].partition(b"?")[0]), body=words[0] == b"GET")

    async def _answer(self, path: bytes) -> Answer:
        if path == b"/metrics":
            rendered = await asyncio.to_thread(generate_latest, self._registry)
            return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, rendered
        if path == b"/healthz":
            return _text(HTTPStatus.OK, "alive")
        if path == b"/readyz":
            reasons = list(self._ready())
            status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
            return status, "application/json", orjson.dumps({"ready": not reasons, "reasons": reasons})
        return _text(HTTPStatus.NOT_FOUND, "here are /metrics, /healthz and /readyz")


def _text(status: HTTPStatus, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", text.encode() + b"\n"


def _http(answer: Answer, *, body: bool = True) -> bytes:
    status, kind, content = answer
    head = (
        f"HTTP/1.0 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (content if body else b"")
