"""What arrived, kept as files: one Maildir per recipient domain. Before the 250 it is in the spool, from where it is
unpacked when there is time, or when somebody looks.

Each copy has in front of the content as it came: Return-Path, Delivered-To, Authentication-Results as soon as somebody
has looked at it (:mod:`sandbox.assessor`), and a Received field, from which everything that looks later works.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path

from sandbox.spool import Spool

MOST_FRESH = 100_000  # older ones wait for somebody who asks
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")


@lru_cache(1024)
def _received(helo: str, source: str, host: str, tls: bool) -> bytes:
    """The Received field (RFC 5321 §4.4) that a host puts on top, but for its date; what the client called itself is
    made a word."""
    said = "".join(letter if "!" <= letter <= "~" and letter not in "()[];" else "?" for letter in helo) or "unknown"
    return f"Received: from {said} ([{source}])\r\n\tby {host} (sandbox) with {'ESMTPS' if tls else 'ESMTP'}; ".encode()


@lru_cache(4)
def _date(second: int) -> bytes:
    return formatdate(second, localtime=True).encode() + b"\r\n"


def trace(helo: str, source: str, host: str, tls: bool) -> bytes:
    """The whole field."""
    return _received(helo, source, host, tls) + _date(int(time.time()))


class Store:
    """Maildirs below one directory, made when first needed. Any thread may read; one accepts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fresh: deque[Path] = deque(maxlen=MOST_FRESH)  # unpacked, and nobody has looked yet
        self._spool = Spool(directory / "spool")
        self._unpacking = threading.Lock()
        self._made: set[str] = set()
        self._pid = os.getpid()
        self._last = 0

    def keep(self, reverse_path: str, recipients: Sequence[str], received: bytes, content: bytes) -> None:
        """One copy per recipient domain; on file after :meth:`flush`."""
        domains: dict[str, list[str]] = {}
        for recipient in recipients:
            domains.setdefault(recipient.rpartition("@")[2].lower(), []).append(recipient)
        for domain, addresses in domains.items():
            head = f"Return-Path: <{reverse_path}>\r\n" + "".join(f"Delivered-To: {a}\r\n" for a in addresses)
            self._spool.add(_folder(domain), self._name(), head.encode() + received + content)

    def flush(self) -> None:
        self._spool.flush()

    def unpack(self, most: int = sys.maxsize, seconds: float = math.inf) -> int:
        """Out of the spool into Maildirs; how many. Blocking; a record that was unpacked before is made again."""
        deadline, count = time.monotonic() + seconds, 0
        with self._unpacking:
            self._spool.flush()
            while count < most and time.monotonic() < deadline and (record := self._spool.first()) is not None:
                folder, name, data = record
                self.fresh.append(self._write(self._maildir(folder), name, data))
                self._spool.drop()
                count += 1
        return count

    @property
    def unpacked(self) -> bool:
        return self._spool.empty

    def messages(self, domain: str) -> list[Path]:
        """Files that arrived for a domain, oldest first."""
        self.unpack()
        folder = self.directory / _folder(domain) / "new"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def all(self) -> Iterator[Path]:
        """Files of all domains, in no order."""
        self.unpack()
        for folder in self.directory.glob("*/new"):
            yield from folder.iterdir()

    def replace(self, path: Path, data: bytes) -> None:
        """Other octets under the same name, whole or not at all."""
        part = path.parent.parent / "tmp" / path.name
        part.write_bytes(data)
        part.rename(path)

    def close(self) -> None:
        self._spool.close()

    def _maildir(self, name: str) -> Path:
        if name not in self._made:
            for part in ("tmp", "new", "cur"):
                (self.directory / name / part).mkdir(parents=True, exist_ok=True)
            self._made.add(name)
        return self.directory / name

    def _name(self) -> str:
        """By the microsecond, one copy each: that number is the mail's id."""
        self._last = max(self._last + 1, time.time_ns() // 1000)
        return f"{self._last}.{self._pid}.sandbox"

    @staticmethod
    def _write(maildir: Path, name: str, data: bytes) -> Path:
        (maildir / "tmp" / name).write_bytes(data)
        return (maildir / "tmp" / name).rename(maildir / "new" / name)


@lru_cache(4096)
def _folder(domain: str) -> str:
    return "".join(letter if letter in _SAFE else "_" for letter in domain.lower()).lstrip(".") or "_"
