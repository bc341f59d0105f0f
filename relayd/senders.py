"""As whom an account may send: its sender patterns against the reverse-path and the originator fields. Pure.

A restricted account has patterns, and none of them is ``*``. Its mail has exactly one From field with exactly one
mailbox; that, Sender and every Resent-From and Resent-Sender lie within the patterns. Display names are free: the
address counts. An account without restriction sends what it likes; where its From is in doubt, nobody signs for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from config.settings import AccountSettings
from relayd import mailbox
from relayd.mailbox import Mailbox

_FIELDS = {b"from": "From", b"sender": "Sender", b"resent-from": "Resent-From", b"resent-sender": "Resent-Sender"}
_ONCE = ("From", "Sender")  # RFC 5322 §3.6


@dataclass(frozen=True, slots=True)
class Author:
    """The From address; both "" when an unrestricted account sent none that is beyond doubt."""

    address: str = ""
    domain: str = ""  # lower-case A-labels: what DKIM's d= is aligned with


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """``why`` is for the account itself; it does not tell what would be allowed."""

    header: str
    why: str


def is_restricted(account: AccountSettings) -> bool:
    return bool(account.senders) and "*" not in account.senders


def may_use(account: AccountSettings, address: str) -> bool:
    """Whether a reverse-path (without angle brackets) is the account's to use. The null reverse-path always is: notices
    and automatic answers need it, and their From is looked at like any other."""
    if not is_restricted(account) or address == "":
        return True
    found = mailbox.of_path(address)
    return found is not None and _within(account, found)


def check(account: AccountSettings, fields: Iterable[tuple[bytes, bytes]]) -> Author | NotAllowed:
    """``fields`` are all of the header in order: name (in any case) and body as it stands behind the colon, folds
    and all."""
    seen: dict[str, list[bytes]] = {}
    for name, body in fields:
        if spelled := _FIELDS.get(name.strip(b" \t").lower()):
            seen.setdefault(spelled, []).append(body)
    authors = [mailbox.in_field(body) for body in seen.get("From", ())]
    if is_restricted(account) and (refusal := _refusal(account, seen)):
        return refusal
    return _author(authors[0]) if len(authors) == 1 and authors[0] is not None else Author()


def _refusal(account: AccountSettings, seen: dict[str, list[bytes]]) -> NotAllowed | None:
    if "From" not in seen:
        return NotAllowed("From", f"missing; account {account.name} needs one")
    for header, bodies in seen.items():
        if header in _ONCE and len(bodies) > 1:
            return NotAllowed(header, "given more than once")
        for body in bodies:
            found = mailbox.in_field(body)
            if found is None:
                return NotAllowed(header, "exactly one mailbox, plainly written, is needed")
            if not _within(account, found):
                return NotAllowed(header, f"sender not allowed for account {account.name}")
    return None


def _author(found: Mailbox) -> Author:
    return Author(str(found), found.domain)


def _within(account: AccountSettings, found: Mailbox) -> bool:
    address = f"{_folded(found.local_part)}@{found.domain}"
    for pattern in account.senders:
        if "@" in pattern:
            local, _, domain = pattern.rpartition("@")
            if address == f"{_folded(local)}@{domain}":
                return True
        elif pattern.startswith("*."):
            if found.domain.endswith(pattern[1:]):
                return True
        elif found.domain == pattern:
            return True
    return False


def _folded(local_part: str) -> str:
    """Without case; a letter beyond ASCII never becomes an ASCII one (the Kelvin sign is no k)."""
    return "".join(char if not char.isascii() and char.lower().isascii() else char.lower() for char in local_part)
