"""The newest events, as maintenance reads along: enough to know what moves, not a record. Consumers and the archive read
every event; this reader passes over what it is too late for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from mailqueue.events import Event
from mailqueue.scripts import Shard

MOST = 5000  # of a shard at one look: more than is written in a second
BACK = 1000  # read at the start, and where it fell behind

log = structlog.get_logger("maintenance")


@dataclass(frozen=True, slots=True)
class Said:
    """``at``: when the server wrote it, ms: one clock, whatever the hosts' own say."""

    at: int
    event: Event


class Tail:
    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._positions: dict[int, str] = {}

    async def new(self) -> list[Said]:
        """Since the last look; at the first one the last thousand of each shard. Raises QueueDown."""
        found: list[Said] = []
        for shard in self._shards:
            position = self._positions.get(shard.number)
            rows = await self._after(shard, position) if position else None
            if rows is None:
                rows = (await shard.command("XREVRANGE", shard.events, "+", "-", "COUNT", BACK))[::-1]
            for place, fields in rows:
                self._positions[shard.number] = place.decode()
                try:
                    found.append(Said(int(place.split(b"-")[0]), Event.from_json(fields[1])))
                except (ValueError, TypeError):  # of another version, or damaged: the others are told all the same
                    log.warning("event not read", shard=shard.number, id=place.decode())
            self._positions.setdefault(shard.number, "0-0")
        return found

    async def _after(self, shard: Shard, position: str) -> list[tuple[bytes, list[bytes]]] | None:
        """None = there are more than is worth reading."""
        rows: list[tuple[bytes, list[bytes]]] = await shard.command(
            "XRANGE", shard.events, f"({position}", "+", "COUNT", MOST
        )
        return rows if len(rows) < MOST else None
