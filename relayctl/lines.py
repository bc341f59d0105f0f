"""Printing lines as they come: a batch counts once it is with the reader. Ended by SIGINT, SIGTERM or a reader that left."""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

END_SECONDS = 2.0  # for a batch that is being written when a signal comes


class Lines:
    """To standard output. ``printed``: how many so far."""

    def __init__(self) -> None:
        self.printed = 0
        sys.stdout.flush()
        self._between = asyncio.Event()  # no batch is half written
        self._between.set()

    async def print_all(
        self, batches: AsyncIterator[Sequence[bytes]], written: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """``written`` is awaited after each batch whose lines (they come without their ends) are all out."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, over.set)
        printing = asyncio.create_task(self._print(batches, written))
        stopping = asyncio.create_task(over.wait())
        try:
            await asyncio.wait({printing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not printing.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(END_SECONDS):
                        await self._between.wait()
        finally:
            stopping.cancel()
            printing.cancel()
            with suppress(asyncio.CancelledError):
                await self._ended(printing)

    async def _print(
        self, batches: AsyncIterator[Sequence[bytes]], written: Callable[[], Awaitable[None]] | None
    ) -> None:
        async for batch in batches:
            self._between.clear()
            await self._write(b"".join(line + b"\n" for line in batch))
            self.printed += len(batch)
            if written is not None:
                await written()
            self._between.set()

    async def _ended(self, printing: asyncio.Task[None]) -> None:
        """A reader that has read enough is no error."""
        try:
            await printing
        except BrokenPipeError:
            reader_left()

    async def _write(self, data: bytes) -> None:
        """In a thread that may be left behind: a reader that has stopped must hold up neither the lease nor the end."""
        if len(data) <= select.PIPE_BUF and _takes():
            _put(data)
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def write() -> None:
            error: OSError | None = None
            try:
                _put(data)
            except OSError as failed:
                error = failed
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, done, error)

        threading.Thread(target=write, daemon=True).start()
        await done


def reader_left() -> None:
    """What is still in Python's buffer goes nowhere: at its end the process would stumble over it once more."""
    with suppress(io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, sys.stdout.fileno())
        finally:
            os.close(null)


def _takes() -> bool:
    """Whether so little as PIPE_BUF goes out at once (pipe(7))."""
    try:
        return bool(select.select([], [sys.stdout], [], 0)[1])
    except io.UnsupportedOperation:
        return False


def _put(data: bytes) -> None:
    """Past Python's buffer, where there is a file: a thread that is left behind in it would not let the process end."""
    try:
        descriptor = sys.stdout.fileno()
    except io.UnsupportedOperation:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _settle(done: asyncio.Future[None], error: OSError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
