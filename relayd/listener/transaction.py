"""MAIL and RCPT: syntax and parameters here, the decision in the handler's hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from relayd import replies
from relayd.listener import arguments
from relayd.listener.hello import HelloVerbs
from relayd.replies import Reply

_BODIES = ("7BIT", "8BITMIME")


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
        refusal = replies.MAIL_SYNTAX if parsed is None else self._check_parameters(parsed.parameters)
        if parsed is None or refusal is not None:
            self.say(refusal or replies.MAIL_SYNTAX)
            return
        options = [f"{key}={value}" if value else key for key, value in parsed.parameters.items()]
        reply = cast(Reply, await self._call_handler_hook("MAIL", parsed.path, options))
        if reply.code == 250:
            self.busy = True
            self.began = self.loop.time()
        self.say(reply)

    def _check_parameters(self, parameters: Mapping[str, str | None]) -> Reply | None:
        """SIZE (RFC 1870), BODY (RFC 6152), AUTH (RFC 4954 §5: anything counts as <>). None = fine."""
        assert self.session is not None
        for keyword, value in parameters.items():
            if not self.session.extended_smtp:
                return replies.UNKNOWN_PARAMETER
            if keyword == "SIZE":
                if value is None or not value.isdigit() or len(value) > 20:
                    return replies.PARAMETER_VALUE
                if int(value) > self.around.settings.max_message_bytes:
                    return replies.TOO_BIG
            elif keyword == "BODY":
                if (value or "").upper() not in _BODIES:
                    return replies.PARAMETER_VALUE
            elif keyword == "AUTH":
                if value is None:
                    return replies.PARAMETER_VALUE
            else:
                return replies.UNKNOWN_PARAMETER
        return None

    async def smtp_RCPT(self, arg: str | None) -> None:
        if not self.said_hello():
            return
        assert self.envelope is not None
        if self.envelope.mail_from is None:
            self.say(replies.MAIL_FIRST)
            return
        parsed = arguments.parse("TO:", arg or "")
        if parsed is None:
            self.say(replies.RCPT_SYNTAX)
        elif parsed.parameters:
            self.say(replies.UNKNOWN_PARAMETER)
        else:
            self.say(cast(Reply, await self._call_handler_hook("RCPT", parsed.path, [])))
