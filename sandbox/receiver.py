"""The SMTP side of a simulated host: a lean receiver that takes thousands of messages a second (RFC 5321, 2920, 3461).

A message counts as received when its final dot is read, even when the peer is gone before the reply: that is what a
real host does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sandbox import parameters
from sandbox.behaviour import Behaviour
from sandbox.connection import MAX_SIZE, Connection, Reception
from sandbox.world import Host

MAX_RECIPIENTS = 1000
_MAX_LINE = 4096
_PATH = re.compile(r"(FROM|TO):\s*<(?:@[^:>]*:)?([^<>]*)>\s*(.*)", re.IGNORECASE)
_REFUSED = b"555 5.5.4 Parameter not recognized or not implemented\r\n"
_MESSAGE_ID = re.compile(rb"^message-id:\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class Receiver(Connection):
    """The dialogue and the mail transaction of one connection."""

    def __init__(self, reception: Reception, host: Host) -> None:
        super().__init__(reception, host)
        self._in_content = False
        self._scanned = 0  # octets of the content known to hold no final dot
        self._reverse_path: str | None = None  # None = no mail transaction
        self._recipients: list[str] = []
        self._said: dict[str, str] = {}  # parameters of MAIL
        self._said_of: list[dict[str, str]] = []  # and of RCPT, one entry per recipient
        self._late: Behaviour | None = None  # of a recipient, for the phases after RCPT

    # -- input

    def _run(self) -> None:
        """Handle what is buffered until it ends, is held, or more is needed; then reply."""
        while not self._how and self._held is None and self._tls != "handshake":
            if not (self._take_content() if self._in_content else self._take_line()):
                break
        if not self._how:
            self._flush()

    def _take_line(self) -> bool:
        buffer = self._buffer
        end = buffer.find(b"\n")
        if end < 0:
            if len(buffer) > _MAX_LINE:
                self._refuse("line", b"421 4.7.0 Line too long\r\n")
            return False
        line = buffer[:end].rstrip(b"\r").decode("utf-8", "replace")
        del buffer[: end + 1]
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if self._no_service and verb != "QUIT":
            self._out.append(b"503 5.5.1 No SMTP service here\r\n")
            return True
        handler = _VERBS.get(verb)
        if handler is None:
            self._out.append(b"500 5.5.2 Command unrecognized\r\n")
            return True
        if buffer and "PIPELINING" not in self._domain.treats(self._source).extensions:
            self._ledger.violation(self._party, "pipelining_not_offered", verb=verb)
        handler(self, argument)
        return True

    def _take_content(self) -> bool:
        buffer = self._buffer
        if self._scanned == 0 and buffer and (step := self._step("content", self._late)) is not None and step.drop:
            self._obey("content", b"", step, None)
            return False
        if buffer.startswith(b".\r\n"):
            self._in_content = False
            content = b""
            del buffer[:3]
        else:
            end = buffer.find(b"\r\n.\r\n", max(0, self._scanned - 4))
            if end < 0:
                self._scanned = max(1, len(buffer)) if buffer else 0
                if len(buffer) > MAX_SIZE:
                    self._refuse("size", b"552 5.3.4 Message too big\r\n")
                return False
            content = bytes(buffer[: end + 2])
            del buffer[: end + 5]
        self._in_content = False
        self._finish(content)
        return True

    def _finish(self, content: bytes) -> None:
        """The final dot: accept or refuse, record, reply."""
        recipients, reverse_path, late = self._recipients, self._reverse_path or "", self._late
        dsn = parameters.dsn(self._said, self._said_of)
        self._reset()
        self._messages += 1
        if not recipients:
            self._out.append(b"554 5.5.1 No valid recipients\r\n")
            return
        step = self._step("end_of_data", late)
        if step is None or step.takes:
            message_id = _message_id(content)
            if self._shared.store is not None:
                self._shared.store.keep(reverse_path, recipients, _unstuffed(content))
            answered = step is None or not (step.drop or step.garbage)
            self._ledger.accept(
                self._party, message_id, reverse_path, recipients, size=len(content), answered=answered, dsn=dsn
            )
        elif step.reply:
            self._ledger.refused[self._domain.name, step.reply[:3]] += 1
        self._say("end_of_data", b"250 2.0.0 Ok: received\r\n", step)

    # -- verbs

    def _reset(self) -> None:
        self._reverse_path = None
        self._recipients = []
        self._said = {}
        self._said_of = []
        self._late = None
        self._scanned = 0

    def _helo(self, _: str) -> None:
        self._reset()
        self._out.append(f"250 {self._host.name}\r\n".encode())

    def _ehlo(self, _: str) -> None:
        self._reset()
        behaviour = self._domain.treats(self._source)
        keywords = [self._host.name, f"SIZE {MAX_SIZE}", *behaviour.extensions]
        if behaviour.tls != "none" and not self._tls:
            keywords.append("STARTTLS")
        lines = [f"250{'-' if more else ' '}{word}\r\n" for word, more in _with_more(keywords)]
        self._say("ehlo", "".join(lines).encode(), self._step("ehlo"))

    def _starttls(self, _: str) -> None:
        offer = self._domain.treats(self._source).tls
        if offer == "none" or self._tls:
            self._out.append(b"503 5.5.1 STARTTLS not offered\r\n")
            return
        then = self._break_tls if offer == "broken" else self._begin_tls
        self._say("starttls", b"220 2.0.0 Ready to start TLS\r\n", self._step("starttls"), then)

    def _mail(self, argument: str) -> None:
        limits = self._host.site.limits
        most = limits.messages_per_connection
        if most and self._messages >= most:
            self._ledger.violation(self._party, "messages_per_connection", most=most, seen=self._messages + 1)
            if limits.refuse:
                self._refuse("messages", b"421 4.7.0 Too many messages in this connection\r\n")
                return
        if self._domain.treats(self._source).tls == "required" and self._tls != "on":
            self._out.append(b"530 5.7.0 Must issue a STARTTLS command first\r\n")
            return
        path = _PATH.fullmatch(argument)
        if path is None or path[1].upper() != "FROM":
            self._out.append(b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n")
            return
        if self._reverse_path is not None:
            self._out.append(b"503 5.5.1 Nested MAIL command\r\n")
            return
        said = parameters.read(path[3], parameters.MAIL, self._domain.treats(self._source).extensions)
        if said is None:
            self._out.append(_REFUSED)
            return
        size = said.get("SIZE", "")
        if size.isdecimal() and int(size) > MAX_SIZE:
            self._out.append(b"552 5.3.4 Message size exceeds fixed limit\r\n")
            return
        address = path[2]

        def begin() -> None:
            self._reverse_path, self._said = address, said

        self._say("mail", b"250 2.1.0 Ok\r\n", self._step("mail"), begin)

    def _rcpt(self, argument: str) -> None:
        path = _PATH.fullmatch(argument)
        if path is None or path[1].upper() != "TO" or not path[2]:
            self._out.append(b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
            return
        if self._reverse_path is None:
            self._out.append(b"503 5.5.1 Need MAIL first\r\n")
            return
        if len(self._recipients) >= MAX_RECIPIENTS:
            self._out.append(b"452 4.5.3 Too many recipients\r\n")
            return
        said = parameters.read(path[3], parameters.RCPT, self._domain.treats(self._source).extensions)
        if said is None:
            self._out.append(_REFUSED)
            return
        recipient = path[2]
        local, _, name = recipient.rpartition("@")
        domain = self._host.domain(name.lower())
        if domain is None:
            self._ledger.refused[name.lower(), "550"] += 1
            self._out.append(b"550 5.7.1 This host does not take mail for that domain\r\n")
            return
        asked = self._shared.world.catalogue.for_local_part(local) if "+" in local else None
        behaviour = asked or domain.treats(self._source)
        wait = behaviour.greylist_seconds
        if wait is not None and self._shared.world.greylist.refuses(
            self._loop.time(), wait, self._source, self._reverse_path, recipient
        ):
            self._ledger.refused[domain.name, "451"] += 1
            self._out.append(b"451 4.7.1 Greylisted, please try again later\r\n")
            return

        def add() -> None:
            self._recipients.append(recipient)
            self._said_of.append(said)
            if behaviour.late and self._late is None:
                self._late = behaviour

        self._say("rcpt", b"250 2.1.5 Ok\r\n", self._step("rcpt", behaviour), add)

    def _data(self, _: str) -> None:
        eager = self._domain.treats(self._source).eager_data and self._reverse_path is not None
        if not self._recipients and not eager:
            wrong = (
                b"503 5.5.1 Need MAIL first\r\n" if self._reverse_path is None else b"554 5.5.1 No valid recipients\r\n"
            )
            self._out.append(wrong)
            return
        if self._buffer:
            self._ledger.violation(self._party, "content_before_354")

        def begin() -> None:
            self._in_content = True

        self._say("data", b"354 End data with <CR><LF>.<CR><LF>\r\n", self._step("data", self._late), begin)

    def _rset(self, _: str) -> None:
        self._reset()
        self._out.append(b"250 2.0.0 Ok\r\n")

    def _noop(self, _: str) -> None:
        self._out.append(b"250 2.0.0 Ok\r\n")

    def _vrfy(self, _: str) -> None:
        self._out.append(b"252 2.5.0 Send some mail, and I will try\r\n")

    def _quit(self, _: str) -> None:
        self._out.append(f"221 2.0.0 {self._host.name} closing\r\n".encode())
        self._end("221")


def _with_more(words: list[str]) -> list[tuple[str, bool]]:
    return [(word, index < len(words) - 1) for index, word in enumerate(words)]


def _message_id(content: bytes) -> str:
    """Value of the first Message-ID field of the header section; "" when there is none."""
    end = content.find(b"\r\n\r\n")
    found = _MESSAGE_ID.search(content, 0, end if end >= 0 else len(content))
    return found[1].strip().decode("utf-8", "replace") if found else ""


def _unstuffed(content: bytes) -> bytes:
    """Content without the dots that transparency added (RFC 5321 §4.5.2)."""
    text = content[1:] if content.startswith(b".") else content
    return text.replace(b"\r\n..", b"\r\n.")


_VERBS: dict[str, Callable[[Receiver, str], None]] = {
    "EHLO": Receiver._ehlo,
    "HELO": Receiver._helo,
    "STARTTLS": Receiver._starttls,
    "MAIL": Receiver._mail,
    "RCPT": Receiver._rcpt,
    "DATA": Receiver._data,
    "RSET": Receiver._rset,
    "NOOP": Receiver._noop,
    "VRFY": Receiver._vrfy,
    "QUIT": Receiver._quit,
}
