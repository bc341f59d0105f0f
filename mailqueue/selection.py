"""Which recipients somebody means, and where a recipient lies. Read page by page: :mod:`mailqueue.scan`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mailqueue import keys
from mailqueue.message import domain_of
from mailqueue.scripts import Argument, Shard

PAGE = 300  # entries
QUEUED, DEFERRED, HELD, LEASED = STATES = ("queued", "deferred", "held", "leased")


@dataclass(frozen=True, slots=True)
class Selection:
    """All that is said must hold; what is empty says nothing. ``provider`` is a provider's group or "route:<name>",
    ``before`` Unix ms: whose id is older; ``campaign`` is always read together with ``account``."""

    ids: tuple[str, ...] = ()
    recipient: str = ""
    destination: str = ""
    provider: str = ""
    account: str = ""
    campaign: str = ""
    class_: str = ""
    states: frozenset[str] = frozenset()  # of STATES
    before: int = 0

    @property
    def domain(self) -> str:
        """The one destination it can be about, "" = any."""
        return self.destination or domain_of(self.recipient)

    @property
    def reads(self) -> bool:
        """Whether an entry's message or state must be read to know."""
        return bool(self.recipient) or len(self.states & {QUEUED, DEFERRED}) == 1

    def looks_at(self, *places: str) -> bool:
        return not self.states or bool(self.states & set(places))

    def __str__(self) -> str:
        """As an operator writes it."""
        named = {
            "recipient": self.recipient,
            "destination": self.destination,
            "provider": self.provider,
            "account": self.account if not self.campaign else "",
            "campaign": f"{self.account}/{self.campaign}" if self.campaign else "",
            "class": self.class_,
            "state": ",".join(sorted(self.states)),
            "before": str(self.before or ""),
        }
        words = [*self.ids[:20], *([f"… {len(self.ids)} ids"] if len(self.ids) > 20 else [])]
        return " ".join([*words, *(f"{name}:{value}" for name, value in named.items() if value)]) or "all"


@dataclass(frozen=True, slots=True)
class Flow:
    id: str
    class_: str
    account: str
    campaign: str
    pool: str

    @property
    def letter(self) -> str:
        return keys.CLASS_LETTER[self.class_]


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipient where it lies: queued (due at ``due`` ms), held, or leased to the worker of ``epoch``. ``note``: what
    hold says of it ("<since ms>\\n<who>\\n<why>"), or the claim's number."""

    key: bytes
    flow: Flow
    destination: str
    group: str
    place: str
    due: int = 0
    epoch: str = ""
    note: bytes = b""

    @property
    def id(self) -> str:
        return self.key[:-2].decode("ascii", "replace")

    @property
    def index(self) -> int:
        return int.from_bytes(self.key[-2:], "big")

    @property
    def held(self) -> tuple[int, str, str]:
        """Since when (ms, 0 = unknown), by whom ("" = the relay itself) and why."""
        words = self.note.decode(errors="replace").split("\n", 2) if self.place == HELD else []
        since, who, why = [*words, "", "", ""][:3]
        return int(since or 0), who, why

    @property
    def leased_at(self) -> int:
        """Unix ms; 0 = a worker of an older version has it."""
        return int(self.note or 0) // 1_000_000 if self.place == LEASED else 0


async def where(shard: Shard, flow: Flow, places: Sequence[tuple[bytes, str]]) -> list[Entry]:
    """Those of these (key, destination) that are not final, where they lie now. Raises QueueDown."""
    workers = await epochs(shard)
    asked: list[Sequence[Argument]] = []
    for key, destination in places:
        asked.append(("ZSCORE", f"{shard.prefix}q:{flow.id}:{destination}", key))
        asked.append(("HGET", shard.prefix + "hold", key))
        asked += (("HGET", f"{shard.prefix}w:{epoch}", key) for epoch in workers)
    answers = iter(await shard.commands(asked))
    groups = await groups_of(shard, {destination for _, destination in places})
    found = []
    for key, destination in places:
        due, hold = next(answers), next(answers)
        hands = [(epoch, stamp) for epoch in workers if (stamp := next(answers))]
        about = (key, flow, destination, groups.get(destination, "default"))
        if due is not None:
            found.append(Entry(*about, QUEUED, int(float(due))))
        elif hold is not None:
            found.append(Entry(*about, HELD, note=b"".join(hold.split(b"\n", 3)[3:])))
        elif hands:
            found.append(Entry(*about, LEASED, epoch=hands[0][0], note=hands[0][1].split(b"\n", 1)[0]))
    return found


async def epochs(shard: Shard) -> list[str]:
    """Workers that may have something in hand: the living and the buried."""
    answer = await shard.commands([("ZRANGE", shard.prefix + name, 0, -1) for name in ("w", "dead")])
    return [epoch.decode() for part in answer for epoch in part]


async def groups_of(shard: Shard, destinations: Collection[str]) -> dict[str, str]:
    if not destinations:
        return {}
    wanted = list(destinations)
    found = zip(wanted, await shard.command("HMGET", shard.prefix + "dest", *wanted), strict=True)
    return {destination: group.decode() for destination, group in found if group}


async def hash_pages(shard: Shard, name: str) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """A hash's (field, value) pairs, page by page."""
    cursor: Any = b"0"
    while True:
        cursor, rows = await shard.command("HSCAN", shard.prefix + name, cursor, "COUNT", PAGE)
        if rows:
            yield list(zip(rows[::2], rows[1::2], strict=True))
        if cursor == b"0":
            return
