"""What arrived, kept as files: one Maildir per recipient domain, written before the 250."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")


class Store:
    """Maildirs below one directory, made when first needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made: set[str] = set()
        self._count = 0

    def keep(self, reverse_path: str, recipients: Sequence[str], content: bytes) -> None:
        """Write one copy per recipient domain, with Return-Path and Delivered-To in front; content as it came."""
        domains: dict[str, list[str]] = {}
        for recipient in recipients:
            domains.setdefault(recipient.rpartition("@")[2].lower(), []).append(recipient)
        for domain, addresses in domains.items():
            head = f"Return-Path: <{reverse_path}>\r\n" + "".join(f"Delivered-To: {a}\r\n" for a in addresses)
            self._write(self._maildir(domain), head.encode() + content)

    def messages(self, domain: str) -> list[Path]:
        """Files that arrived for a domain, oldest first."""
        folder = self.directory / domain / "new"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _maildir(self, domain: str) -> Path:
        name = "".join(letter if letter in _SAFE else "_" for letter in domain).lstrip(".") or "_"
        if name not in self._made:
            for part in ("tmp", "new", "cur"):
                (self.directory / name / part).mkdir(parents=True, exist_ok=True)
            self._made.add(name)
        return self.directory / name

    def _write(self, maildir: Path, data: bytes) -> None:
        self._count += 1
        name = f"{time.time_ns()}.{os.getpid()}_{self._count}.sandbox"
        (maildir / "tmp" / name).write_bytes(data)
        (maildir / "tmp" / name).rename(maildir / "new" / name)
