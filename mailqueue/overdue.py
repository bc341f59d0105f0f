"""Mail that could be sent now as far as the queue knows, and since when: what the no-progress alarm looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailqueue import keys
from mailqueue.scripts import Shard

ROWS = 10  # of each lane
STEPS = 3000  # destinations of a shard in one look: some milliseconds of the server


@dataclass(frozen=True, slots=True)
class Overdue:
    """One destination of one flow. ``since``: when its first item fell due, ms. ``tended``: a worker has the ticket, or
    mail for the destination (of whatever flow) in its hands."""

    class_: str
    group: str
    pool: str
    destination: str
    since: int
    tended: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """``now``: the server's clock, ms. ``in_hands``: items that workers have claimed. ``workers``: with a lease, in the
    shard that has fewest."""

    now: int
    in_hands: int
    workers: int
    rows: tuple[Overdue, ...]

    def oldest(self, class_: str) -> float:
        """Seconds for which the oldest of a class has been due, 0 = none is."""
        since = min((row.since for row in self.rows if row.class_ == class_), default=self.now)
        return (self.now - since) / 1000


async def overdue(shards: Sequence[Shard]) -> Backlog:
    """Neither held nor stopped nor suspended mail that is due; at most ten destinations of each lane. Raises QueueDown."""
    now = in_hands = 0
    workers = []
    rows: list[Overdue] = []
    for shard in shards:
        answer = await shard.run("overdue", [ROWS, STEPS])
        now = max(now, int(answer[0]))
        in_hands += int(answer[1])
        workers.append(int(answer[2]))
        for at in range(3, len(answer), 6):
            class_, group, pool, destination, since = (word.decode() for word in answer[at : at + 5])
            tended = bool(int(answer[at + 5]))
            rows.append(Overdue(keys.CLASS_NAME[class_], group, pool, destination, int(since), tended))
    return Backlog(now, in_hands, min(workers), tuple(rows))


async def stops(shard: Shard) -> dict[str, tuple[int, str]]:
    """Key → until (ms, 0 = until resumed) and why, of what is suspended; destinations are not among them. Those whose
    time is over may be. Raises QueueDown."""
    rows = await shard.command("HGETALL", shard.prefix + "stop")
    found = {}
    for key, value in zip(rows[::2], rows[1::2], strict=True):
        until, _, reason = value.decode(errors="replace").partition(" ")
        found[key.decode(errors="replace")] = (int(until), reason)
    return found
