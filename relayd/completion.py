"""What a submission server adds to a header and takes out of it (RFC 6409 §8). Pure.

Out: X-Tambo-* (they spoke to us), Bcc and Resent-Bcc (RFC 5322 §3.6.3), Return-Path (RFC 5321 §4.4: the last hop's),
and blanks before the colon of any field.
In: Date, Message-ID and, where asked for, Feedback-ID, when the sender gave none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from config.settings import AccountSettings
from relayd import directives, headers, trace
from relayd.directives import Directives, Refused
from relayd.headers import Field, Header

_NEVER_SENT = (b"bcc", b"resent-bcc", b"return-path")
_FEEDBACK_PART = 64  # octets


@dataclass(frozen=True, slots=True)
class Identity:
    """What an added field is made of. `feedback_id`: the SenderId, None = no Feedback-ID."""

    hostname: str
    feedback_id: str | None = None


def ambiguous(header: Header) -> Refused | None:
    """Exactly one From and at most one Sender (RFC 5322 §3.6): two readers must not see two authors. Other fields that
    should stand once pass as they are."""
    froms = len(header.by_name.get(b"from", ()))
    if froms != 1:
        return Refused("From", "given more than once" if froms else "missing")
    return Refused("Sender", "given more than once") if len(header.by_name.get(b"sender", ())) > 1 else None


def from_outside(content: bytes) -> bytes:
    """Mail that is no submission: CRLF line ends and no X-Tambo-* field, else as it came. Where the header is too big to
    be read, its fields stay: nobody takes orders from such mail."""
    content = trace.normalise(content)
    header = headers.parse(content)
    return content if header is None else without_own(content, header)


def without_own(content: bytes, header: Header) -> bytes:
    """Content free of X-Tambo-* fields, its header closed."""
    return headers.edited(content, header, directives.own(header))


def completed(
    content: bytes,
    header: Header,
    own: Iterable[Field],
    wanted: Directives,
    account: AccountSettings,
    identity: Identity,
    *,
    message_id: str,
    now: float,
) -> bytes:
    """Content with its header as it goes out, but for trace fields and signatures. `own`: its X-Tambo-* fields."""
    have = header.by_name
    unwanted = list(own)
    for name in _NEVER_SENT:
        unwanted += have.get(name, ())
    if account.hide_client:
        unwanted += have.get(b"received", ())  # counted as hops by now
    gone = set(unwanted)
    unwanted += headers.blanks(content, (field for field in header.fields if field not in gone))
    if len(unwanted) > 1:
        unwanted.sort(key=lambda field: field.start)
    added = ""
    if b"date" not in have:
        added += f"Date: {trace.date(now)}\r\n"
    if b"message-id" not in have:
        added += f"Message-ID: <{message_id}@{identity.hostname}>\r\n"
    if identity.feedback_id is not None and b"feedback-id" not in have:
        added += f"Feedback-ID: {feedback_id(wanted, account, identity.feedback_id)}\r\n"
    return headers.edited(content, header, unwanted, added.encode("ascii"))


def feedback_id(wanted: Directives, account: AccountSettings, sender_id: str) -> str:
    """``campaign:account:class:SenderId``, what Gmail's Postmaster Tools count by; without campaign the other three."""
    parts = [wanted.campaign] if wanted.campaign else []
    parts += [account.name, wanted.class_ or account.class_, sender_id]
    return ":".join(part[:_FEEDBACK_PART] for part in parts)
