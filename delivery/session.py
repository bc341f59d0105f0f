"""One SMTP connection to one next hop, used for many mail transactions: open, send, quit.

What to say stands in :mod:`delivery.dialogue`, bytes and time-outs in :mod:`delivery.wire`. Between transactions
``on_lost`` tells the owner that the peer went away; after each ``send`` he looks at ``alive``, and whatever is not
alive any more he quits, which then costs nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Literal, cast

from config.settings import TimeoutSettings
from delivery.connect import SessionFailed, connect
from delivery.dialogue import Answer, ContentWanted, Dialogue, Done, Event
from delivery.reply import Ear, Phase, Reply
from delivery.tls import TlsMode
from delivery.transaction import Transaction, TransactionResult, lose_all
from delivery.wire import Gone, Wire, deadlines

__all__ = ["Session", "SessionFailed"]

BLOCK = 65_536  # bytes: content up to here is one write together with the final dot, above it goes block by block

OnLost = Callable[["Session", str], None]


class Session:
    """Made by :meth:`open`. ``sent``: transactions begun; ``tls``: protocol and cipher, "" = in clear."""

    def __init__(self, host: str, address: str, source: str | None, wire: Wire) -> None:
        self.host = host
        self.address = address
        self.source = source
        self.tls = ""
        self.sent = 0
        self._wire = wire
        self._dialogue = wire.dialogue

    def __repr__(self) -> str:
        state = "lost" if self.failure else "closing" if self.closing else "busy" if self._wire.busy else "idle"
        way = f"{self.host}[{self.address}] from {self.source}"
        return f"<Session {way}, {state}, {self.sent} sent, {self.tls or 'clear'}>"

    @classmethod
    async def open(
        cls,
        host: str,
        address: str,
        port: int = 25,
        *,
        source: str | None,
        hostname: str,
        timeouts: TimeoutSettings,
        tls: TlsMode = TlsMode.NONE,
        context: ssl.SSLContext | None = None,
        on_lost: OnLost | None = None,
        ear: Ear | None = None,
    ) -> Session:
        """Connect, read the greeting, EHLO, STARTTLS. Raises SessionFailed. ``ear`` overhears it, from here on.

        Kind "tls" with TlsMode.OPPORTUNISTIC: remember the host and open again with TlsMode.NONE.
        """
        if tls is not TlsMode.NONE and context is None:
            raise ValueError("TLS needs a context")
        connected = await connect(address, port, source, timeouts.connect)
        wire = Wire(Dialogue(hostname), deadlines(timeouts))
        wire.dialogue.ear = ear
        if ear is not None:
            ear("*", Phase.CONNECT, f"connected to {host}[{address}]:{port} from {source or 'any address'}")
        try:
            await wire.loop.create_connection(lambda: wire, sock=connected)
        except BaseException:
            connected.close()
            raise
        session = cls(host, address, source, wire)
        try:
            await session._greet()
            if tls is not TlsMode.NONE and context is not None:
                await session._secure(tls, context)
        except BaseException:
            session.abort()
            raise
        if on_lost is not None:
            tell = on_lost
            wire.on_lost = lambda text: tell(session, text)
        session._rest()
        return session

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Another transaction may be tried."""
        return self._wire.failure is None and not self._dialogue.closing

    @property
    def closing(self) -> bool:
        """The peer said 421, or the dialogue cannot go on."""
        return self._dialogue.closing

    @property
    def failure(self) -> str:
        """Why the connection ended, "" while it is up."""
        return self._wire.failure[2] if self._wire.failure else ""

    @property
    def ear(self) -> Ear | None:
        return self._dialogue.ear

    @ear.setter
    def ear(self, ear: Ear | None) -> None:
        self._dialogue.ear = ear

    # -- verbs -----------------------------------------------------------------------------------------------------

    async def send(self, transaction: Transaction) -> TransactionResult:
        """One mail transaction. The peer's faults are in the result; cancellation and errors of ``before_dot`` close
        the connection, for nobody could say then what the next reply belongs to."""
        wire = self._wire
        if wire.busy:
            raise RuntimeError("the session is in use")
        if not self.alive:
            return lose_all(transaction, self.failure or "the peer closes the session")
        if transaction.before_mail is not None and not transaction.before_mail():
            return lose_all(transaction, "aborted before MAIL", aborted=True)
        wire.busy = True
        try:
            wire.perform(self._dialogue.begin(transaction))
            self.sent += self._dialogue.in_transaction
            event = await wire.next()
            if isinstance(event, ContentWanted):
                event = await self._send_content(transaction)
            if not isinstance(event, Done):
                raise RuntimeError(f"{event!r} in a transaction")
            return event.result
        except BaseException:
            self.abort()
            raise
        finally:
            self._rest()

    async def quit(self) -> None:
        """QUIT; returns when the peer said 221 or hung up, or did neither in time: until then it counts us in.

        During a ``send`` (of another task) it is an abort.
        """
        if self.alive and not self._wire.busy:
            self._wire.busy = True
            try:
                self._wire.write(self._dialogue.quit())
                await self._wire.next()
            finally:
                self.abort()
        else:
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once, without on_lost; harmless when it is gone already."""
        self._wire.on_lost = None
        self._wire.drop("lost", "closed by us")

    async def wait_closed(self) -> None:
        await asyncio.shield(self._wire.closed)

    # -- opening ---------------------------------------------------------------------------------------------------

    async def _greet(self) -> None:
        greeting = await self._answer()
        if not greeting.positive:
            raise SessionFailed("reply", Phase.GREETING, str(greeting), greeting)
        await self._hello()

    async def _hello(self) -> None:
        reply = await self._ask(self._dialogue.ehlo())
        if reply.permanent:  # RFC 5321 §4.1.4: an old peer, or one whose EHLO is switched off
            reply = await self._ask(self._dialogue.helo())
        if not reply.positive:
            raise SessionFailed("reply", Phase.EHLO, str(reply), reply)

    async def _secure(self, mode: Literal[TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED], context: ssl.SSLContext) -> None:
        if "STARTTLS" not in self._dialogue.extensions:
            if mode is TlsMode.REQUIRED:
                raise SessionFailed("tls", Phase.EHLO, "STARTTLS is required and not offered")
            return
        try:
            reply = await self._ask(self._dialogue.starttls())
        except SessionFailed as failed:
            raise SessionFailed("tls", failed.phase, failed.text) from failed
        if not reply.positive:
            if mode is TlsMode.REQUIRED or reply.closing:
                raise SessionFailed("tls", Phase.STARTTLS, str(reply), reply)
            return  # RFC 3207 §4: after 454 the session may go on in clear
        await self._handshake(context)
        try:
            await self._hello()
        except SessionFailed as failed:
            if failed.kind == "lost":  # TLS 1.3: that the peer refused our handshake shows only now
                raise SessionFailed("tls", Phase.TLS, failed.text) from failed
            raise

    async def _handshake(self, context: ssl.SSLContext) -> None:
        wire = self._wire
        try:
            upgraded = await wire.loop.start_tls(
                wire.transport,
                wire,
                context,
                server_hostname=self.host,
                ssl_handshake_timeout=wire.limits[Phase.TLS],
                ssl_shutdown_timeout=wire.limits[Phase.QUIT],
            )
        except OSError as error:  # SSLError, resets and the handshake's time-out
            raise SessionFailed("tls", Phase.TLS, f"handshake failed: {error}") from error
        if upgraded is None or wire.failure is not None:
            raise SessionFailed("tls", Phase.TLS, self.failure or "connection lost in the handshake")
        wire.adopt(upgraded)
        self._dialogue.tls_started()
        protocol = cast(ssl.SSLObject, upgraded.get_extra_info("ssl_object")).version()
        cipher = cast(tuple[str, str, int], upgraded.get_extra_info("cipher"))
        self.tls = f"{protocol} {cipher[0]}"
        if self.ear is not None:
            self.ear("*", Phase.TLS, self.tls)

    async def _ask(self, command: bytes) -> Reply:
        self._wire.write(command)
        return await self._answer()

    async def _answer(self) -> Reply:
        event = await self._wire.next()
        if isinstance(event, Answer):
            return event.reply
        assert self._wire.failure is not None
        raise SessionFailed(*self._wire.failure)

    # -- content ---------------------------------------------------------------------------------------------------

    async def _send_content(self, transaction: Transaction) -> Event | Gone:
        """After 354: the content, the owner's last word, the dot."""
        wire = self._wire
        if wire.ready:  # 354 and the end came together
            return await wire.next()
        content = self._dialogue.content()
        large = len(content) > BLOCK
        if large and not await self._send_blocks(content):
            return await wire.next()
        if transaction.before_dot is not None:
            wire.disarm()
            if not await transaction.before_dot():
                return await self._withdraw()
        if not wire.ready:  # else the peer refused or went away while we asked
            dot = self._dialogue.dot()
            wire.write(dot if large else content + dot)
        return await wire.next()

    async def _send_blocks(self, content: bytes) -> bool:
        """False when the peer spoke or went away before all was written."""
        view = memoryview(content)
        for start in range(0, len(content), BLOCK):
            self._wire.write(view[start : start + BLOCK])
            if not await self._wire.drained():
                return False
        return True

    async def _withdraw(self) -> Event | Gone:
        """The owner said no: DATA has no other way out than to hang up before the dot (RFC 5321 §4.1.1.4)."""
        if self._dialogue.in_transaction:
            result = self._dialogue.lost("aborted before the final dot", aborted=True)
            self.abort()
            return Done(result)
        self.abort()
        return await self._wire.next()

    def _rest(self) -> None:
        self._wire.disarm()
        self._wire.busy = False
