"""The SMTP side of a simulated host: a lean receiver that takes thousands of messages a second (RFC 5321, 2920, 3461).

A message counts as received when its final dot is read, even when the peer is gone before the reply: that is what a
real host does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sandbox import parameters, taking
from sandbox.behaviour import spoken
from sandbox.connection import MAX_SIZE, Connection, Reception
from sandbox.content import message_id
from sandbox.limits import Excess
from sandbox.taking import Client, Transaction
from sandbox.world import Host

MAX_RECIPIENTS = 1000
_MAX_LINE = 4096
_PATH = re.compile(r"(FROM|TO):\s*<(?:@[^:>]*:)?([^<>]*)>\s*(.*)", re.IGNORECASE)
_REFUSED = b"555 5.5.4 Parameter not recognized or not implemented\r\n"


class Receiver(Connection):
    """The dialogue and the mail transaction of one connection."""

    def __init__(self, reception: Reception, host: Host) -> None:
        super().__init__(reception, host)
        self._in_content = False
        self._scanned = 0  # octets of the content known to hold no final dot
        self._it = Transaction()
        self._named = ""  # what the client called itself

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
        if self._scanned == 0 and buffer and (step := self._step("content", self._it.late)) is not None and step.drop:
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
        it, now = self._it, self._loop.time()
        self._reset()
        self._messages += 1
        if not it.recipients:
            self._out.append(b"554 5.5.1 No valid recipients\r\n")
            return
        client = Client(self._source, self._named, self._host, self._tls == "on")
        step = self._step("end_of_data", it.late)
        if (step is None or step.takes) and (it.late or self._domain.treats(self._source)).authenticate:
            step = taking.refusal(self._shared, client, it, content)
        if step is None or step.takes:
            self._ledger.accept(
                self._party,
                message_id(content),
                it.reverse_path or "",
                it.recipients,
                size=len(content),
                answered=step is None or not (step.drop or step.garbage),
                dsn=parameters.dsn(it.said, it.said_of),
            )
            taking.keep(self._shared, client, it, content, now)
        elif step.reply:
            self._ledger.refused[self._domain.name, step.reply[:3]] += 1
        self._say("end_of_data", b"250 2.0.0 Ok: received\r\n", step)

    # -- verbs

    def _reset(self) -> None:
        self._it = Transaction()
        self._scanned = 0

    def _helo(self, name: str) -> None:
        self._reset()
        self._named = name.strip()[:255]
        self._out.append(f"250 {self._host.name}\r\n".encode())

    def _ehlo(self, name: str) -> None:
        self._reset()
        self._named = name.strip()[:255]
        behaviour = self._domain.treats(self._source)
        keywords = [self._host.name, f"SIZE {MAX_SIZE}", *behaviour.extensions]
        if behaviour.tls != "none" and not self._tls:
            keywords.append("STARTTLS")
        lines = [*(f"250-{word}\r\n" for word in keywords[:-1]), f"250 {keywords[-1]}\r\n"]
        self._say("ehlo", "".join(lines).encode(), self._step("ehlo"))

    def _starttls(self, _: str) -> None:
        offer = self._domain.treats(self._source).tls
        if offer == "none" or self._tls:
            self._out.append(b"503 5.5.1 STARTTLS not offered\r\n")
            return
        then = self._break_tls if offer == "broken" else self._begin_tls
        self._say("starttls", b"220 2.0.0 Ready to start TLS\r\n", self._step("starttls"), then)

    def _mail(self, argument: str) -> None:
        excess = self._excess()
        if excess is not None and self._beyond(excess):
            return
        treats = self._domain.treats(self._source)
        if treats.tls == "required" and self._tls != "on":
            self._ledger.replies[self._domain.name, treats.tls_refusal] += 1
            refusal = spoken(treats.tls_refusal, self._source, self._host.name)
            self._refuse("tls", refusal) if refusal.startswith(b"421") else self._out.append(refusal)
            return
        path = _PATH.fullmatch(argument)
        if path is None or path[1].upper() != "FROM":
            self._out.append(b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n")
            return
        if self._it.reverse_path is not None:
            self._out.append(b"503 5.5.1 Nested MAIL command\r\n")
            return
        said = parameters.read(path[3], parameters.MAIL, treats.extensions)
        if said is None:
            self._out.append(_REFUSED)
            return
        size = said.get("SIZE", "")
        if size.isdecimal() and int(size) > MAX_SIZE:
            self._out.append(b"552 5.3.4 Message size exceeds fixed limit\r\n")
            return
        address = path[2]

        def begin() -> None:
            self._it.reverse_path, self._it.said = address, said

        self._say("mail", b"250 2.1.0 Ok\r\n", self._step("mail"), begin)

    def _rcpt(self, argument: str) -> None:
        path = _PATH.fullmatch(argument)
        if path is None or path[1].upper() != "TO" or not path[2]:
            self._out.append(b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
            return
        it = self._it
        if it.reverse_path is None:
            self._out.append(b"503 5.5.1 Need MAIL first\r\n")
            return
        limits, count = self._host.site.limits, len(it.recipients)
        if limits.recipients_per_message and count >= limits.recipients_per_message:
            excess = Excess("recipients_per_message", limits.recipients_per_message, count + 1)
            if self._beyond(excess):
                return
        if count >= MAX_RECIPIENTS:
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
            self._loop.time(), wait, self._source, it.reverse_path, recipient
        ):
            self._ledger.refused[domain.name, "451"] += 1
            self._out.append(b"451 4.7.1 Greylisted, please try again later\r\n")
            return

        def add() -> None:
            it.recipients.append(recipient)
            it.said_of.append(said)
            if behaviour.late and it.late is None:
                it.late = behaviour
            if behaviour.later is not None and domain.returns(behaviour.later):
                it.backs.append((recipient, behaviour.later))

        step = self._step("rcpt", behaviour)
        if limits.unknown_share:
            unknown = step is not None and step.reply.startswith("5")
            self._shared.world.accounts.of(self._host.site.name, self._source).recipient(not unknown)
        self._say("rcpt", b"250 2.1.5 Ok\r\n", step, add)

    def _excess(self) -> Excess | None:
        """The hidden limit that one more message in this connection, or from this source, would break."""
        site = self._host.site
        most = site.limits.messages_per_connection
        if most and self._messages >= most:
            return Excess("messages_per_connection", most, self._messages + 1)
        if not site.limits.counted:
            return None
        return self._shared.world.accounts.of(site.name, self._source).excess(site.limits, self._loop.time())

    def _data(self, _: str) -> None:
        eager = self._domain.treats(self._source).eager_data and self._it.reverse_path is not None
        if not self._it.recipients and not eager:
            wrong = (
                b"503 5.5.1 Need MAIL first\r\n"
                if self._it.reverse_path is None
                else b"554 5.5.1 No valid recipients\r\n"
            )
            self._out.append(wrong)
            return
        if self._buffer:
            self._ledger.violation(self._party, "content_before_354")

        def begin() -> None:
            self._in_content = True

        self._say("data", b"354 End data with <CR><LF>.<CR><LF>\r\n", self._step("data", self._it.late), begin)

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
