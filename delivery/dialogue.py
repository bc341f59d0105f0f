"""The client's side of SMTP without I/O (RFC 5321, 2920, 1870, 6152, 6531, 3461, 3207): bytes in, events out.

The driver writes what ``Send`` events carry, calls one verb at a time (``ehlo``, ``begin``, ``content``, ``quit`` …)
and tells the dialogue when the connection is gone (``lost``). Who speaks next is one queue: ``_awaited`` holds, in
order, every command whose reply is outstanding; a reply that nobody awaits is a fault, so that we never take the
answer to one command for the answer to another.

    begin ── MAIL ── RCPT… ── DATA ──354──▶ ContentWanted ── content + dot ──▶ Done
      │        └─ refused ───────┴─ refused ──────────────────────────────────▶ Done
      └─ the message cannot go to this host at all ───────────────────────────▶ Done (local)

With PIPELINING, MAIL, all RCPTs and DATA are one write; without it each follows the reply before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from delivery.extensions import Extensions, extensions_of, mail_command, rcpt_command, unfit, unsendable
from delivery.reply import Ear, Phase, ProtocolFault, Reply, ReplyParser
from delivery.transaction import Exchange, RecipientResult, Transaction, TransactionResult, refuse_all

__all__ = ["Dialogue", "Phase", "RecipientResult", "Reply", "Transaction", "TransactionResult"]


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes to write now."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to the greeting, EHLO, STARTTLS or QUIT."""

    phase: Phase
    reply: Reply


@dataclass(frozen=True, slots=True)
class ContentWanted:
    """354, and at least one recipient is accepted."""


@dataclass(frozen=True, slots=True)
class Done:
    """The transaction is over; every recipient has a result."""

    result: TransactionResult


@dataclass(frozen=True, slots=True)
class Closing:
    """421 while nothing was asked."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Fault:
    """The peer broke the protocol; drop the connection and call ``lost``."""

    text: str


Event = Send | Answer | ContentWanted | Done | Closing | Fault

_CONTENT_WANTED = ContentWanted()
_SESSION = -1  # in the queue of awaited replies: not a recipient's
_RSET = -2


class Dialogue:
    """State of one session. ``closing``: the peer said 421, or no further transaction is possible."""

    def __init__(self, hostname: str) -> None:
        self.hostname = hostname
        self.extensions: Extensions = {}
        self.closing = False
        self.answered = 0  # replies read
        self.ear: Ear | None = None
        self._parser = ReplyParser()
        self._awaited: deque[tuple[Phase, int]] = deque([(Phase.GREETING, _SESSION)])
        self._heard: tuple[Phase, int] | None = None  # whose reply is being looked at
        self._exchange: Exchange | None = None
        self._content_open = False  # between 354 and the final dot
        self._dirty = False  # the peer may still hold a transaction: RSET before the next MAIL
        self._handshake = False  # between the 220 to STARTTLS and tls_started(): not a byte may come

    @property
    def phase(self) -> Phase:
        """Of the reply awaited, else CONTENT while content is wanted, else MAIL: the next thing to say."""
        if self._awaited:
            return self._awaited[0][0]
        return Phase.CONTENT if self._content_open else Phase.MAIL

    @property
    def in_transaction(self) -> bool:
        return self._exchange is not None

    @property
    def pipelining(self) -> bool:
        return "PIPELINING" in self.extensions

    # -- what we say ---------------------------------------------------------------------------------------------

    def ehlo(self) -> bytes:
        return self._say(Phase.EHLO, f"EHLO {self.hostname}\r\n")

    def helo(self) -> bytes:
        """For peers that refuse EHLO (RFC 5321 §3.2); no extensions then."""
        return self._say(Phase.EHLO, f"HELO {self.hostname}\r\n")

    def starttls(self) -> bytes:
        return self._say(Phase.STARTTLS, "STARTTLS\r\n")

    def tls_started(self) -> None:
        """What was learnt in clear is forgotten (RFC 3207 §4.2)."""
        self.extensions, self._handshake = {}, False

    def quit(self) -> bytes:
        return self._say(Phase.QUIT, "QUIT\r\n")

    def begin(self, transaction: Transaction) -> list[Event]:
        """Start a mail transaction. Done at once, with our own replies, when this host cannot take the message."""
        refusal = unfit(self.extensions, transaction)
        if refusal is not None:
            return [Done(refuse_all(transaction, refusal))]
        self._exchange = Exchange(transaction, unsendable(transaction), "DSN" in self.extensions)
        if not self._exchange.asked:
            return [self._done()]
        commands = []
        if self._dirty:
            commands.append("RSET\r\n")
            self._awaited.append((Phase.MAIL, _RSET))
            self._dirty = False
        if not self.pipelining:
            if not commands:
                return [Send(self._say(Phase.MAIL, mail_command(self.extensions, transaction)))]
            self._overhear(commands)
            return [Send(commands[0].encode("ascii"))]
        commands.append(mail_command(self.extensions, transaction))
        self._awaited.append((Phase.MAIL, _SESSION))
        for index in self._exchange.asked:
            commands.append(rcpt_command(self.extensions, transaction, index))
            self._awaited.append((Phase.RCPT, index))
        commands.append("DATA\r\n")
        self._awaited.append((Phase.DATA, _SESSION))
        self._overhear(commands)
        return [Send("".join(commands).encode("utf-8"))]

    def content(self) -> bytes:
        """The content as it goes over the wire, dots doubled (RFC 5321 §4.5.2), without the final dot."""
        if self._exchange is None or not self._content_open:
            raise RuntimeError("no content is wanted")
        content = self._exchange.transaction.content
        if self.ear is not None:
            self.ear("C", Phase.CONTENT, f"({len(content)} octets of content)")
        stuffed = content.replace(b"\r\n.", b"\r\n..")
        if content.startswith(b"."):
            stuffed = b"." + stuffed
        return stuffed if stuffed.endswith(b"\r\n") or not stuffed else stuffed + b"\r\n"

    def dot(self) -> bytes:
        """The end of data. From here on a lost connection leaves the outcome unknown."""
        if self._exchange is None or not self._content_open:
            raise RuntimeError("no content is wanted")
        self._content_open = False
        self._exchange.dotted = True
        return self._say(Phase.END_OF_DATA, ".\r\n")

    def lost(self, text: str, aborted: bool = False) -> TransactionResult:
        """The connection is gone (or we gave it up, ``aborted``): close the transaction under way."""
        exchange = self._exchange
        if exchange is None:
            raise RuntimeError("no transaction is under way")
        exchange.lose(text, self.phase)
        self.closing = True
        return self._done(aborted).result

    # -- what we hear --------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> list[Event]:
        """Events in order; a Fault is always the last one, and the end of the dialogue."""
        events: list[Event] = []
        try:
            if self._handshake:
                raise ProtocolFault("bytes in clear after the reply to STARTTLS")
            self._parser.push(data)
            while (reply := self._parser.next()) is not None:
                self.answered += 1
                self._hear(reply, events)
        except ProtocolFault as fault:
            if self._heard is not None:  # what came was no answer to it: it is still the phase we are in
                self._awaited.appendleft(self._heard)
            self.closing = True
            events.append(Fault(str(fault)))
        return events

    def _hear(self, reply: Reply, events: list[Event]) -> None:
        if self.ear is not None:
            self.ear("S", self.phase, reply.spelled)
        if reply.closing:
            self.closing = True
        if not self._awaited:
            self._out_of_turn(reply, events)
            return
        self._heard = phase, index = self._awaited.popleft()
        if self._exchange is None:
            self._session_reply(phase, reply)
            events.append(Answer(phase, reply))
        elif reply.closing and phase is not Phase.END_OF_DATA:
            self._give_up(reply, phase, events)  # the replies to the rest of the pipeline will not come
        elif phase is Phase.RCPT:
            self._rcpt_reply(self._exchange, index, reply, events)
        elif phase is Phase.MAIL:
            self._mail_reply(self._exchange, index, reply, events)
        elif phase is Phase.DATA:
            self._data_reply(self._exchange, reply, events)
        else:
            self._end_reply(self._exchange, reply, events)
        self._heard = None

    def _session_reply(self, phase: Phase, reply: Reply) -> None:
        if phase is Phase.EHLO and reply.positive:
            self.extensions = extensions_of(reply)
        elif phase is Phase.STARTTLS and reply.positive:
            self._handshake = True
            if not self._parser.idle:  # commands or replies injected before the handshake (CVE-2011-0411 and kin)
                raise ProtocolFault("bytes in clear after the reply to STARTTLS")

    def _out_of_turn(self, reply: Reply, events: list[Event]) -> None:
        if self._content_open and reply.code >= 400:  # refused before it was all there; DATA has no other way out
            self._give_up(reply, Phase.CONTENT, events)
        elif reply.closing:
            events.append(Closing(reply))
        else:
            raise ProtocolFault(f"reply out of turn: {reply}")

    def _mail_reply(self, exchange: Exchange, index: int, reply: Reply, events: list[Event]) -> None:
        if reply.intermediate:
            raise ProtocolFault(f"reply to MAIL: {reply}")
        if index == _RSET:
            if not reply.positive:  # a peer that cannot reset cannot be used again
                self._give_up(reply, Phase.MAIL, events)
            elif not self.pipelining:
                events.append(Send(self._say(Phase.MAIL, mail_command(self.extensions, exchange.transaction))))
            return
        if reply.positive:
            self._dirty = True
        else:
            exchange.refused = True
            exchange.settle(reply, Phase.MAIL)
        if not self.pipelining:
            self._next_command(exchange, 0, events)

    def _rcpt_reply(self, exchange: Exchange, index: int, reply: Reply, events: list[Event]) -> None:
        if reply.intermediate:
            raise ProtocolFault(f"reply to RCPT: {reply}")
        exchange.answer(index, reply)
        if not self.pipelining:
            self._next_command(exchange, exchange.asked.index(index) + 1, events)

    def _next_command(self, exchange: Exchange, step: int, events: list[Event]) -> None:
        """Without PIPELINING: the ``step``-th RCPT, then DATA if anyone is accepted, else the end."""
        if exchange.refused or (step == len(exchange.asked) and not exchange.accepted):
            events.append(self._done())
        elif step < len(exchange.asked):
            index = exchange.asked[step]
            command = rcpt_command(self.extensions, exchange.transaction, index)
            events.append(Send(self._say(Phase.RCPT, command, index)))
        else:
            events.append(Send(self._say(Phase.DATA, "DATA\r\n")))

    def _data_reply(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        if reply.positive:
            raise ProtocolFault(f"reply to DATA: {reply}")
        if not reply.intermediate:
            exchange.settle(reply, Phase.DATA)
            events.append(self._done())
        elif exchange.accepted:
            self._content_open = True
            events.append(_CONTENT_WANTED)
        else:  # it wants content for nobody: an empty message ends that (RFC 2920 §3.1)
            events.append(Send(self._say(Phase.END_OF_DATA, ".\r\n")))

    def _end_reply(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        if reply.intermediate:
            raise ProtocolFault(f"reply to the final dot: {reply}")
        if exchange.dotted:
            self._dirty = False
            exchange.settle(reply, Phase.END_OF_DATA)
        events.append(self._done())

    # -- small steps ---------------------------------------------------------------------------------------------

    def _say(self, phase: Phase, command: str, index: int = _SESSION) -> bytes:
        self._awaited.append((phase, index))
        if self.ear is not None:
            self.ear("C", phase, command)
        return command.encode("utf-8")

    def _overhear(self, commands: Sequence[str]) -> None:
        """Commands whose replies are the last that are awaited."""
        if self.ear is not None:
            phases = list(self._awaited)[-len(commands) :]
            for (phase, _), command in zip(phases, commands, strict=True):
                self.ear("C", phase, command)

    def _give_up(self, reply: Reply, phase: Phase, events: list[Event]) -> None:
        """``reply`` speaks for everybody who has none, and nothing can follow on this connection."""
        assert self._exchange is not None
        self.closing = True
        self._awaited.clear()
        self._exchange.settle(reply, phase)
        events.append(self._done())

    def _done(self, aborted: bool = False) -> Done:
        assert self._exchange is not None
        done = Done(self._exchange.result(aborted))
        self._exchange, self._content_open = None, False
        return done
