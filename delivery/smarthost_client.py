"""aiosmtplib as a smarthost's session uses it: the connection's end is told, and its errors become ours in one place."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPHeloError,
    SMTPResponseException,
    SMTPTimeoutError,
)
from aiosmtplib.protocol import SMTPProtocol

from delivery.connect import SessionFailed
from delivery.reply import Phase, Reply, make_reply

LOGIN_WANTED = frozenset({530, 534, 535, 538})  # RFC 4954 §6: said of us, never of the mail


class Lost(Exception):
    """The connection is gone or of no more use."""


class Client(SMTP):
    """Tells when the connection has gone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_gone: Callable[[], None] | None = None

    def _on_connection_lost(self, protocol: SMTPProtocol) -> None:
        super()._on_connection_lost(protocol)
        if not self.gone.done():
            self.gone.set_result(None)
            if self.on_gone is not None:
                self.on_gone()

    def abort(self) -> None:
        transport = cast(asyncio.Transport | None, self.transport)
        if transport is not None:
            transport.abort()
        self.close()


def failure_of(error: Exception, phase: Phase) -> SessionFailed:
    """What went wrong while opening, by the phase it went wrong in."""
    if isinstance(error, SessionFailed):
        return error
    text = str(error) or type(error).__name__
    cause = error.__cause__
    if isinstance(error, ssl.SSLError) or isinstance(cause, ssl.SSLError):
        return SessionFailed("tls", Phase.TLS, f"handshake failed: {cause or error}")
    if isinstance(error, SMTPResponseException) and 200 <= error.code < 600:
        reply = reply_of(error.code, error.message)
        if isinstance(error, SMTPAuthenticationError) or reply.code in LOGIN_WANTED:
            return SessionFailed("auth", phase, str(reply), reply)
        if isinstance(error, SMTPConnectResponseError | SMTPHeloError):
            return SessionFailed("reply", Phase.GREETING if phase is Phase.TLS else phase, str(reply), reply)
        return SessionFailed("tls", Phase.STARTTLS, str(reply), reply)
    if isinstance(error, SMTPTimeoutError):
        return SessionFailed("tls" if phase is Phase.TLS else "timeout", phase, text)
    return SessionFailed("tls" if phase is Phase.TLS else "lost", phase, text)


def spoken(protocol: SMTPProtocol) -> bool:
    """A reply has come, or the end of the connection, before anybody waited for it."""
    return protocol._response_waiter is None or protocol._response_waiter.done()


def reply_of(code: int, message: str) -> Reply:
    lines = ("".join(c if c.isprintable() else " " for c in line) for line in message.split("\n"))
    return make_reply(code, tuple(lines))
