"""MAIL and RCPT: syntax and parameters here, the decision in the handler's hooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import cast

from relayd import dsn_parameters, replies
from relayd.listener import arguments
from relayd.listener.hello import HelloVerbs
from relayd.replies import Reply

_BODIES = ("7BIT", "8BITMIME")
_SIZE = re.compile(r"[0-9]{1,20}")  # RFC 1870 §6

# What a value must be like, and what is said when it is not; SIZE stands below. RFC 6152, 4954 §5, 3461 §4.3, §4.4.
_MAIL_VALUES: Mapping[str, tuple[Callable[[str], bool], Reply]] = {
    "BODY": (lambda value: value.upper() in _BODIES, replies.BODY_VALUE),
    "AUTH": (lambda value: dsn_parameters.decode_xtext(value) is not None, replies.AUTH_VALUE),  # counts as <>
    "RET": (dsn_parameters.is_ret, replies.RET_VALUE),
    "ENVID": (dsn_parameters.is_envid, replies.ENVID_VALUE),
}


class TransactionVerbs(HelloVerbs):
    began = 0.0  # loop time of the accepted MAIL

    async def smtp_MAIL(self, arg: str | None) -> None:
        if not self.said_hello():
            return
        assert self.envelope is not None
        if self.envelope.mail_from is not None:
            self.say(replies.NESTED_MAIL)
            return
        if self._draining:
            self.hang_up(replies.SHUTTING_DOWN)
            return
        parsed = arguments.parse("FROM:", arg or "")
        if parsed is None:
            self.say(replies.MAIL_SYNTAX)
            return
        refusal = self._check_mail(parsed)
        if refusal is not None:
            self.say(refusal)
            return
        self.envelope.smtp_utf8 = "SMTPUTF8" in parsed.parameters
        reply = cast(Reply, await self._call_handler_hook("MAIL", parsed.path, _options(parsed)))
        if reply.code == 250:
            self.busy = True
            self.began = self.loop.time()
        if reply.code == 421:
            self.hang_up(reply)
        self.say(reply)

    def _check_mail(self, parsed: arguments.PathArgument) -> Reply | None:
        """None = fine."""
        assert self.session is not None
        for keyword, value in parsed.parameters.items():
            if not self.session.extended_smtp:
                return replies.UNKNOWN_PARAMETER
            if keyword == "SMTPUTF8":
                refusal = None if value is None else replies.SMTPUTF8_VALUE
            elif keyword == "SIZE":
                refusal = self._check_size(value)
            elif keyword in _MAIL_VALUES:
                fits, wrong = _MAIL_VALUES[keyword]
                refusal = None if value is not None and fits(value) else wrong
            else:
                refusal = replies.UNKNOWN_PARAMETER
            if refusal is not None:
                return refusal
        return None if parsed.path.isascii() or "SMTPUTF8" in parsed.parameters else replies.NOT_ASCII

    def _check_size(self, value: str | None) -> Reply | None:
        if value is None or _SIZE.fullmatch(value) is None:
            return replies.SIZE_VALUE
        return replies.TOO_BIG if int(value) > self.size_limit else None

    async def smtp_RCPT(self, arg: str | None) -> None:
        if not self.said_hello():
            return
        assert self.envelope is not None
        if self.envelope.mail_from is None:
            self.say(replies.MAIL_FIRST)
            return
        if self.in_chunks:
            self.say(replies.CHUNKS_BEGUN)
            return
        parsed = arguments.parse("TO:", arg or "")
        refusal = replies.RCPT_SYNTAX if parsed is None else self._check_rcpt(parsed)
        if parsed is None or refusal is not None:
            self.say(refusal or replies.RCPT_SYNTAX)
        else:
            self.say(cast(Reply, await self._call_handler_hook("RCPT", parsed.path, _options(parsed))))

    def _check_rcpt(self, parsed: arguments.PathArgument) -> Reply | None:
        """RFC 3461 §4.1, §4.2. None = fine."""
        assert self.session is not None and self.envelope is not None
        utf8 = self.envelope.smtp_utf8
        for keyword, value in parsed.parameters.items():
            if keyword not in ("NOTIFY", "ORCPT") or not self.session.extended_smtp:
                return replies.UNKNOWN_PARAMETER
            if keyword == "NOTIFY" and not (value and dsn_parameters.is_notify(value)):
                return replies.NOTIFY_VALUE
            if keyword == "ORCPT" and not (value and dsn_parameters.is_orcpt(value, utf8)):
                return replies.ORCPT_VALUE
        return None if utf8 or parsed.path.isascii() else replies.NOT_ASCII

    @property
    def in_chunks(self) -> bool:
        """BDAT has begun: no recipient may be added and DATA is over (RFC 3030 §2)."""
        return False


def _options(parsed: arguments.PathArgument) -> list[str]:
    return [f"{key}={value}" if value else key for key, value in parsed.parameters.items()]
