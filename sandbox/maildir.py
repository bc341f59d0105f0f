"""What arrived, kept as files: one Maildir per recipient domain, written before the 250.

Each copy has in front of the content as it came: Return-Path, Delivered-To, Authentication-Results as soon as somebody
has looked at it (:mod:`sandbox.assessor`), and a Received field, from which everything that looks later works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")


def trace(helo: str, source: str, host: str, tls: bool) -> bytes:
    """The Received field (RFC 5321 §4.4) that a host puts on top; what the client called itself is made a word."""
    said = "".join(letter if "!" <= letter <= "~" and letter not in "()[];" else "?" for letter in helo) or "unknown"
    with_ = "ESMTPS" if tls else "ESMTP"
    return f"Received: from {said} ([{source}])\r\n\tby {host} (sandbox) with {with_}; {formatdate()}\r\n".encode()


class Store:
    """Maildirs below one directory, made when first needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made: set[str] = set()
        self._count = 0
        self._last = 0

    def keep(self, reverse_path: str, recipients: Sequence[str], received: bytes, content: bytes) -> list[Path]:
        """Write one copy per recipient domain; the files."""
        domains: dict[str, list[str]] = {}
        for recipient in recipients:
            domains.setdefault(recipient.rpartition("@")[2].lower(), []).append(recipient)
        written = []
        for domain, addresses in domains.items():
            head = f"Return-Path: <{reverse_path}>\r\n" + "".join(f"Delivered-To: {a}\r\n" for a in addresses)
            written.append(self._write(self._maildir(domain), head.encode() + received + content))
        return written

    def messages(self, domain: str) -> list[Path]:
        """Files that arrived for a domain, oldest first."""
        folder = self.directory / _folder(domain) / "new"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def all(self) -> Iterator[Path]:
        """Files of all domains, in no order."""
        if self.directory.is_dir():
            for folder in self.directory.iterdir():
                yield from self.messages(folder.name)

    def replace(self, path: Path, data: bytes) -> None:
        """Other octets under the same name, whole or not at all."""
        part = path.parent.parent / "tmp" / path.name
        part.write_bytes(data)
        part.rename(path)

    def _maildir(self, domain: str) -> Path:
        name = _folder(domain)
        if name not in self._made:
            for part in ("tmp", "new", "cur"):
                (self.directory / name / part).mkdir(parents=True, exist_ok=True)
            self._made.add(name)
        return self.directory / name

    def _write(self, maildir: Path, data: bytes) -> Path:
        """Named by the microsecond, one file each: that number is the mail's id."""
        self._count += 1
        self._last = max(self._last + 1, time.time_ns() // 1000)
        name = f"{self._last}.{os.getpid()}_{self._count}.sandbox"
        (maildir / "tmp" / name).write_bytes(data)
        return (maildir / "tmp" / name).rename(maildir / "new" / name)


def _folder(domain: str) -> str:
    return "".join(letter if letter in _SAFE else "_" for letter in domain.lower()).lstrip(".") or "_"
