"""One client connection: command lines in, replies out, and what a peer may make us hold or wait for.

Replaces aiosmtpd's command loop, timer and push, keeps its protocol plumbing and state objects. Replies to
pipelined commands are gathered and written once, when the session is about to wait for input (RFC 2920 §3.2).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import structlog
from aiosmtpd.smtp import SMTP

from config.settings import RelaydSettings
from relayd import policy, replies
from relayd.accounts import Accounts
from relayd.auth import Authenticator
from relayd.metrics import ListenerMetrics
from relayd.policy import Client
from relayd.replies import Reply

if TYPE_CHECKING:
    from relayd.handler import SubmissionHandler

READ_AHEAD = 65_536  # octets; reading pauses at twice as many
LINGER_SECONDS = 5.0  # for the last reply to leave
COMMAND_OCTETS = 512  # RFC 5321 §4.5.3.1.4, without CRLF: near enough
COMMAND_OCTETS_OF: Mapping[str, int] = {
    "MAIL": 2048,  # room for SIZE, BODY, AUTH, RET, ENVID
    "RCPT": 2048,
    "AUTH": 12_288,  # RFC 4954 §4
}
LINE_OCTETS = max(COMMAND_OCTETS_OF.values()) + 2
_REPLIES_HELD = 64
_WEB = frozenset({"GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "HOST:"})

log = structlog.get_logger()


class Register(Protocol):
    """Where open sessions are known, for the drain."""

    def joined(self, session: SessionProtocol) -> None: ...
    def left(self, session: SessionProtocol) -> None: ...


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
    handler: SubmissionHandler
    accounts: Accounts
    authenticator: Authenticator
    metrics: ListenerMetrics
    register: Register
    mould: Mapping[str, object]  # see :func:`mould`


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


class SessionProtocol(SMTP):
    """The loop without verbs. `busy` is true from an accepted MAIL to the reply that ends the transaction."""

    verbs: ClassVar[tuple[str, ...]] = ()  # what smtp_* methods there are; set for each concrete class

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.verbs = tuple(name.removeprefix("smtp_") for name in dir(cls) if name.startswith("smtp_"))

    def __init__(self, around: Surroundings, address: str, loop: asyncio.AbstractEventLoop) -> None:
        # SMTP.__init__ ran once, for the mould: its introspection would cost more than all else of a connection.
        self.__dict__.update(around.mould)
        asyncio.StreamReaderProtocol.__init__(
            self, asyncio.StreamReader(READ_AHEAD, loop), client_connected_cb=self._cb_client_connected, loop=loop
        )
        self._smtp_methods = {verb: getattr(self, "smtp_" + verb) for verb in self.verbs}
        # aiosmtpd keeps this dict on the class, for all connections: shadow it.
        self.command_size_limits: dict[str, int] = {}
        self._reset_command_sizes()
        self.around = around
        self.address = address
        self.account = around.accounts.by_address(address)
        self.authenticated = False
        self.tls_active = False
        self.client = Client(address, self.account, "", "SMTP")
        self.busy = False
        self.rejected_events = 0
        self.failed_auth = 0
        self._errors = 0
        self._commands = 0
        self._replies: list[bytes] = []
        self._ending = False  # nothing more is read or said
        self._draining = False
        self._overlong = False
        self._deadline = math.inf
        self._deadline_reply = replies.IDLE
        self._alarm_at = math.inf

    def _reset_command_sizes(self) -> None:
        self.command_size_limits.clear()
        self.command_size_limits.update(COMMAND_OCTETS_OF)

    # -- connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.around.register.joined(self)
        super().connection_made(transport)
        self._input = cast(Input, self._reader)

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = True
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
        if reply.reason:
            self.around.metrics.rejected(reply.reason)
            self._errors += reply.code >= 500

    def say_raw(self, line: bytes) -> None:
        """A line that carries no enhanced code: banner, EHLO list, 334."""
        if not self._ending:
            self._replies.append(line)

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
        deadline = self.loop.time() + self._timeout_duration
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

    # -- commands -------------------------------------------------------------------------------------------------

    async def _handle_client(self) -> None:
        try:
            self.say_raw(f"220 {self.hostname} ESMTP\r\n".encode("ascii"))
            while not self._ending and (line := await self.read_line()) is not None:
                await self._obey(line)
                if len(self._replies) >= _REPLIES_HELD:
                    self._reset_timeout()  # a client that does not read its replies is idle
                    await self._flush()
                    await asyncio.sleep(0)  # a long pipeline takes turns with the other sessions
        except ConnectionError:
            pass
        except Exception:
            log.exception("session failed", listener=self.around.listener, client=self.address)
        self.hang_up()

    async def _obey(self, line: bytes) -> None:
        """One command: parse, call its method, answer for its faults, then see whether the session may go on."""
        try:
            command = self._parse(line)
            if isinstance(command, Reply):
                self.say(command)
            else:
                await self._smtp_methods[command[0]](command[1])
        except ConnectionError:
            raise
        except Exception:
            log.exception("command failed", listener=self.around.listener, client=self.address)
            self._set_rset_state()
            self.say(replies.INTERNAL)
        settings = self.around.settings
        self._commands += 1
        if self._errors >= settings.max_errors:
            self.hang_up(replies.TOO_MANY_ERRORS)
        elif self._commands >= settings.max_commands and not (self.busy and self._commands < 2 * settings.max_commands):
            self.hang_up(replies.TOO_MANY_COMMANDS)
        elif self._draining and not self.busy:
            self.hang_up(replies.SHUTTING_DOWN)

    def _parse(self, line: bytes) -> tuple[str, str] | Reply:
        """Verb and argument, or the refusal. Only CRLF ends a command; nothing but printable ASCII is in it."""
        if not line.endswith(b"\r\n"):
            return replies.BAD_LINE if line else replies.LINE_TOO_LONG
        try:
            text = line[:-2].decode("ascii")
        except UnicodeDecodeError:
            return replies.NOT_ASCII if line[:5].upper() in (b"MAIL ", b"RCPT ") else replies.BAD_LINE
        if not text.isprintable():
            return replies.BAD_LINE
        verb, _, argument = text.partition(" ")
        verb = verb.upper()
        if verb not in self._smtp_methods:
            if verb in _WEB:  # a browser made to talk to us: what follows is not its user's will
                self.hang_up(replies.NOT_SMTP)
            return replies.UNKNOWN_COMMAND
        if len(text) > self.command_size_limits.get(verb, COMMAND_OCTETS):
            return replies.AUTH_LINE_TOO_LONG if verb == "AUTH" else replies.LINE_TOO_LONG
        return verb, argument.strip(" ")

    # -- state ----------------------------------------------------------------------------------------------------

    def _set_rset_state(self) -> None:
        self._set_post_data_state()

    def _set_post_data_state(self) -> None:
        self.envelope = self._create_envelope()
        self.busy = False

    def introduce(self) -> None:
        """Settle who the client is, after EHLO, AUTH or TLS changed it."""
        assert self.session is not None
        protocol = policy.protocol(self.session.extended_smtp, self.tls_active, self.authenticated)
        self.client = Client(self.address, self.account, self.session.host_name or "", protocol)
