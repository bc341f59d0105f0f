"""Reading a ledger file: multisets of what was accepted, violations, and the highest concurrency as a second opinion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


class Receipts:
    """Reader of a ledger file, from any process, while it grows or after; a torn last line is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def records(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                record: dict[str, Any] = orjson.loads(line)
                if kind is None or record["kind"] == kind:
                    yield record

    def message_ids(self) -> Counter[str]:
        """Multiset of the Message-IDs of accepted mail transactions."""
        return Counter(record["id"] for record in self.records("message"))

    def deliveries(self) -> Counter[tuple[str, str]]:
        """Multiset of (Message-ID, recipient): more than one is a duplicate to somebody."""
        return Counter((record["id"], to) for record in self.records("message") for to in record["to"])

    def by_source(self, site: str | None = None) -> Counter[str]:
        """Accepted transactions per source address, at one site or all."""
        return Counter(r["source"] for r in self.records("message") if site is None or r["site"] == site)

    def unanswered(self) -> int:
        """Accepted transactions whose 250 was withheld: each entitles the sender to one duplicate."""
        return sum(1 for record in self.records("message") if not record["answered"])

    def violations(self) -> list[dict[str, Any]]:
        return list(self.records("violation"))

    def peaks(self) -> dict[tuple[str, str], int]:
        """Most connections at once per (site, source), computed anew from the connections' times, as a second opinion.

        Only connections that have ended are on file; ends count before openings of the same instant.
        """
        changes: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for record in self.records("connection"):
            moves = changes.setdefault((record["site"], record["source"]), [])
            moves += [(record["opened"], 1), (record["ended"], -1)]
        return {key: _highest(moves) for key, moves in changes.items()}


def _highest(moves: list[tuple[float, int]]) -> int:
    level = highest = 0
    for _, move in sorted(moves):
        level += move
        highest = max(highest, level)
    return highest
