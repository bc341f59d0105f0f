"""Reading what arrived: mails found by domain, recipient, subject and time, and what each copy says of itself.

Blocking, for a thread. The id of a mail is the first part of its file's name: the microsecond in which it came.
"""

from __future__ import annotations

import email
import email.header
import email.policy
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

from sandbox.maildir import Store

HEAD_OCTETS = 65_536  # of a file are looked at for lists
_RECEIVED = re.compile(rb"^Received: from (\S+) \(\[([^\]]*)\]\)\r\n\tby (\S+) \(sandbox\)", re.MULTILINE)
_RESULT = re.compile(r"(?:^|;)\s*(spf|dkim|dmarc)=(\w+)(?:\s*\(p=(\w+)\))?")


class NoSuchMail(ValueError):
    """The text says which."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One copy. ``at`` in Unix seconds; ``spf``, ``dkim``, ``dmarc`` are "" until somebody has looked."""

    id: str
    at: float
    domain: str
    recipients: tuple[str, ...]
    reverse_path: str
    author: str
    subject: str
    message_id: str
    source: str
    helo: str
    host: str
    size: int
    spf: str
    dkim: str
    dmarc: str
    file: str

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which mails; empty fields want all. Texts are looked for in any case, anywhere."""

    domain: str = ""
    recipient: str = ""
    subject: str = ""
    since: float = 0.0

    def found(self, store: Store) -> Iterator[Path]:
        """Files, in no order."""
        earliest = int(self.since * 1e6)
        paths = store.messages(self.domain) if self.domain else store.all()
        for path in paths:
            if int(mail_id(path)) >= earliest and self._suits(path):
                yield path

    def newest(self, store: Store, most: int) -> list[Path]:
        return nlargest(most, self.found(store), key=mail_id)

    def _suits(self, path: Path) -> bool:
        if not self.recipient and not self.subject:
            return True
        mail = read(path)
        to = any(self.recipient.lower() in recipient.lower() for recipient in mail.recipients)
        return to and self.subject.lower() in mail.subject.lower()


def mail_id(path: Path) -> str:
    return path.name.partition(".")[0]


def find(store: Store, wanted: str) -> Path:
    """The file of a mail's id; NoSuchMail."""
    if wanted.isdecimal():
        for path in store.all():
            if mail_id(path) == wanted:
                return path
    raise NoSuchMail(f"no mail {wanted!r}; `relayctl sandbox mail list` has the ids")


def read(path: Path) -> Mail:
    """What one copy says of itself."""
    with path.open("rb") as file:
        head = file.read(HEAD_OCTETS).partition(b"\r\n\r\n")[0]
    message = email.message_from_bytes(head, policy=email.policy.compat32)
    ours = re.search(_RECEIVED, head)
    helo, source, host = (part.decode("ascii", "replace") for part in ours.groups()) if ours else ("", "", "")
    results = verdicts(head, ours.start() if ours else 0)
    return Mail(
        id=mail_id(path),
        at=int(mail_id(path)) / 1e6,
        domain=path.parent.parent.name,
        recipients=tuple(str(value) for value in message.get_all("Delivered-To", [])),
        reverse_path=str(message.get("Return-Path", "")).strip()[1:-1],
        author=_plain(message.get("From")),
        subject=_plain(message.get("Subject")),
        message_id=str(message.get("Message-ID", "")).strip(),
        source=source,
        helo=helo,
        host=host,
        size=path.stat().st_size,
        spf=results.get("spf", ""),
        dkim=results.get("dkim", ""),
        dmarc=results.get("dmarc", ""),
        file=str(path),
    )


def verdicts(head: bytes, before: int) -> dict[str, str]:
    """Of the field that stands in front of our Received, and so is ours; of several DKIM results, a pass."""
    start = head.find(b"Authentication-Results: ", 0, before)
    found: dict[str, str] = {}
    if start >= 0:
        for name, result, _ in _RESULT.findall(head[start:before].decode("ascii", "replace")):
            if found.get(name) != "pass":
                found[name] = result
    return found


def top(data: bytes) -> int:
    """Where our Received field begins, before which others of ours may be put; −1 when there is none."""
    ours = re.search(_RECEIVED, data[:HEAD_OCTETS])
    return ours.start() if ours else -1


def content(data: bytes) -> bytes:
    """The message as it came, without the fields in front."""
    ours = re.search(_RECEIVED, data[:HEAD_OCTETS])
    if ours is None:
        return data
    end = data.index(b"\r\n", ours.end())  # the field's second line is its last
    return data[end + 2 :]


def _plain(value: object) -> str:
    """A header field as people read it."""
    if value is None:
        return ""
    try:
        made = str(email.header.make_header(email.header.decode_header(str(value))))
    except (ValueError, LookupError):
        made = str(value)
    return " ".join(made.split())
