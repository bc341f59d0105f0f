"""What to tell: (item, outcome, decision, time) → the event, and the record for a DSN if one is owed. Pure.

A failure owes a record with action ``failed``, a success that was asked for and that the next hop will not tell of
one with action ``relayed`` (RFC 3461 §5.2.2): unless the recipient's NOTIFY or the account says otherwise. A message
with the null reverse-path never owes anything. Delays are told by the clock, not by attempts: the reaper makes those
records (:mod:`mailqueue.reaper`, :mod:`delivery.notify`).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from delivery.outcome import EXPIRY, Outcome, Result
from delivery.retry import Decision, Done, Fail, Retry, Unknown
from mailqueue.events import Event, about
from mailqueue.message import Envelope, QueueItem, State

_NOTIFY = {"failed": "FAILURE", "delayed": "DELAY", "relayed": "SUCCESS"}  # RFC 3461 §4.1
_REMOTE_REPLY = re.compile(r"[2-5]\d\d(?:[ -]|$)")


@dataclass(frozen=True, slots=True)
class DsnRecord:
    """One recipient of a DSN to come (RFC 3464 §2.3), as it waits in the queue. Times are Unix milliseconds."""

    recipient: str
    action: str  # failed | delayed | relayed
    status: str
    diagnostic_code: str  # "smtp; 550 5.1.1 …" or "x-tambo; …"
    remote_mta: str = ""  # host name [address]
    last_attempt_at: int = 0
    arrived_at: int = 0
    retry_until: int = 0  # delayed only
    orcpt: str = ""  # as it came (RFC 3461 §4.2)

    @property
    def final_recipient(self) -> str:
        """With its address type: ``rfc822``, or ``utf-8`` in the 7-bit form of RFC 6533 §3."""
        return typed_address(self.recipient)

    def to_json(self) -> bytes:
        return orjson.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def from_json(cls, data: bytes | str) -> DsnRecord:
        """Fields of a later version are ignored; without recipient, action and status it is a ValueError."""
        record = orjson.loads(data)
        if not isinstance(record, dict) or not {"recipient", "action", "status"} <= record.keys():
            raise ValueError("a DSN record needs recipient, action and status")
        known: dict[str, Any] = {"diagnostic_code": ""}
        known.update((name, value) for name, value in record.items() if name in _RECORD_NAMES)
        return cls(**known)


_RECORD_NAMES = frozenset(f.name for f in fields(DsnRecord))


@dataclass(frozen=True, slots=True)
class Report:
    event: Event
    record: DsnRecord | None = None


def report(item: QueueItem, outcome: Outcome, decision: Decision, *, now_ms: int, provider: str = "") -> Report:
    """``item.state`` is the state before the attempt; ``provider`` the destination's provider group."""
    kind, action = _kind_and_action(item, outcome, decision)
    retry = _retry_of(decision)
    status = decision.status if isinstance(decision, Fail) else outcome.status
    event = about(
        item,
        kind,
        now_ms,
        action=action,
        status=status,
        diagnostic_code=diagnostic_code(outcome.diagnostic),
        remote_mta=outcome.remote_mta,
        source=outcome.source,
        provider=provider,
        attempt=_attempt(item.state, outcome, retry),
        phase=outcome.phase.value,
        tls=outcome.tls,
        size=len(item.message.content),
        next_at=retry.due_ms if retry else 0,
        reason=_reason(outcome, decision),
    )
    return Report(event, _record(item, outcome, decision, action, now_ms))


def mails_dsn(envelope: Envelope, index: int, action: str) -> bool:
    """Whether a DSN is mailed about what became of this recipient: ``failed`` | ``delayed`` | ``relayed``."""
    return not envelope.is_notification and envelope.dsn == "mail" and envelope.notifies(index, _NOTIFY[action])


def diagnostic_code(text: str) -> str:
    """A remote reply is of type ``smtp`` and verbatim, our own words are of a type of ours (RFC 3464 §2.3.6)."""
    return f"smtp; {text}" if _REMOTE_REPLY.match(text) else f"x-tambo; {text}"


def typed_address(address: str) -> str:
    """``rfc822; jo@example.org``; beyond ASCII ``utf-8`` with ``\\x{…}`` for what is not 7-bit (RFC 6533 §3)."""
    printable = "".join(c if c.isprintable() else "?" for c in address)
    if printable.isascii():
        return f"rfc822; {printable}"
    return "utf-8; " + "".join(c if "!" <= c <= "~" and c not in "+=\\" else f"\\x{{{ord(c):02X}}}" for c in printable)


def _kind_and_action(item: QueueItem, outcome: Outcome, decision: Decision) -> tuple[str, str]:
    """Event kind and RFC 3464 action; an unknown outcome has no action, for nothing can be claimed.

    ``relayed`` only where success was asked for and the next hop will not tell the sender of it (RFC 3464 §2.3.3):
    it does not offer DSN, or it was given a signed return path, and what it says comes back to us.
    """
    match decision:
        case Done():
            envelope = item.message.envelope
            asked = envelope.notifies(item.index, "SUCCESS") and not envelope.is_notification
            passed_on = outcome.dsn and not envelope.return_paths
            return "delivered", "relayed" if asked and not passed_on else "delivered"
        case Retry():
            return "deferred", "delayed"
        case Fail(expired=expired):
            return ("expired" if expired else "bounced"), "failed"
        case Unknown():
            return "unknown", ""


def _retry_of(decision: Decision) -> Retry | None:
    if isinstance(decision, Unknown):
        decision = decision.then
    return decision if isinstance(decision, Retry) else None


def _attempt(state: State, outcome: Outcome, retry: Retry | None) -> int:
    """The number of this attempt; one that does not count, or was not made, has the number of the last that did."""
    if retry is not None:
        return retry.state.attempts
    return state.attempts + (0 if outcome.rule == EXPIRY else 1)


def _reason(outcome: Outcome, decision: Decision) -> str:
    """The rule that decided, else the scope of what is not the recipient's doing."""
    if isinstance(decision, Fail) and decision.expired:
        return "delivery time expired"
    if outcome.rule or outcome.result is Result.DELIVERED:
        return outcome.rule
    return "" if outcome.scope.value == "recipient" else outcome.scope.value


def _record(item: QueueItem, outcome: Outcome, decision: Decision, action: str, now_ms: int) -> DsnRecord | None:
    envelope = item.message.envelope
    if action not in ("failed", "relayed") or not mails_dsn(envelope, item.index, action):
        return None
    return DsnRecord(
        recipient=item.recipient,
        action=action,
        status=decision.status if isinstance(decision, Fail) else outcome.status,
        diagnostic_code=diagnostic_code(outcome.diagnostic),
        remote_mta=outcome.remote_mta,
        last_attempt_at=item.state.at if outcome.rule == EXPIRY else now_ms,
        arrived_at=envelope.received_at,
        orcpt=envelope.orcpt[item.index] if envelope.orcpt else "",
    )
