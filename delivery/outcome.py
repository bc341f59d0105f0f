"""What became of one recipient in one attempt: reply, loss, time-out or route failure → Outcome. Pure.

The first digit of the reply is the default; the phase gives the scope; the reply rules (config/replies.toml)
overrule both where the text blames another party than the address. Whatever is not understood is transient:
a relay loses nothing out of ignorance. Only a lost end of data is ``unknown``, because only there the next hop
may have taken responsibility without our hearing of it (RFC 5321 §4.1.1.4, RFC 1047).

========================== ============ ==================== ================================================
phase                      4xx          5xx                  why
========================== ============ ==================== ================================================
up to TLS                  session      session, transient   this host refuses us; another MX may not (554: RFC 5321 §3.1)
MAIL                       message      message, permanent   for all recipients of this transaction
RCPT                       recipient    recipient, permanent 552 counts as 452 (RFC 5321 §4.5.3.1.10)
DATA, CONTENT, END_OF_DATA message      message, permanent
any                        421: session –                    the host closes the channel (RFC 5321 §3.8)
========================== ============ ==================== ================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from config.replies import Rules, one_line
from delivery.reply import Phase, Reply
from delivery.transaction import RecipientResult

DIAGNOSTIC_LIMIT = 1000  # characters kept of what a peer says
EXPIRED = "4.4.7"  # RFC 3463 §3.5: delivery time expired
UNMATCHED = "unmatched"  # rule of an outcome that nobody understood: to be logged loud
EXPIRY = "expiry"  # rule of an item that ran out of time without an attempt

BEFORE_MAIL = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.TLS, Phase.AUTH})


class Result(StrEnum):
    DELIVERED = "delivered"  # the next hop has taken responsibility
    TRANSIENT = "transient"  # worth another attempt
    PERMANENT = "permanent"  # the same attempt would fail again
    UNKNOWN = "unknown"  # the final dot was sent and its reply is not known


class Scope(StrEnum):
    """How far the outcome reaches."""

    SESSION = "session"  # this connection, this host
    SITE = "site"  # all hosts of the destination, for this source
    MESSAGE = "message"  # all recipients of this transaction
    RECIPIENT = "recipient"  # this one


@dataclass(frozen=True, slots=True)
class Via:
    """Between whom the attempt was made: "host [address]", our source address, TLS protocol and cipher ("" = clear);
    ``dsn``: the remote was given the DSN parameters."""

    remote_mta: str = ""
    source: str = ""
    tls: str = ""
    dsn: bool = False


NOWHERE = Via()


@dataclass(frozen=True, slots=True)
class Outcome:
    result: Result
    scope: Scope
    status: str  # RFC 3463; its class agrees with the result, whatever the peer wrote
    diagnostic: str  # one line, printable, bounded; the remote reply with its code, or our own words
    reply: Reply | None
    phase: Phase
    remote_mta: str = ""
    source: str = ""
    tls: str = ""
    rule: str = ""  # id of the reply rule, UNMATCHED, EXPIRY or ""
    another_source: bool = False  # the refusal is about our address: another one may be heard
    dsn: bool = False  # the next hop was given the DSN parameters: to tell of success is its part

    @property
    def untouched(self) -> bool:
        """Says nothing about the item: the session ended before a transaction for it was begun."""
        return self.scope is Scope.SESSION and (self.phase in BEFORE_MAIL or self.phase is Phase.MAIL)


def one_printable_line(text: str, limit: int = DIAGNOSTIC_LIMIT) -> str:
    """White space collapsed, control and unencodable characters as "?", cut at ``limit`` with "…"."""
    line = " ".join(text[: 4 * limit].split())
    line = "".join(c if c.isprintable() else "?" for c in line)  # also lone surrogates
    return line if len(line) <= limit else line[: limit - 1] + "…"


def accepted(reply: Reply, via: Via = NOWHERE) -> Outcome:
    """A 2xx to the end of data."""
    status = _status(reply, "2")
    text = _diagnostic(reply)
    return _of(Result.DELIVERED, Scope.RECIPIENT, status, text, reply=reply, phase=Phase.END_OF_DATA, via=via)


def judged(result: RecipientResult, rules: Rules, via: Via = NOWHERE) -> Outcome:
    """What a mail transaction says of one recipient."""
    if result.reply is None:
        return lost(result.phase, result.lost, via, result.unknown)
    if result.local:
        return refused_here(result.reply, result.phase, via)
    return replied(result.reply, result.phase, rules, via)


def refused_here(reply: Reply, phase: Phase, via: Via = NOWHERE) -> Outcome:
    """Our own refusal (the message cannot go this way): no rule applies, and the diagnostic is no remote reply's."""
    result, scope = _by_first_digit(reply.code, phase)
    status = _status(reply, "5" if result is Result.PERMANENT else "4")
    return _of(result, scope, status, _text(reply), phase=phase, via=via)


def replied(reply: Reply, phase: Phase, rules: Rules, via: Via = NOWHERE) -> Outcome:
    """A reply that decides: acceptance at the end of data, a refusal at any phase, or something that is neither."""
    digit = reply.code // 100
    if digit == 2 and phase is Phase.END_OF_DATA:
        return accepted(reply, via)
    if digit not in (4, 5):
        return _senseless(reply, phase, via)
    result, scope = _by_first_digit(reply.code, phase)
    text = _text(reply)
    rule = rules.match(phase.value, reply.code, one_line(reply.code, reply.status, text))
    if rule is not None:
        result = Result(rule.result)
        scope = Scope(rule.scope) if rule.scope else scope
    status = _status(reply, "5" if result is Result.PERMANENT else "4")
    outcome = _of(result, scope, status, _diagnostic(reply), reply=reply, phase=phase, via=via)
    if rule is None:
        return outcome
    return replace(outcome, rule=rule.id, another_source=rule.another_source)


def lost(phase: Phase, text: str, via: Via = NOWHERE, unknown: bool | None = None) -> Outcome:
    """The connection went away. ``unknown`` = the final dot was (maybe partly) written; None: judged by the phase."""
    if phase is Phase.END_OF_DATA if unknown is None else unknown:
        text = f"reply to end of data lost: {text}"
        return _of(Result.UNKNOWN, Scope.MESSAGE, "4.4.2", text, phase=Phase.END_OF_DATA, via=via)
    status = "4.4.1" if phase is Phase.CONNECT else "4.4.2"
    return _of(Result.TRANSIENT, Scope.SESSION, status, text, phase=phase, via=via)


def timed_out(phase: Phase, seconds: float, via: Via = NOWHERE, unknown: bool | None = None) -> Outcome:
    """No answer within the time-out of the phase."""
    return lost(phase, f"timed out after {seconds:g} s in phase {phase.value}", via, unknown)


def not_connected(text: str, via: Via = NOWHERE, *, our_fault: bool = False) -> Outcome:
    """No connection: refused, unreachable, or (``our_fault``) the source address is gone or out of ports."""
    if our_fault:
        outcome = _of(Result.TRANSIENT, Scope.SESSION, "4.3.5", text, phase=Phase.CONNECT, via=via)
        return replace(outcome, another_source=True)
    return lost(Phase.CONNECT, text, via)


def tls_failed(text: str, via: Via = NOWHERE, phase: Phase = Phase.TLS) -> Outcome:
    """Encryption is required and was not had (RFC 3463 §3.8, X.7.5 cryptographic failure)."""
    return _of(Result.TRANSIENT, Scope.SESSION, "4.7.5", text, phase=phase, via=via)


def login_failed(text: str, via: Via = NOWHERE, reply: Reply | None = None) -> Outcome:
    """A smarthost does not know us (RFC 4954 §6). No reply rule applies: whatever it says, no address is to blame."""
    return _of(Result.TRANSIENT, Scope.SESSION, "4.7.8", text, reply=reply, phase=Phase.AUTH, via=via)


def unroutable(status: str, text: str, *, permanent: bool, via: Via = NOWHERE) -> Outcome:
    """No next hop: the route itself is the failure (no such domain, null MX, our own address, DNS trouble)."""
    result, first = (Result.PERMANENT, "5") if permanent else (Result.TRANSIENT, "4")
    return _of(result, Scope.SITE, first + status[1:] if status else f"{first}.4.4", text, phase=Phase.CONNECT, via=via)


def expired(last: str = "", via: Via = NOWHERE) -> Outcome:
    """Time ran out without another attempt; ``last`` is the last diagnostic, kept as it was."""
    text = last or "delivery time expired"
    return replace(_of(Result.PERMANENT, Scope.RECIPIENT, EXPIRED, text, phase=Phase.CONNECT, via=via), rule=EXPIRY)


def at_site(outcome: Outcome) -> Outcome:
    """The same once every host of the site has been tried: now it is worth a step of the retry schedule."""
    return replace(outcome, scope=Scope.SITE) if outcome.scope is Scope.SESSION else outcome


def _by_first_digit(code: int, phase: Phase) -> tuple[Result, Scope]:
    if phase in BEFORE_MAIL or phase is Phase.QUIT or code == 421:
        return Result.TRANSIENT, Scope.SESSION
    scope = Scope.RECIPIENT if phase is Phase.RCPT else Scope.MESSAGE
    if code // 100 == 4 or (code == 552 and phase is Phase.RCPT):
        return Result.TRANSIENT, scope
    return Result.PERMANENT, scope


def _senseless(reply: Reply, phase: Phase, via: Via) -> Outcome:
    """Neither acceptance nor refusal. After the final dot it leaves open whether the message was taken."""
    result = Result.UNKNOWN if phase is Phase.END_OF_DATA else Result.TRANSIENT
    scope = Scope.MESSAGE if result is Result.UNKNOWN else Scope.SESSION
    return replace(_of(result, scope, "4.5.0", _diagnostic(reply), reply=reply, phase=phase, via=via), rule=UNMATCHED)


def _of(
    result: Result, scope: Scope, status: str, text: str, *, phase: Phase, via: Via, reply: Reply | None = None
) -> Outcome:
    return Outcome(
        result=result,
        scope=scope,
        status=status,
        diagnostic=one_printable_line(text),
        reply=reply,
        phase=phase,
        remote_mta=one_printable_line(via.remote_mta),
        source=via.source,
        tls=via.tls,
        dsn=via.dsn,
    )


def _status(reply: Reply, first: str) -> str:
    """The reply's enhanced code with the class that the result has; ``X.0.0`` when it gave none."""
    return first + reply.status[1:] if reply.status else f"{first}.0.0"


def _text(reply: Reply) -> str:
    """The text without the enhanced code that a server repeats in front of every line."""
    return " ".join(word for word in reply.text.split() if not reply.status or word != reply.status)


def _diagnostic(reply: Reply) -> str:
    return " ".join(part for part in (f"{reply.code:03d}", reply.status, _text(reply)) if part)
