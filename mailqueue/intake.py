"""Whether new mail is taken at all: an operator's word, kept with the queue, obeyed by every relayd within a second."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from mailqueue.events import Event
from mailqueue.scripts import Shard

STOPPED = "intake is stopped"  # how relayd begins to say so, at /readyz and of itself

log = structlog.get_logger("queue")


@dataclass(frozen=True, slots=True)
class Stopped:
    """Times are Unix ms by the server's clock; ``until`` 0 = until it is started."""

    reason: str
    since: int
    until: int


async def stopped(shard: Shard) -> Stopped | None:
    """None = mail is taken. ``shard`` is the first one. Raises QueueDown."""
    return _read(await shard.run("intake", ["read"]))


async def stop(shard: Shard, reason: str, seconds: float, audit: Event) -> Stopped | None:
    """``seconds`` 0 = until it is started. A second stop counts instead of the first; gives what was there before."""
    return _read(await shard.run("intake", ["stop", reason, seconds, audit.to_json()]))


async def start(shard: Shard, audit: Event) -> Stopped | None:
    """What there was before; None when mail was taken anyhow, and then nothing is written."""
    return _read(await shard.run("intake", ["start", "", 0, audit.to_json()]))


def _read(answer: list[bytes]) -> Stopped | None:
    if not answer:
        return None
    reason, since, until = answer
    return Stopped(reason.decode(), int(since), int(until))


class Intake:
    """What a process believes of it: as of the last look."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.stopped: Stopped | None = None

    async def look(self) -> None:
        """Raises QueueDown."""
        found = await stopped(self._shard)
        if found and not self.stopped:
            log.warning("intake stopped", why=found.reason, until=found.until)
        elif self.stopped and not found:
            log.warning("intake started")
        self.stopped = found
