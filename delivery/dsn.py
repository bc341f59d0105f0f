"""Delivery status notifications: RFC 3464 in a multipart/report (RFC 6522), one per message for many recipients. Pure.

Three parts: a text for people (Spanish, then English), the fields for machines, the header of the original or, after a
failure and RET=FULL, all of it. CRLF line ends and lines of at most 998 characters, whatever a peer wrote into its
reply or a sender into its header; 7-bit unless an 8-bit body goes back whole; nothing of theirs can begin a line of
ours. A message with the null reverse-path gets none.
"""

from __future__ import annotations

import hashlib
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.header import Header
from email.utils import format_datetime
from typing import Literal

from delivery.dsn_text import text_for_people
from delivery.report import DsnRecord
from delivery.returned import CRLF, LINE_LIMIT, entity, fits, quoted_printable, returned_part
from delivery.xtext import decoded, typed
from mailqueue.message import Envelope

Kind = Literal["failed", "delayed", "relayed"]

KINDS: tuple[Kind, ...] = ("failed", "delayed", "relayed")
_FOLD_AT = 76
_VERBATIM_LIMIT = 900  # characters of a field body that is not folded
_SUBJECT = {
    "failed": "Correo no entregado (Delivery Status Notification: failure)",
    "delayed": "Correo demorado (Delivery Status Notification: delay)",
    "relayed": "Correo transferido a otro servidor (Delivery Status Notification: relayed)",
}


def compose(
    envelope: Envelope,
    original_content: bytes,
    records: Sequence[DsnRecord],
    kind: Kind,
    *,
    reporting_mta: str,
    now_ms: int,
    message_id: str,
) -> bytes | None:
    """The content of the DSN about ``envelope``; None when none may be sent.

    ``records``: those of one message with action ``kind``, at least one, in the order to be told. ``reporting_mta``: our
    host name. ``message_id``: of the DSN, without angle brackets; it also seeds the MIME boundary. ValueError for no records.
    """
    if envelope.is_notification:
        return None
    if not records:
        raise ValueError("a DSN needs a recipient to speak of")
    host = ascii_line(reporting_mta) or "localhost"
    full = kind == "failed" and envelope.ret == "FULL"  # RET speaks of failures only (RFC 3461 §4.3)
    parts = (
        _text_part(envelope, records, kind, host, too_large=full and not fits(original_content)),
        _status_part(envelope, records, kind, host),
        returned_part(original_content, full),
    )
    boundary = _boundary(message_id, parts)
    head = [
        f"Date: {rfc5322_date(now_ms)}",
        f"From: Mail Delivery System <MAILER-DAEMON@{host}>",
        f"To: {_mailbox(envelope.reverse_path)}",
        f"Subject: {_SUBJECT[kind]}",
        f"Message-ID: <{ascii_line(message_id).replace(' ', '')}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        *([] if all(part.isascii() for part in parts) else ["Content-Transfer-Encoding: 8bit"]),
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
        "",
        "This is a delivery status notification in MIME format.",
    ]
    delimiter = f"\r\n--{boundary}\r\n".encode("ascii")
    body = b"".join(delimiter + part for part in parts)
    return "\r\n".join(head).encode("ascii") + CRLF + body + f"\r\n--{boundary}--\r\n".encode("ascii")


def notification_envelope(
    original: Envelope, *, id: str, now_ms: int, expires_at: int, eight_bit: bool = False
) -> Envelope:
    """How the DSN travels: null reverse-path, to the original's, from the same pool, with the account's other mail.

    Never to a signed return path, which is for what others have to say.
    """
    return Envelope(
        id=id,
        account=original.account,
        reverse_path="",
        recipients=(original.reverse_path,),
        received_at=now_ms,
        expires_at=expires_at,
        class_=original.class_,
        pool=original.pool,
        body="8BITMIME" if eight_bit else "7BIT",
        smtputf8=not original.reverse_path.isascii(),
    )


def ascii_line(text: str) -> str:
    """One printable ASCII line: letters lose their accents, what has no likeness becomes "?"."""
    if not (text.isascii() and text.isprintable()):
        decomposed = unicodedata.normalize("NFKD", text)
        plain = (c for c in decomposed if not unicodedata.combining(c))
        text = "".join(c if c.isspace() or " " <= c <= "~" else "?" for c in plain)
    return " ".join(text.split())


def field(name: str, value: str) -> str:
    """A header field, folded at spaces; a word too long for any line is cut. No CRLF at its end."""
    words = ascii_line(value)
    lines = textwrap.wrap(
        f"{name}: {words}",
        _FOLD_AT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    pieces = [line[at : at + LINE_LIMIT - 1] for line in lines for at in range(0, len(line), LINE_LIMIT - 1)]
    return "\r\n ".join(pieces)


def verbatim(name: str, value: str) -> str:
    """A field whose body a sender will compare with what he gave; folded like others only where it must be."""
    plain = value.isascii() and value.isprintable() and len(value) <= _VERBATIM_LIMIT
    return f"{name}: {value}" if plain else field(name, value)


def rfc5322_date(ms: int) -> str:
    return format_datetime(datetime.fromtimestamp(ms // 1000, UTC))


def _mailbox(address: str) -> str:
    """An address as header field body; beyond ASCII an empty group that shows it, for no 7-bit mailbox can (RFC 6532)."""
    printable = "".join(c for c in address if c.isprintable())
    if printable.isascii():
        return f"<{printable}>"
    return Header(printable, "utf-8", maxlinelen=_FOLD_AT, header_name="To").encode(linesep="\r\n") + ":;"


def _text_part(envelope: Envelope, records: Sequence[DsnRecord], kind: Kind, host: str, *, too_large: bool) -> bytes:
    arrived = rfc5322_date(envelope.received_at)
    text = text_for_people(records, kind, host, arrived, _until(records), too_large=too_large)
    return entity("text/plain; charset=utf-8", "quoted-printable", quoted_printable(text.encode("utf-8", "replace")))


def _until(records: Iterable[DsnRecord]) -> str:
    last = max(record.retry_until for record in records)
    return rfc5322_date(last) if last else ""


def _status_part(envelope: Envelope, records: Sequence[DsnRecord], kind: Kind, host: str) -> bytes:
    envid = decoded(envelope.envid)
    groups = [
        [
            *([verbatim("Original-Envelope-Id", envid)] if envid else []),
            field("Reporting-MTA", f"dns; {host}"),
            field("X-Tambo-Message", envelope.id),
            field("Arrival-Date", rfc5322_date(envelope.received_at)),
        ]
    ]
    groups += [_recipient_fields(record, kind) for record in records]
    text = "\r\n\r\n".join("\r\n".join(group) for group in groups) + "\r\n"
    return entity("message/delivery-status", "7bit", text.encode("ascii"))


def _recipient_fields(record: DsnRecord, kind: Kind) -> list[str]:
    """RFC 3464 §2.3, in its order."""
    original = typed(record.orcpt)
    lines = [
        *([verbatim("Original-Recipient", original)] if original else []),
        field("Final-Recipient", record.final_recipient),
        field("Action", kind),
        field("Status", record.status),
    ]
    remote_host = record.remote_mta.split(" ")[0]
    if remote_host:
        lines.append(field("Remote-MTA", f"dns; {remote_host}"))
    if record.diagnostic_code:
        lines.append(field("Diagnostic-Code", record.diagnostic_code))
    if record.last_attempt_at:
        lines.append(field("Last-Attempt-Date", rfc5322_date(record.last_attempt_at)))
    if kind == "delayed" and record.retry_until:
        lines.append(field("Will-Retry-Until", rfc5322_date(record.retry_until)))
    return lines


def _boundary(message_id: str, parts: Sequence[bytes]) -> str:
    """Derived from the id, so the same DSN has the same bytes; another one if a part should contain it."""
    seed = message_id.encode("utf-8", "replace")
    while True:
        name = "=_" + hashlib.sha256(seed).hexdigest()[:32]
        if not any(name.encode("ascii") in part for part in parts):
            return name
        seed = name.encode("ascii")
