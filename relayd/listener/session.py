"""The command loop over a connection: one line, one verb, one reply, and the limits of a session.

Replaces aiosmtpd's loop. The verbs themselves are in the files beside this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import ClassVar

import structlog
from aiosmtpd.smtp import SMTP

from config.settings import AccountSettings
from relayd import policy, replies
from relayd.listener.connection import Arrival, Connection, Surroundings
from relayd.policy import Client
from relayd.replies import Reply
from relayd.volume import Share

COMMAND_OCTETS = 512  # RFC 5321 §4.5.3.1.4, without CRLF: near enough
COMMAND_OCTETS_OF: Mapping[str, int] = {
    # Over 512: SIZE 26 (RFC 1870), BODY 17 (RFC 6152), AUTH 500 (RFC 4954), SMTPUTF8 10 (RFC 6531), RET and ENVID 316
    # when every octet of it is coded (RFC 3461 says 107).
    "MAIL": 2048,
    "RCPT": 1088,  # NOTIFY 28, ORCPT 507 (RFC 3461), and the blanks that clients put in
    "AUTH": 12_288,  # RFC 4954 §4
}
INTERNATIONAL = frozenset({"MAIL", "RCPT", "VRFY", "EXPN"})  # may hold UTF-8 (RFC 6531 §3.4, §3.7.4)
_REPLIES_HELD = 64
_WEB = frozenset({"GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "HOST:"})

log = structlog.get_logger()


class SessionProtocol(Connection):
    """The loop without verbs."""

    verbs: ClassVar[tuple[str, ...]] = ()  # what smtp_* methods of ours there are; set for each concrete class

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        names = (name for name in dir(cls) if name.startswith("smtp_"))
        ours = (name for name in names if getattr(cls, name).__module__ != SMTP.__module__)
        cls.verbs = tuple(name.removeprefix("smtp_") for name in ours)

    def __init__(self, around: Surroundings, arrival: Arrival, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(around, arrival, loop)
        self._smtp_methods = {verb: getattr(self, "smtp_" + verb) for verb in self.verbs}
        # aiosmtpd keeps this dict on the class, for all connections: shadow it.
        self.command_size_limits: dict[str, int] = {}
        self._reset_command_sizes()
        self.account = self._account_by_network()
        self.authenticated = False
        self.client = Client(self.address, self.account, "", "SMTP")
        self.share = Share(around.volume)  # of the transaction under way
        self.rejected_events = 0
        self.failed_auth = 0
        self.in_content = False  # the next octets are content, whatever happens
        self._commands = 0

    def _account_by_network(self) -> AccountSettings | None:
        return self.around.accounts.by_address(self.address) if self.known else None

    def _reset_command_sizes(self) -> None:
        self.command_size_limits.clear()
        self.command_size_limits.update(COMMAND_OCTETS_OF)

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

    @property
    def account_name(self) -> str:
        return self.account.name if self.account is not None else ""

    async def _obey(self, line: bytes) -> None:
        """One command: parse, call its method, answer for its faults, then see whether the session may go on."""
        if self.around.tap.on:
            self.overheard().command(self.account_name, line)
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
            if self.in_content:
                self.hang_up(replies.BROKEN_OFF)
            else:
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
        """Verb and argument, or the refusal. Only CRLF ends a command; nothing but printable characters is in it, and
        those beyond ASCII only where an address may be."""
        if not line.endswith(b"\r\n"):
            return replies.BAD_LINE if line else replies.LINE_TOO_LONG
        try:
            text = line[:-2].decode("utf-8")
        except UnicodeDecodeError:
            return replies.BAD_UTF8
        if not text.isprintable():  # no controls, no invisible or unassigned characters
            return replies.BAD_LINE
        verb, _, argument = text.partition(" ")
        verb = verb.upper()
        if not text.isascii() and verb not in INTERNATIONAL:
            return replies.BAD_LINE
        if verb not in self._smtp_methods:
            if verb in _WEB:  # a browser made to talk to us: what follows is not its user's will
                self.hang_up(replies.NOT_SMTP)
            return replies.UNKNOWN_COMMAND
        if len(line) - 2 > self.command_size_limits.get(verb, COMMAND_OCTETS):
            return replies.AUTH_LINE_TOO_LONG if verb == "AUTH" else replies.LINE_TOO_LONG
        return verb, argument.strip(" ")

    # -- state ----------------------------------------------------------------------------------------------------

    def _set_rset_state(self) -> None:
        self._set_post_data_state()

    def _set_post_data_state(self) -> None:
        self.envelope = self._create_envelope()
        self.busy = False

    def renew(self) -> Reply | None:
        """The account with its grants as they are now: asked for at each mail transaction. A Reply ends the session."""
        account = self.account
        if not self.authenticated:
            account = self._account_by_network()
        elif account is not None:
            account = self.around.accounts.renewed(account, self.address, time.time())
            if account is None:
                return replies.PASSWORD_GONE
        if account is not self.account:
            self.account = account
            self.introduce()
        return None

    @property
    def size_limit(self) -> int:
        """Octets of content this client may send."""
        own, most = self.account and self.account.max_message_bytes, self.around.settings.max_message_bytes
        return min(own, most) if own else most

    def introduce(self) -> None:
        """Settle who the client is, after EHLO, AUTH or TLS changed it."""
        assert self.session is not None
        protocol = policy.protocol(self.session.extended_smtp, self.tls_active, self.authenticated)
        self.client = Client(self.address, self.account, self.session.host_name or "", protocol)
