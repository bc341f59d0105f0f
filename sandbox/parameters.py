"""Parameters of MAIL and RCPT (RFC 5321 §4.1.1.11): a host takes those of the extensions it offers and no others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

MAIL: Mapping[str, str] = {  # keyword → the extension that it belongs to
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "RET": "DSN",
    "ENVID": "DSN",
}
RCPT: Mapping[str, str] = {"NOTIFY": "DSN", "ORCPT": "DSN"}


def read(text: str, known: Mapping[str, str], offered: Collection[str]) -> dict[str, str] | None:
    """Keyword in upper case → value as it came; None when one is unknown, not offered, or said twice: 555."""
    found: dict[str, str] = {}
    for word in text.split():
        keyword, _, value = word.partition("=")
        keyword = keyword.upper()
        extension = known.get(keyword, "")
        if keyword in found or not (extension == "SIZE" or extension in offered):
            return None
        found[keyword] = value
    return found


def dsn(mail: Mapping[str, str], recipients: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What was said under RFC 3461, for the ledger: ret, envid; notify and orcpt as lists, one entry a recipient."""
    said: dict[str, Any] = {name.lower(): mail[name] for name in ("RET", "ENVID") if name in mail}
    for name in RCPT:
        values = [recipient.get(name, "") for recipient in recipients]
        if any(values):
            said[name.lower()] = values
    return said
