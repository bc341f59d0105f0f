"""The ledger: an append-only file of JSON lines with every connection, accepted message and violation, and counters.

Whatever a reply promises is written to the file before the reply is sent, so the file is right whoever is killed,
the sandbox included. Multisets are read from the file: :class:`sandbox.receipts.Receipts` serves the sandbox's own process and any
other. Records (``kind``): ``start``; ``message`` (t, connection, host, site, source, id, from, to, size, answered,
and what was said of ret, envid, notify, orcpt, the last two as lists beside ``to``); ``verdict`` (t, mail, domain, id,
spf, dkim, dmarc, policy); ``returned`` (t, shape, to, recipient, reply);
``connection`` (number, host, site, source, opened, ended, how, messages, tls); ``violation`` (t, limit, …); ``change`` (t, what, to, sources).
Times are Unix seconds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sandbox.receipts import Receipts
from sandbox.slots import Slots

_MOST_VIOLATIONS = 1000  # kept in memory; the file has all


@dataclass(frozen=True, slots=True)
class Party:
    """Who is at the two ends of a connection."""

    number: int
    host: str
    site: str
    source: str


class Ledger:
    """One per sandbox; not shared between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._lines: list[bytes] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.slots = Slots()
        self.messages = 0
        self.connections: Counter[tuple[str, str]] = Counter()  # (site, source)
        self.accepted: Counter[tuple[str, str]] = Counter()  # (recipient domain, source), one per recipient
        self.refused: Counter[tuple[str, str]] = Counter()  # (domain, first line's code or "dropped")
        self.replies: Counter[tuple[str, str]] = Counter()  # (domain, reply as planned): what behaviours said
        self.verdicts: Counter[tuple[str, str]] = Counter()  # (domain, "dkim=pass"), of what was looked at
        self.backs: Counter[tuple[str, str]] = Counter()  # (shape, first digits of the relay's reply)
        self.violations: list[dict[str, Any]] = []
        self.violation_counts: Counter[str] = Counter()
        self._write({"kind": "start", "t": time.time(), "pid": os.getpid()})
        self.flush()

    def accept(
        self,
        party: Party,
        message_id: str,
        reverse_path: str,
        recipients: Sequence[str],
        *,
        size: int,
        answered: bool,
        dsn: Mapping[str, Any],
    ) -> None:
        """One message taken; ``answered`` is False when its 250 is withheld on purpose. ``dsn``: as
        :func:`sandbox.parameters.dsn` tells it. Not on file before flush."""
        self.messages += 1
        for recipient in recipients:
            self.accepted[recipient.rpartition("@")[2].lower(), party.source] += 1
        self._write(
            {
                "kind": "message",
                "t": time.time(),
                "connection": party.number,
                "host": party.host,
                "site": party.site,
                "source": party.source,
                "id": message_id,
                "from": reverse_path,
                "to": recipients,
                "size": size,
                "answered": answered,
                **dsn,
            }
        )

    def opened(self, party: Party) -> None:
        self.connections[party.site, party.source] += 1

    def ended(self, party: Party, *, opened: float, ended: float, how: str, messages: int, tls: bool) -> None:
        """A connection is over: ``how`` is 221, 421, eof, lost or dropped."""
        self._write(
            {
                "kind": "connection",
                "number": party.number,
                "host": party.host,
                "site": party.site,
                "source": party.source,
                "opened": opened,
                "ended": ended,
                "how": how,
                "messages": messages,
                "tls": tls,
            }
        )

    def violation(self, party: Party, limit: str, **details: object) -> None:
        """A hidden limit or a rule of the dialogue was broken."""
        record: dict[str, Any] = {
            "kind": "violation",
            "t": time.time(),
            "limit": limit,
            "connection": party.number,
            "host": party.host,
            "site": party.site,
            "source": party.source,
            **details,
        }
        self.violation_counts[limit] += 1
        if len(self.violations) < _MOST_VIOLATIONS:
            self.violations.append(record)
        self._write(record)

    def verdict(self, mail: str, domain: str, message_id: str, words: Mapping[str, str]) -> None:
        """What a receiver makes of one copy."""
        self.verdicts.update((domain, f"{name}={result}") for name, result in words.items())
        self._write({"kind": "verdict", "t": time.time(), "mail": mail, "domain": domain, "id": message_id, **words})

    def returned(self, shape: str, to: str, recipient: str, reply: str) -> None:
        """Mail went back to the relay, or could not: ``reply`` says which."""
        self.backs[shape, reply[:3] if reply[:3].isdecimal() else "none"] += 1
        record = {"shape": shape, "to": to, "recipient": recipient, "reply": reply}
        self._write({"kind": "returned", "t": time.time(), **record})

    def change(self, what: str, to: str, sources: Sequence[str] = ()) -> None:
        """The world was changed: a domain's or host's behaviour, or the DNS; on file at once."""
        self._write({"kind": "change", "t": time.time(), "what": what, "to": to, "sources": sources})
        self.flush()

    def flush(self) -> None:
        """Everything recorded so far into the file (it survives the death of this process, not of the machine)."""
        if not self._lines:
            return
        data = memoryview(b"".join(self._lines))
        self._lines.clear()
        while data:
            data = data[os.write(self._file, data) :]
        if self._waiting:
            self._wake()

    def close(self) -> None:
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1

    async def accepted_at_least(self, messages: int) -> None:
        """Wait until that many messages are on file since the start."""
        if self.messages >= messages and not self._lines:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, waiter))
        await waiter

    def receipts(self) -> Receipts:
        """What the file says, earlier runs on the same file included."""
        self.flush()
        return Receipts(self.path)

    def report(self) -> dict[str, Any]:
        """The counters as a JSON-able tree: {"accepted": {domain: {source: n}}, "peaks": {site: {source: n}}, …}."""
        return {
            "messages": self.messages,
            "open": self.slots.total,
            "accepted": _nested(self.accepted),
            "refused": _nested(self.refused),
            "replies": _nested(self.replies),
            "connections": _nested(self.connections),
            "verdicts": _nested(self.verdicts),
            "returned": _nested(self.backs),
            "peaks": _nested(self.slots.peaks),
            "violation_counts": dict(self.violation_counts),
            "violations": self.violations,
            "ledger": str(self.path),
        }

    def _write(self, record: dict[str, Any]) -> None:
        if self._file >= 0:
            self._lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def _wake(self) -> None:
        for entry in self._waiting[:]:
            most, waiter = entry
            if self.messages >= most:
                self._waiting.remove(entry)
                if not waiter.done():
                    waiter.set_result(None)


def _nested(counts: Counter[tuple[str, str]] | dict[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    tree: dict[str, dict[str, int]] = {}
    for (outer, inner), count in sorted(counts.items()):
        tree.setdefault(outer, {})[inner] = count
    return tree
