"""The asyncio.Protocol under a session: bytes between a transport and the dialogue, and the time-out of each phase.

No streams: two wake-ups and two writes are what a message of 10 KB may cost. A time-out is re-armed by whole replies
only, so that a peer that drips bytes gains nothing. One coroutine at a time (``busy``) reads the events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal, cast

from config.settings import TimeoutSettings
from delivery.connect import Kind
from delivery.dialogue import Answer, Closing, Dialogue, Done, Event, Fault, Send
from delivery.reply import Phase


class Gone:
    """Event of the wire: the connection has ended and no transaction was under way."""


GONE = Gone()


class Wire(asyncio.Protocol):
    """``failure``: (kind, phase, text) why the connection ended; after it nothing is written any more."""

    def __init__(self, dialogue: Dialogue, limits: Mapping[Phase, float]) -> None:
        self.dialogue = dialogue
        self.limits = limits
        self.busy = True
        self.on_lost: Callable[[str], None] | None = None  # the end came while nobody was reading
        self.failure: tuple[Kind, Phase, str] | None = None
        self.loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.ready: deque[Event | Gone] = deque()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False  # the transport has not written everything yet

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    # -- the coroutine's side --------------------------------------------------------------------------------------

    def adopt(self, transport: asyncio.Transport) -> None:
        """Write and read through ``transport`` from now on. Paused then means: not all written."""
        self._transport = transport
        transport.set_write_buffer_limits(high=1)  # with 0 the TLS transports pause for ever: they test ≥, not >

    async def next(self) -> Event | Gone:
        while not self.ready:
            if self.failure is not None:
                return GONE
            await self._wake()
        return self.ready.popleft()

    async def drained(self) -> bool:
        """All is in the kernel's hands. False: the peer spoke or went away first."""
        while self._paused and not self.ready:
            await self._wake()
        return not self.ready

    def write(self, data: bytes | memoryview) -> None:
        """Write, and wait for what follows no longer than the phase allows."""
        if self.failure is None:
            self.transport.write(data)
            self.arm()

    def perform(self, events: list[Event]) -> None:
        """Write what is to be written; the other events are for the coroutine."""
        for event in events:
            match event:
                case Send(data):
                    self.write(data)
                case Fault(text):
                    self.drop("lost", text)
                case Closing(reply):
                    self.drop("lost", str(reply))
                case Answer(Phase.STARTTLS, reply) if reply.positive:
                    self.transport.pause_reading()  # what follows belongs to the handshake
                    self._push(event)
                case _:
                    self._push(event)

    def drop(self, kind: Literal["lost", "timeout"], text: str) -> None:
        """End the connection at once. The first reason given stays; harmless when it is gone already."""
        self._end(kind, text)
        if self._transport is not None:
            self._transport.abort()

    async def _wake(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _push(self, event: Event | Gone) -> None:
        self.ready.append(event)
        self._stir()

    def _stir(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, kind: Literal["lost", "timeout"], text: str) -> None:
        if self.failure is not None:
            return
        self.failure = (kind, self.dialogue.phase, text)
        if self.dialogue.ear is not None:
            self.dialogue.ear("*", self.dialogue.phase, text)
        self.disarm()
        self._push(Done(self.dialogue.lost(text)) if self.dialogue.in_transaction else GONE)
        if not self.busy and self.on_lost is not None:
            self.on_lost(text)

    # -- time ------------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        phase = self.dialogue.phase
        self._timer = self.loop.call_later(self.limits[phase], self._time_out, phase)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, phase: Phase) -> None:
        self.drop("timeout", f"no answer within {self.limits[phase]:g} s")

    # -- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.adopt(cast(asyncio.Transport, transport))
        self.arm()

    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            return
        before = self.dialogue.answered
        self.perform(self.dialogue.feed(data))
        if self.ready:  # the coroutine speaks next, and arms then
            self.disarm()
        elif self._timer is not None and self.dialogue.answered != before:
            self.arm()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._stir()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("lost", f"connection lost: {exc}" if exc else "connection closed by the peer")
        if not self.closed.done():
            self.closed.set_result(None)


def deadlines(timeouts: TimeoutSettings) -> dict[Phase, float]:
    """Seconds per phase. The settings see to it that the end of data gets 300 s at least (RFC 1047)."""
    return {
        Phase.CONNECT: timeouts.connect,
        Phase.GREETING: timeouts.greeting,
        Phase.EHLO: timeouts.ehlo,
        Phase.STARTTLS: timeouts.starttls,
        Phase.TLS: timeouts.starttls,
        Phase.AUTH: timeouts.mail,
        Phase.MAIL: timeouts.mail,
        Phase.RCPT: timeouts.rcpt,
        Phase.DATA: timeouts.data,
        Phase.CONTENT: timeouts.content,
        Phase.END_OF_DATA: timeouts.end_of_data,
        Phase.QUIT: timeouts.quit,
    }
