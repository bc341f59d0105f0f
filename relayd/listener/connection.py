"""The connection under a session: bytes in, replies out, and what a peer may make us hold or wait for.

Replaces aiosmtpd's timer and push, keeps its protocol plumbing and state objects. Replies to pipelined commands
are gathered and written once, when the session is about to wait for input (RFC 2920 §3.2).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Protocol, cast

from aiosmtpd.smtp import SMTP

from config.settings import RelaydSettings
from mailqueue.traces import Tap
from relayd import replies
from relayd.accounts import Accounts
from relayd.auth import Authenticator
from relayd.listener.overhear import Overheard
from relayd.metrics import ListenerMetrics
from relayd.replies import Reply
from relayd.volume import Volume

READ_AHEAD = 65_536  # octets; reading pauses at twice as many
LINE_OCTETS = 12_290  # the longest line of all, AUTH's with its CRLF (RFC 4954 §4)
LINGER_SECONDS = 5.0  # for the last reply to leave
HANDSHAKE_SECONDS = 30.0


class Register(Protocol):
    """Where open sessions are known, for the drain."""

    def joined(self, session: Connection) -> None: ...
    def left(self, session: Connection) -> None: ...


class Hooks(Protocol):
    """What the sessions call of a handler by themselves; its handle_* methods aiosmtpd finds by name."""

    def rejected(self, server: Any, transaction: Any, reply: Reply, recipient: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection that may have a session. ``known``: the address is the client's own, not that of a balancer which
    does not say whom it speaks for. ``tls``: the handshake is done."""

    address: str
    known: bool = True
    tls: bool = False


class Input(Protocol):
    """The private half of asyncio.StreamReader that bulk reading needs; the contract test keeps an eye on it."""

    _buffer: bytearray
    _eof: bool
    _paused: bool
    _transport: asyncio.BaseTransport

    async def _wait_for_data(self, func_name: str) -> None: ...
    def _maybe_resume_transport(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every session of a listener shares. Built anew on reload; open sessions keep theirs."""

    listener: str
    settings: RelaydSettings
    handler: Hooks
    accounts: Accounts
    authenticator: Authenticator | None  # None = there is no AUTH here
    metrics: ListenerMetrics
    register: Register
    volume: Volume
    mould: Mapping[str, object]  # see :func:`mould`
    tap: Tap


def mould(
    handler: object, settings: RelaydSettings, tls: SSLContext | None, loop: asyncio.AbstractEventLoop
) -> Mapping[str, object]:
    """What aiosmtpd's constructor leaves in an object; every session begins as a copy of it."""
    return vars(
        SMTP(
            handler,
            data_size_limit=settings.max_message_bytes,
            hostname=settings.hostname,
            tls_context=tls,
            timeout=settings.idle_seconds,
            loop=loop,
        )
    )


class Connection(SMTP):
    """`busy` is true from an accepted MAIL to the reply that ends the transaction; `address` is the client's."""

    def __init__(self, around: Surroundings, arrival: Arrival, loop: asyncio.AbstractEventLoop) -> None:
        # SMTP.__init__ ran once, for the mould: its introspection would cost more than all else of a connection.
        self.__dict__.update(around.mould)
        asyncio.StreamReaderProtocol.__init__(
            self, asyncio.StreamReader(READ_AHEAD, loop), client_connected_cb=self._cb_client_connected, loop=loop
        )
        self.around = around
        self.address = arrival.address
        self.known = arrival.known
        self.tls_active = arrival.tls
        self.busy = False
        self._overheard: Overheard | None = None
        self._replies: list[bytes] = []
        self._errors = 0  # 5xx replies since the last message that got through
        self._ending = False  # nothing more is read or said
        self._draining = False
        self._overlong = False
        self.content_until = math.inf  # loop time by which content that comes between commands must be whole
        self._deadline = math.inf
        self._deadline_reply = replies.IDLE
        self._alarm_at = math.inf

    # -- who listens ----------------------------------------------------------------------------------------------

    @property
    def account_name(self) -> str:
        """ "" while it is nobody's."""
        return ""

    def overheard(self) -> Overheard:
        """Asked for while the tap is on."""
        if self._overheard is None:
            self._overheard = Overheard(self.around.tap, self.around.listener, self.address)
        return self._overheard

    def remark(self, text: str) -> None:
        """What is neither said nor heard: fit to be shown."""
        if self.around.tap.on:
            self.overheard().hear(self.account_name, "*", text)

    # -- connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.around.register.joined(self)
        super().connection_made(transport)
        self.remark(f"connected from {self.address}")
        self._input = cast(Input, self._reader)

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = True
        self.remark(f"connection lost: {error}" if error else "connection ended")
        self.around.register.left(self)
        super().connection_lost(error)

    def eof_received(self) -> bool | None:
        """What came before the end of input is still answered; only the connection's loss cancels."""
        self._reader.feed_eof()
        return not self.tls_active

    def hang_up(self, reply: Reply | None = None) -> None:
        """Say a last word, close, and abort if it does not leave. Safe to call from outside the loop and twice."""
        if self._ending or self.transport is None:
            return
        if reply is not None:
            self.say(reply)
        self._ending = True
        self._write()
        transport = cast(asyncio.Transport, self.transport)
        transport.close()
        if self.transport is not None and self._timeout_handle is not None:
            self._timeout_handle.cancel()
            self._timeout_handle = self.loop.call_later(LINGER_SECONDS, transport.abort)

    def drain(self) -> None:
        """The process is going: an idle session ends now, a busy one after its transaction."""
        self._draining = True
        if not self.busy:
            self.hang_up(replies.SHUTTING_DOWN)

    # -- replies --------------------------------------------------------------------------------------------------

    def say(self, reply: Reply) -> None:
        """Queue a reply; it leaves with the next flush."""
        if self._ending:
            return
        self._replies.append(reply.line)
        if self.around.tap.on:
            self.overheard().reply(self.account_name, reply.line)
        if reply.reason:
            self.around.metrics.rejected(reply.reason)
            self._errors += reply.code >= 500

    def say_raw(self, line: bytes) -> None:
        """A line that carries no enhanced code: banner, EHLO list, 334."""
        if not self._ending:
            self._replies.append(line)
            if self.around.tap.on:
                self.overheard().reply(self.account_name, line)

    async def push(self, status: Reply | str | bytes) -> None:
        """aiosmtpd's way to answer, for whatever of it is still in use: no reply without an enhanced code."""
        if isinstance(status, Reply):
            self.say(status)
            return
        text = status if isinstance(status, str) else status.decode("ascii", "replace")
        self.say_raw(replies.with_status(text).encode("ascii", "replace") + b"\r\n")

    def _write(self) -> None:
        if self._replies and self.transport is not None:
            self._writer.write(b"".join(self._replies) if len(self._replies) > 1 else self._replies[0])
            self._replies.clear()

    async def _flush(self) -> None:
        if self._replies:
            self._write()
            await self._writer.drain()

    # -- waiting --------------------------------------------------------------------------------------------------

    def _reset_timeout(self, duration: float | None = None) -> None:
        self._watch(self.loop.time() + (duration or self._timeout_duration))

    def _watch(self, deadline: float, reply: Reply = replies.IDLE) -> None:
        """The session ends at `deadline` (loop time) unless told otherwise before. Cheap: the timer moves lazily."""
        self._deadline = deadline
        self._deadline_reply = reply
        if deadline < self._alarm_at:
            self._arm(deadline)

    def _arm(self, at: float) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._alarm_at = at
        self._timeout_handle = self.loop.call_at(at, self._timeout_cb)

    def _timeout_cb(self) -> None:
        now = self.loop.time()
        if now >= self._deadline:
            self.hang_up(self._deadline_reply)
        else:
            self._arm(min(self._deadline, now + self._timeout_duration))

    async def _more(self, deadline: float, reply: Reply = replies.IDLE) -> bool:
        """Send what is due and wait for input until `deadline`; False when there will be none."""
        self._watch(deadline, reply)
        await self._flush()
        reader = self._input
        if reader._eof or self._ending:
            return False
        await reader._wait_for_data("session")
        return not self._ending

    async def read_line(self) -> bytes | None:
        """Next line with its end; b"" for one over the limit (already dropped); None when the input has ended."""
        deadline = min(self.loop.time() + self._timeout_duration, self.content_until)
        while (line := self._take_line()) is None:
            if not await self._more(deadline):
                return None
        self._deadline = math.inf  # at work: our own time is not the client's
        return line

    def _take_line(self) -> bytes | None:
        buffer = self._input._buffer
        end = buffer.find(b"\n") + 1
        if not end:
            if len(buffer) > LINE_OCTETS:
                self._overlong = True
                buffer.clear()
                self._input._maybe_resume_transport()
            return None
        line = bytes(buffer[:end])
        del buffer[:end]
        self._input._maybe_resume_transport()
        if self._overlong or end > LINE_OCTETS:
            self._overlong = False
            return b""
        return line
