"""EHLO, HELO and the verbs that change nothing: NOOP, RSET, QUIT, HELP, VRFY, EXPN."""

from __future__ import annotations

from relayd import replies
from relayd.listener.session import SessionProtocol


class HelloVerbs(SessionProtocol):
    async def smtp_EHLO(self, hostname: str) -> None:
        if self._hello(hostname, extended=True):
            keywords = self._keywords()
            lines = [f"250-{word}" for word in keywords[:-1]] + [f"250 {keywords[-1]}"]
            self.say_raw(("\r\n".join(lines) + "\r\n").encode("ascii"))

    async def smtp_HELO(self, hostname: str) -> None:
        if self._hello(hostname, extended=False):
            self.say_raw(f"250 {self.hostname}\r\n".encode("ascii"))

    def _hello(self, name: str, *, extended: bool) -> bool:
        """Start over with the client's name; False when it gave none."""
        name = name.partition(" ")[0]
        if not name:
            self.say(replies.HELLO_SYNTAX)
            return False
        self._set_rset_state()
        self._reset_command_sizes()
        assert self.session is not None
        self.session.extended_smtp = extended
        self.session.host_name = name
        self.introduce()
        return True

    def _keywords(self) -> list[str]:
        words = [self.hostname, "PIPELINING", f"SIZE {self.size_limit}", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN"]
        words.append("ENHANCEDSTATUSCODES")
        if self.tls_context is not None:
            words.append("AUTH PLAIN LOGIN" if self.tls_active else "STARTTLS")
        return words

    def said_hello(self) -> bool:
        assert self.session is not None
        if self.session.host_name:
            return True
        self.say(replies.HELLO_FIRST)
        return False

    async def smtp_NOOP(self, arg: str) -> None:
        self.say(replies.OK)

    async def smtp_RSET(self, arg: str) -> None:
        if arg:
            self.say(replies.NO_ARGUMENT)
            return
        self._set_rset_state()
        self.say(replies.OK)

    async def smtp_QUIT(self, arg: str) -> None:
        if arg:
            self.say(replies.NO_ARGUMENT)
        else:
            self.hang_up(replies.QUIT)

    async def smtp_HELP(self, arg: str) -> None:
        self.say(replies.HELP)

    async def smtp_VRFY(self, arg: str) -> None:
        address, _, parameter = arg.rpartition(" ")  # RFC 6531 §3.7.4.2
        utf8 = bool(address) and parameter.upper() == "SMTPUTF8"
        self.say(replies.CANNOT_VERIFY if utf8 or arg.isascii() else replies.NOT_ASCII)

    async def smtp_EXPN(self, arg: str) -> None:
        self.say(replies.NOT_OFFERED)
