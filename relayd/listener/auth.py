"""AUTH PLAIN and LOGIN (RFC 4954, RFC 4616), only under TLS; the checking itself is :mod:`relayd.auth`'s."""

from __future__ import annotations

import base64
import binascii

import structlog

from relayd import replies
from relayd.auth import AuthBusy, AuthRefused
from relayd.listener.hello import HelloVerbs
from relayd.listener.overhear import MASKED
from relayd.replies import Reply

MAX_FAILURES = 3  # per session, then 421
MAX_REFUSALS = 25  # attempts that were not even looked at; to hang up on them costs us a handshake
_NAME_LIMIT = 64

log = structlog.get_logger()


class AuthVerb(HelloVerbs):
    refused_auth = 0

    async def smtp_AUTH(self, arg: str) -> None:
        refusal = self._check_auth()
        if refusal is None:
            mechanism, _, initial = arg.partition(" ")
            refusal = await self._authenticate_by(mechanism.upper(), initial.strip(" ") or None)
        if refusal is not None:
            self.say(refusal)

    def _check_auth(self) -> Reply | None:
        assert self.session is not None and self.envelope is not None
        if self.tls_context is None:
            return replies.AUTH_NOT_OFFERED
        if not self.tls_active:
            return replies.AUTH_NEEDS_TLS
        if not self.session.host_name or not self.session.extended_smtp:
            return replies.HELLO_FIRST
        if self.authenticated:
            return replies.AUTH_ALREADY
        return replies.AUTH_IN_TRANSACTION if self.envelope.mail_from is not None else None

    async def _authenticate_by(self, mechanism: str, initial: str | None) -> Reply | None:
        """Run the exchange and the check; the reply to say, or None when the client has gone or was sent away."""
        if not mechanism:
            return replies.AUTH_SYNTAX
        if mechanism == "PLAIN":
            credentials = await self._plain(initial)
        elif mechanism == "LOGIN":
            credentials = await self._login(initial)
        else:
            return replies.AUTH_MECHANISM
        if credentials is None or isinstance(credentials, Reply):
            return credentials
        return await self._judge(mechanism, *credentials)

    async def _judge(self, mechanism: str, user: str, password: bytes) -> Reply | None:
        assert self.around.authenticator is not None
        try:
            account = await self.around.authenticator.verify(
                user, password, self.address, first=not (self.refused_auth or self.failed_auth)
            )
        except AuthBusy:
            return self._put_off(replies.AUTH_BUSY)
        except AuthRefused as refused:
            if not self.refused_auth:
                log.warning(
                    "authentication refused",
                    client=self.address,
                    seconds=round(refused.seconds),
                    listener=self.around.listener,
                )
            return self._put_off(replies.AUTH_REFUSED)
        if account is not None:
            self.account = account
            self.authenticated = True
            self.introduce()
            return replies.AUTH_OK
        self.failed_auth += 1
        # One line, fixed words first, the address in a field of its own: what fail2ban filters read.
        log.warning(
            "authentication failed",
            client=self.address,
            user=user[:_NAME_LIMIT].encode("ascii", "backslashreplace").decode("ascii"),
            mechanism=mechanism,
            listener=self.around.listener,
        )
        if self.failed_auth < MAX_FAILURES:
            return replies.AUTH_FAILED
        self.say(replies.AUTH_FAILED)
        self.hang_up(replies.TOO_MANY_FAILED_AUTH)
        return None

    def _put_off(self, reply: Reply) -> Reply | None:
        """454, and 421 to who goes on knocking."""
        self.refused_auth += 1
        if self.refused_auth < MAX_REFUSALS:
            return reply
        self.say(reply)
        self.hang_up(replies.TOO_MANY_FAILED_AUTH)
        return None

    async def _plain(self, initial: str | None) -> tuple[str, bytes] | Reply | None:
        """``[authorization-id] NUL user NUL password``; acting for somebody else is not offered."""
        response = await self._response(b"", initial)
        if not isinstance(response, bytes):
            return response
        parts = response.split(b"\0")
        if len(parts) != 3 or not parts[1]:
            return replies.AUTH_BAD_RESPONSE
        if parts[0] and parts[0] != parts[1]:
            return replies.AUTH_FAILED
        return _name(parts[1]), parts[2]

    async def _login(self, initial: str | None) -> tuple[str, bytes] | Reply | None:
        user = await self._response(b"Username:", initial)
        if not isinstance(user, bytes):
            return user
        password = await self._response(b"Password:", None)
        if not isinstance(password, bytes):
            return password
        return (_name(user), password) if user else replies.AUTH_BAD_RESPONSE

    async def _response(self, prompt: bytes, initial: str | None) -> bytes | Reply | None:
        """The client's next answer, decoded; a Reply when there is nothing to go on with, None at the end of input."""
        if initial is not None:
            return b"" if initial == "=" else _decode(initial.encode("ascii"))
        self.say_raw(replies.challenge(base64.b64encode(prompt)))
        line = await self.read_line()
        if line is None:
            return None
        if self.around.tap.on:
            self.overheard().hear(self.account_name, "C", MASKED)
        if line == b"":
            return replies.AUTH_LINE_TOO_LONG
        if not line.endswith(b"\r\n"):
            return replies.BAD_LINE
        return replies.AUTH_CANCELLED if line == b"*\r\n" else _decode(line[:-2])


def _decode(text: bytes) -> bytes | Reply:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return replies.AUTH_BAD_RESPONSE


def _name(user: bytes) -> str:
    return user.decode("utf-8", "surrogateescape")
