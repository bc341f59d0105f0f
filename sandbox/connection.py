"""One connection to a simulated host, below SMTP: its slot, its record in the ledger, replies, delays, TLS.

Replies are gathered and go out once per read; before they go, the ledger's lines are on file. A reply may be replaced
by a behaviour's step: delayed (the connection is *held*: nothing is handled meanwhile), spoiled, dropped.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from sandbox.assessor import Assessor
from sandbox.behaviour import Behaviour, Phase, Step, spoken
from sandbox.certificate import Certificates
from sandbox.ledger import Ledger, Party
from sandbox.limits import Excess
from sandbox.maildir import Store
from sandbox.mailer import Mailer
from sandbox.slots import Slot, peer_has_closed
from sandbox.world import Domain, Host, World

MAX_SIZE = 52_428_800  # octets of one message, and of what may be buffered
_GARBAGE = b"\x00\xff\xfe% 9x9 ~~~ this is no SMTP reply\r\n"
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x28"  # fatal handshake_failure
_HANDSHAKE_SECONDS = 30.0


@dataclass(slots=True)
class Reception:
    """What all sessions of one sandbox share."""

    world: World
    ledger: Ledger
    certificates: Certificates
    assessor: Assessor
    mailer: Mailer
    store: Store | None = None
    sessions: set[Connection] = field(default_factory=set)
    number: int = 0
    handshakes: set[asyncio.Task[None]] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """State of one connection; made anew for each."""

    def __init__(self, reception: Reception, host: Host) -> None:
        self._shared = reception
        self._ledger: Ledger = reception.ledger
        self._host = host
        self._domain: Domain = host.owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._held: asyncio.TimerHandle | None = None
        self._tls = ""  # "" = clear, "handshake", "broken", "on"
        self._how = ""  # how it ended
        self._no_service = False  # greeted with 554
        self._left = 0.0  # when the kernel was found to have seen the peer's EOF
        self._messages = 0

    @abstractmethod
    def _run(self) -> None:
        """Handle what is buffered until the connection ends, is held, or more is needed; then flush."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget the mail transaction under way."""

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        shared = self._shared
        shared.number += 1
        shared.sessions.add(self)
        source = transport.get_extra_info("peername")[0]
        self._source: str = source
        socket = transport.get_extra_info("socket")
        self._descriptor: int = socket.fileno()
        self._party = Party(shared.number, self._host.name, self._host.site.name, source)
        self._slot = Slot((self._party.site, source), shared.number, self._peer_gone)
        most = self._host.site.limits.connections_per_source
        seen = self._ledger.slots.take(self._slot, most)
        self._opened = time.time()
        self._ledger.opened(self._party)
        if most and seen > most:
            held = self._ledger.slots.open(self._slot.key)
            if self._beyond(Excess("connections_per_source", most, seen), open=held):
                self._flush()
                return
        self._say("greeting", f"220 {self._host.name} ESMTP sandbox\r\n".encode(), self._step("greeting"))
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._how:
            return
        self._buffer += data
        if self._tls == "broken":
            self._out.append(_TLS_ALERT)
            self._end("dropped")
        elif self._held is None:
            self._run()
        elif len(self._buffer) > MAX_SIZE:
            self._end("dropped")

    def eof_received(self) -> bool:
        self._end("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("lost" if exc else "eof")
        self._shared.sessions.discard(self)

    @property
    def host(self) -> Host:
        return self._host

    def shut(self, reply: bytes = b"") -> None:
        """The sandbox closes: with a last reply, or at once when the host goes down."""
        if not self._how:
            self._out.append(reply)
            self._end("421" if reply else "dropped")
        if not reply and self._transport is not None:
            self._transport.abort()

    def _peer_gone(self) -> bool:
        gone = peer_has_closed(self._descriptor)
        if gone and not self._left:
            self._left = time.time()
        return gone

    def _end(self, how: str) -> None:
        """The slot is free, the record written, what was said is sent, the socket closed; once."""
        if self._how:
            return
        self._how = how
        if self._held is not None:
            self._held.cancel()
        self._ledger.slots.give(self._slot)
        ended = self._left or time.time()
        tls = self._tls == "on"
        self._ledger.ended(self._party, opened=self._opened, ended=ended, how=how, messages=self._messages, tls=tls)
        self._flush()
        self._buffer.clear()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        """Ledger and what is kept first, then the replies."""
        self._ledger.flush()
        if self._shared.store is not None:
            self._shared.store.flush()
        if self._out:
            if self._transport is not None:
                self._transport.write(b"".join(self._out))
            self._out.clear()

    # -- steps

    def _step(self, phase: Phase, behaviour: Behaviour | None = None) -> Step | None:
        """What replaces the usual reply at this phase, if anything does now."""
        steps = (behaviour or self._domain.treats(self._source)).steps
        if not steps:
            return None
        step = steps.get(phase)
        return step if step is not None and self._domain.due(phase, step) else None

    def _say(self, phase: str, usual: bytes, step: Step | None, then: Callable[[], None] | None = None) -> None:
        """Reply: the usual one (then ``then`` is called) or what the step wants."""
        if step is None:
            self._out.append(usual)
            if then is not None:
                then()
        elif step.delay_seconds:
            self._flush()
            self._held = self._loop.call_later(step.delay_seconds, self._resume, phase, usual, step, then)
        else:
            self._obey(phase, usual, step, then)

    def _resume(self, phase: str, usual: bytes, step: Step, then: Callable[[], None] | None) -> None:
        self._held = None
        self._obey(phase, usual, step, then)
        self._run()

    def _obey(self, phase: str, usual: bytes, step: Step, then: Callable[[], None] | None) -> None:
        said = spoken(step.reply, self._source, self._host.name) if step.reply else usual
        if step.reply:
            self._ledger.replies[self._domain.name, step.reply] += 1
        if step.drop or (step.reply and phase != "end_of_data"):
            self._ledger.refused[self._domain.name, "dropped" if step.drop else step.reply[:3]] += 1
        if step.drop:
            self._end("dropped")
        elif step.garbage:
            self._out.append(_GARBAGE)
        elif step.ends:
            self._refuse("", said)
        else:
            self._out.append(said)
            if phase == "greeting" and said[:1] != b"2":
                self._no_service = True
            elif then is not None and said[:1] == usual[:1]:
                then()

    def _refuse(self, limit: str, reply: bytes) -> None:
        """A last reply, then close."""
        if limit:
            self._ledger.refused[self._domain.name, reply[:3].decode()] += 1
        self._out.append(reply)
        self._end("421" if reply.startswith(b"421") else "dropped")

    def _beyond(self, excess: Excess, **details: object) -> bool:
        """A hidden limit is broken, which is recorded; True where the host refuses for it, and has said so."""
        limits = self._host.site.limits
        self._ledger.violation(self._party, excess.limit, most=excess.most, seen=excess.seen, **details)
        if limits.refuse:
            reply = limits.says(excess.limit)
            self._ledger.replies[self._domain.name, reply] += 1
            self._ledger.refused[self._domain.name, reply[:3]] += 1
            self._out.append(spoken(reply, self._source, self._host.name))
            if reply.startswith("421"):
                self._end("421")
        return limits.refuse

    # -- TLS

    def _break_tls(self) -> None:
        self._tls = "broken"
        self._buffer.clear()

    def _begin_tls(self) -> None:
        """Upgrade; what was pipelined behind STARTTLS is discarded (RFC 3207 §6)."""
        assert self._transport is not None
        self._tls = "handshake"
        self._buffer.clear()
        self._flush()
        self._transport.pause_reading()
        context = self._shared.certificates.context(self._domain.treats(self._source).certificate)
        task = self._loop.create_task(self._handshake(self._transport, context))
        self._shared.handshakes.add(task)
        task.add_done_callback(self._shared.handshakes.discard)

    async def _handshake(self, clear: asyncio.Transport, context: ssl.SSLContext) -> None:
        try:
            upgraded = await self._loop.start_tls(
                clear, self, context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS
            )
        except OSError:  # ssl.SSLError included
            upgraded = None
        if upgraded is None:
            self._end("lost")
            self._shared.sessions.discard(self)
            return
        self._transport = upgraded
        self._tls = "on"
        self._reset()
        self._run()
