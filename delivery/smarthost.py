"""A session with an authenticated smarthost: to its owner what :class:`delivery.session.Session` is, by aiosmtplib.

Certificate and name are verified before anything is said that matters, and there is no way back to clear. One AUTH
mechanism is tried a session: a wrong password tried three times over locks accounts. aiosmtplib can't pipeline, and its
own DATA knows no moment before the final dot; so DATA, content and dot are written here, byte for byte.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiosmtplib import SMTPException, SMTPResponseException, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from config.routes import site_of
from config.schema import MASK
from config.settings import RouteSettings, TimeoutSettings
from delivery.connect import SessionFailed, connect
from delivery.extensions import Extensions, extensions_of, mail_command, rcpt_command, unfit, unsendable
from delivery.reply import Ear, Phase, Reply
from delivery.smarthost_client import LOGIN_WANTED, Client, Lost, failure_of, reply_of, spoken
from delivery.transaction import Exchange, Transaction, TransactionResult, lose_all, refuse_all
from delivery.wire import deadlines

BLOCK = 65_536  # bytes of content written at once
MECHANISMS = ("plain", "login", "cram-md5")  # under verified TLS the simplest is as good as any

OnLost = Callable[["SmarthostSession", str], None]


@dataclass(frozen=True, slots=True)
class Smarthost:
    """A route as it is in force. ``context`` None = in clear."""

    settings: RouteSettings
    password: SecretStr | None = None
    context: ssl.SSLContext | None = None

    @property
    def name(self) -> str:
        """ "route:<name>": its site, its group and the pool of its mail."""
        return site_of(self.settings)


class SmarthostSession:
    """Made by :meth:`open`; attributes and verbs as of ``Session``."""

    def __init__(self, host: str, address: str, source: str | None, client: Client, timeouts: TimeoutSettings) -> None:
        self.host, self.address, self.source = host, address, source
        self.tls = ""
        self.sent = 0
        self.closing = False
        self.failure = ""
        self._client = client
        self._limits = deadlines(timeouts)
        self._extensions: Extensions = {}
        self._phase = Phase.GREETING
        self._busy = False
        self._dirty = False  # the peer may still hold a transaction
        self._on_lost: OnLost | None = None
        self.ear: Ear | None = None
        client.on_gone = self._gone

    def __repr__(self) -> str:
        state = "lost" if self.failure else "closing" if self.closing else "busy" if self._busy else "idle"
        return f"<SmarthostSession {self.host}[{self.address}] from {self.source}, {state}, {self.sent} sent>"

    @classmethod
    async def open(
        cls,
        smarthost: Smarthost,
        address: str,
        *,
        source: str | None,
        hostname: str,
        timeouts: TimeoutSettings,
        on_lost: OnLost | None = None,
        ear: Ear | None = None,
    ) -> SmarthostSession:
        """Connect, TLS, EHLO, AUTH. Raises SessionFailed; kind "auth": the smarthost does not know us. ``ear`` overhears."""
        route = smarthost.settings
        connected = await connect(address, route.port, source, timeouts.connect)
        client = Client(
            hostname=route.host,
            sock=connected,
            local_hostname=hostname,
            use_tls=route.tls == "implicit",
            start_tls=False,
            tls_context=smarthost.context,
        )
        session = cls(route.host, address, source, client, timeouts)
        session.ear = ear
        session._remark(Phase.CONNECT, f"connected to {route.host}[{address}]:{route.port}")
        try:
            await session._enter(smarthost)
        except BaseException:
            session.abort()
            connected.close()  # it is ours until a transport has it
            raise
        session._phase = Phase.MAIL
        session._on_lost = on_lost
        return session

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Another transaction may be tried."""
        return not self.failure and not self.closing and self._client.is_connected

    # -- verbs -----------------------------------------------------------------------------------------------------

    async def send(self, transaction: Transaction) -> TransactionResult:
        """One mail transaction; see ``Session.send``."""
        if self._busy:
            raise RuntimeError("the session is in use")
        if not self.alive:
            return lose_all(transaction, self.failure or "the peer closes the session")
        if transaction.before_mail is not None and not transaction.before_mail():
            return lose_all(transaction, "aborted before MAIL", aborted=True)
        refusal = unfit(self._extensions, transaction)
        if refusal is not None:
            return refuse_all(transaction, refusal)
        exchange = Exchange(transaction, unsendable(transaction), "DSN" in self._extensions)
        if not exchange.asked:
            return exchange.result()
        self._busy = True
        self.sent += 1
        aborted = False
        try:
            aborted = not await self._transact(exchange)
        except Lost as lost:
            exchange.lose(str(lost), self._phase)
            self._drop(str(lost))
        except BaseException:
            self.abort()
            raise
        finally:
            self._busy = False
        if aborted:
            exchange.lose("aborted before the final dot", self._phase)
            self.abort()
        self._phase = Phase.MAIL
        return exchange.result(aborted)

    async def quit(self) -> None:
        """QUIT; returns when the peer said 221 or hung up, or did neither in time."""
        try:
            if self.alive and not self._busy:
                self._busy = True
                await self._client.execute_command(b"QUIT", timeout=self._limits[Phase.QUIT])
        except (SMTPException, OSError):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once, without on_lost; harmless when it is gone already."""
        self._on_lost = None
        self.failure = self.failure or "closed by us"
        self._client.abort()

    async def wait_closed(self) -> None:
        await asyncio.shield(self._client.gone)

    # -- opening ---------------------------------------------------------------------------------------------------

    async def _enter(self, smarthost: Smarthost) -> None:
        try:
            await self._connect(smarthost)
            await self._hello()
            if smarthost.settings.tls == "starttls":
                await self._secure(smarthost)
                await self._hello()
            if smarthost.settings.tls != "none":
                shown = self._client.get_transport_info
                self.tls = f"{shown('ssl_object').version()} {shown('cipher')[0]}"
                self._remark(Phase.TLS, self.tls)
            if smarthost.settings.user is not None:
                await self._log_in(smarthost.settings.user, smarthost.password)
        except (SMTPException, OSError, Lost) as error:
            raise failure_of(error, self._phase) from error

    async def _connect(self, smarthost: Smarthost) -> None:
        """Greeting, behind the handshake where TLS is implicit."""
        if smarthost.settings.tls == "implicit":
            self._phase = Phase.TLS
        response = await self._client.connect(timeout=self._limits[Phase.GREETING])
        self._phase = Phase.GREETING
        self._reply(response.code, response.message)

    async def _hello(self) -> None:
        self._overhear(Phase.EHLO, f"EHLO {self._client.local_hostname}")
        reply = await self._ask(Phase.EHLO, self._client.ehlo(timeout=self._limits[Phase.EHLO]))
        self._extensions = extensions_of(reply)

    async def _secure(self, smarthost: Smarthost) -> None:
        self._phase = Phase.STARTTLS
        if "STARTTLS" not in self._extensions:
            raise SessionFailed("tls", Phase.EHLO, "STARTTLS is required and not offered")
        self._phase = Phase.TLS
        self._overhear(Phase.STARTTLS, "STARTTLS")
        await self._client.starttls(
            server_hostname=smarthost.settings.host,
            tls_context=smarthost.context,
            timeout=self._limits[Phase.TLS],
        )
        self._extensions = {}

    async def _log_in(self, user: str, password: SecretStr | None) -> None:
        self._phase = Phase.AUTH
        offered = self._extensions.get("AUTH", "").lower().split()
        mechanism = next((one for one in MECHANISMS if one in offered), None)
        if mechanism is None:
            known = ", ".join(one.upper() for one in MECHANISMS)
            raise SessionFailed("auth", Phase.AUTH, f"the smarthost offers none of AUTH {known}")
        verb = getattr(self._client, f"auth_{mechanism.replace('-', '')}")
        secret = password.get_secret_value() if password is not None else ""
        self._overhear(Phase.AUTH, f"AUTH {mechanism.upper()} {MASK}")
        await self._ask(Phase.AUTH, verb(user, secret, timeout=self._limits[Phase.AUTH]))

    # -- a transaction ---------------------------------------------------------------------------------------------

    async def _transact(self, exchange: Exchange) -> bool:
        """False when the owner said no before the dot. Raises Lost; whoever has no result then is lost."""
        transaction = exchange.transaction
        if self._dirty and not (await self._say(Phase.MAIL, "RSET")).positive:
            raise Lost("RSET refused")
        self._dirty = False
        reply = await self._say(Phase.MAIL, mail_command(self._extensions, transaction))
        if not reply.positive:
            exchange.refused = True
            exchange.settle(reply, Phase.MAIL)
            return True
        self._dirty = True
        for index in exchange.asked:
            reply = await self._say(Phase.RCPT, rcpt_command(self._extensions, transaction, index))
            if reply.closing:
                exchange.settle(reply, Phase.RCPT)
                return True
            exchange.answer(index, reply)
        if not exchange.accepted:
            return True
        reply = await self._say(Phase.DATA, "DATA", intermediate=True)
        if not reply.intermediate:
            exchange.settle(reply, Phase.DATA)
            return True
        return await self._content(exchange)

    async def _content(self, exchange: Exchange) -> bool:
        """After 354: the content, the owner's last word, the dot; or a refusal before it, after which nothing can follow."""
        self._phase = Phase.CONTENT
        transaction = exchange.transaction
        protocol = self._protocol()
        protocol._response_pending = True  # else what comes before the dot would not be heard
        content = stuffed(transaction.content)
        self._overhear(Phase.CONTENT, f"({len(transaction.content)} octets of content)")
        large = len(content) > BLOCK
        if large:
            view = memoryview(content)
            for start in range(0, len(content), BLOCK):
                if not await self._write(protocol, bytes(view[start : start + BLOCK])):
                    break
        if transaction.before_dot is not None and not spoken(protocol) and not await transaction.before_dot():
            return False
        try:
            if not spoken(protocol):
                self._protocol()
                exchange.dotted = True
                self._phase = Phase.END_OF_DATA
                self._overhear(Phase.END_OF_DATA, ".")
                protocol.write(b".\r\n" if large else content + b".\r\n")
            response = await protocol.read_response(timeout=self._limits[Phase.END_OF_DATA])
        except (SMTPException, OSError) as error:
            raise Lost(self._why(error)) from error
        reply = self._reply(response.code, response.message, last=True)
        if reply.intermediate or (reply.positive and not exchange.dotted):
            raise Lost(f"reply to {self._phase.value}: {reply}")
        self._dirty = False
        self.closing = self.closing or not exchange.dotted
        exchange.settle(reply, self._phase)
        return True

    async def _write(self, protocol: SMTPProtocol, block: bytes) -> bool:
        """False when the peer spoke or went away first."""
        try:
            protocol.write(block)
            async with asyncio.timeout(self._limits[Phase.CONTENT]):
                await protocol._drain_helper()
        except (SMTPException, OSError) as error:
            if not spoken(protocol):
                took = f"no block taken within {self._limits[Phase.CONTENT]:g} s"
                raise Lost(took if isinstance(error, TimeoutError) else self._why(error)) from error
        return not spoken(protocol)

    def _protocol(self) -> SMTPProtocol:
        protocol = self._client.protocol
        if protocol is None or not protocol.is_connected:
            raise Lost("connection closed by the peer")
        return protocol

    # -- commands and replies --------------------------------------------------------------------------------------

    async def _say(self, phase: Phase, command: str, *, intermediate: bool = False) -> Reply:
        """Raises Lost: no reply, one out of step, or one that says that we are not logged in."""
        self._phase = phase
        self._overhear(phase, command)
        try:
            response = await self._client.execute_command(
                command.removesuffix("\r\n").encode("utf-8"), timeout=self._limits[phase]
            )
        except (SMTPException, OSError) as error:
            raise Lost(self._why(error)) from error
        reply = self._reply(response.code, response.message)
        if reply.code in LOGIN_WANTED:
            raise Lost(str(reply))
        if reply.intermediate is not intermediate and not (intermediate and reply.code >= 400):
            raise Lost(f"reply to {phase.value}: {reply}")
        return reply

    async def _ask(self, phase: Phase, asked: Any) -> Reply:
        """A command that aiosmtplib says and judges."""
        self._phase = phase
        response = await asked
        return self._reply(response.code, response.message)

    def _reply(self, code: int, message: str, *, last: bool = False) -> Reply:
        """``last``: we say nothing more; what comes behind it ends the session, but takes nothing back."""
        if not 200 <= code < 600:
            raise Lost(f"no SMTP reply: {code} {message[:80]!r}")
        reply = reply_of(code, message)
        if self.ear is not None:
            self.ear("S", self._phase, reply.spelled)
        if reply.closing:
            self.closing = True
        protocol = self._client.protocol
        if protocol is not None and protocol._buffer:  # it would be taken for the answer to what we say next
            self.closing = True
            if not last:
                raise Lost("the peer speaks out of turn")
        return reply

    def _overhear(self, phase: Phase, command: str) -> None:
        if self.ear is not None:
            self.ear("C", phase, command)

    def _remark(self, phase: Phase, text: str) -> None:
        if self.ear is not None:
            self.ear("*", phase, text)

    def _why(self, error: Exception) -> str:
        if isinstance(error, SMTPTimeoutError):
            return f"no answer within {self._limits[self._phase]:g} s"
        if isinstance(error, SMTPResponseException):
            return f"no SMTP reply: {error.message[:80]!r}"
        return "connection closed by the peer"

    # -- ending ----------------------------------------------------------------------------------------------------

    def _drop(self, why: str) -> None:
        self._remark(self._phase, why)
        self.failure = self.failure if self.failure and why == "connection closed by the peer" else why
        self._client.abort()

    def _gone(self) -> None:
        self.failure = self.failure or "connection closed by the peer"
        if not self._busy and self._on_lost is not None:
            self._on_lost(self, self.failure)


def stuffed(content: bytes) -> bytes:
    """As it goes over the wire, dots doubled (RFC 5321 §4.5.2), without the final dot."""
    doubled = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        doubled = b"." + doubled
    return doubled if doubled.endswith(b"\r\n") or not doubled else doubled + b"\r\n"
