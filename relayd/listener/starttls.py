"""STARTTLS by the loop's own upgrade: a tenth of the memory that aiosmtpd's SSLProtocol takes per connection."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

import structlog

from relayd import replies
from relayd.listener.connection import HANDSHAKE_SECONDS
from relayd.listener.hello import HelloVerbs
from relayd.replies import Reply

log = structlog.get_logger()


class StartTlsVerb(HelloVerbs):
    async def smtp_STARTTLS(self, arg: str) -> None:
        refusal = self._check_starttls(arg)
        if refusal is not None:
            self.say(refusal)
        elif self._input._buffer:
            # Plaintext behind STARTTLS would be read as if it had come under TLS (RFC 3207 §6, CVE-2011-0411).
            self.hang_up(replies.TLS_NOTHING_MAY_FOLLOW)
        else:
            await self._upgrade()

    def _check_starttls(self, arg: str) -> Reply | None:
        assert self.envelope is not None
        if self.tls_context is None:
            return replies.TLS_NOT_OFFERED
        if self.tls_active:
            return replies.TLS_ALREADY
        if arg:
            return replies.NO_ARGUMENT
        return replies.NESTED_MAIL if self.envelope.mail_from is not None else None

    async def _upgrade(self) -> None:
        """220, handshake, and a session that knows nothing of what was said before (RFC 3207 §4.2)."""
        transport = cast(asyncio.Transport, self.transport)
        assert self.tls_context is not None and self.session is not None
        transport.pause_reading()  # until the handshake owns the socket nothing may reach our reader
        self.say(replies.START_TLS)
        self._watch(self.loop.time() + HANDSHAKE_SECONDS)
        await self._flush()
        try:
            upgraded = await self.loop.start_tls(
                transport, self, self.tls_context, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except (ssl.SSLError, OSError, TimeoutError) as error:
            log.info("handshake failed", client=self.address, listener=self.around.listener, error=str(error))
            self.remark(f"handshake failed: {error}")
            self._ending = True
            transport.abort()
            return
        if upgraded is None or self._ending:
            transport.abort()
            return
        self._wear(upgraded)
        self._set_rset_state()
        self.tls_active = True
        self.authenticated = False
        self.account = self._account_by_network()
        self.session.host_name = None
        self.session.extended_smtp = False
        self.session.ssl = upgraded.get_extra_info("sslcontext") and {"sslcontext": self.tls_context}
        self.introduce()
        self.remark(f"{upgraded.get_extra_info('ssl_object').version()} {upgraded.get_extra_info('cipher')[0]}")

    def _wear(self, transport: asyncio.Transport) -> None:
        """Point reader, writer and protocol at the encrypted transport; 3.11's streams have no verb for it."""
        reader, writer = self._input, cast(Any, self._writer)
        reader._buffer.clear()
        reader._paused = False
        reader._transport = transport
        writer._transport = transport
        cast(Any, self)._replace_writer(writer)
        self.transport = transport
