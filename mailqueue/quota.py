"""Quotas: one recipient is one unit, taken by put in the shard of the message; the ledger fills the shards' bags.

The two lie in different slots (law 3), and no step spans them. Instead both count for ever upwards: the ledger what it
allotted to a shard, the bag what it was funded with; what the first has more than the second is in transit and
arrives with whatever call comes next. A lost answer, a repetition and a crash between the steps are all the same case.
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import orjson

from config.accounts import AccountSettings
from mailqueue import calendar
from mailqueue.batch import Batch
from mailqueue.errors import QueueDown
from mailqueue.message import Envelope
from mailqueue.scripts import Argument, Shard, Slot

USE_DAYS = 400  # that use is kept day by day; what it came to in all is kept for ever
ROUNDS = 5  # of calling back before others are let through, then once more
MOST_TOGETHER = 1000  # messages that one refill is for
Kind = Literal["credit", "debit", "replenish", "test"]


@dataclass(frozen=True, slots=True)
class Charge:
    """Whose quota pays a message: ``period`` "2026-11", "" for a bag; ``day`` local, where the use is booked."""

    account: str
    period: str
    day: str
    origin: str
    allowance: int = 0  # recipients a period

    def __str__(self) -> str:
        """As the scripts read it."""
        return f"{self.account}\n{self.period}\n{self.day}\n{self.origin}"


def charge_of(envelope: Envelope, zone: str, account: AccountSettings | None = None) -> Charge | None:
    """None for mail that is free. The same for a message at any time: what is given back goes where it was taken."""
    if not envelope.pays:
        return None
    now = calendar.moment(envelope.received_at / 1000, zone)
    monthly = account is not None and account.quota == "monthly"
    allowance = account.allowance if account is not None else 0
    return Charge(envelope.account, now.month if monthly else "", now.day, envelope.origin, allowance)


def outside_term(account: AccountSettings, day: str) -> bool:
    today = datetime.date.fromisoformat(day)
    early = account.term_from is not None and today < account.term_from
    return early or (account.term_until is not None and today > account.term_until)


def term_of(account: AccountSettings) -> str:
    begin = f" from {account.term_from}" if account.term_from else ""
    return f"quota valid{begin}" + (f" until {account.term_until}" if account.term_until else "")


@dataclass(frozen=True, slots=True)
class Book:
    """An account in the ledger. ``sum`` is that of all entries; per shard: what it was allotted in all, what of that
    before this period, and what it gave back or let lapse, as far as the ledger has heard."""

    balance: int = 0  # not allotted
    sum: int = 0
    period: str = ""
    total: Mapping[int, int] = field(default_factory=dict)
    begin: Mapping[int, int] = field(default_factory=dict)
    returned: Mapping[int, int] = field(default_factory=dict)
    lapsed: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, answer: Sequence[Any]) -> Self:
        facts = _facts(answer)

        def by_shard(name: str) -> dict[int, int]:
            return {int(k.partition(":")[2]): int(v) for k, v in facts.items() if k.startswith(name + ":")}

        return cls(
            int(facts.get("balance", 0)),
            int(facts.get("sum", 0)),
            facts.get("period", ""),
            by_shard("total"),
            by_shard("begin"),
            by_shard("returned"),
            by_shard("lapsed"),
        )


@dataclass(frozen=True, slots=True)
class Bag:
    """An account in a shard; all but ``left`` count upwards for ever. ``before``: returned before this period."""

    funded: int = 0
    returned: int = 0
    lapsed: int = 0
    used: int = 0
    period: str = ""
    before: int = 0

    @property
    def left(self) -> int:
        return self.funded - self.returned - self.lapsed - self.used

    @classmethod
    def read(cls, answer: Sequence[Any]) -> Self:
        facts = _facts(answer)
        counts = {name: int(facts.get(name, 0)) for name in ("funded", "returned", "lapsed", "used", "before")}
        return cls(period=facts.get("period", ""), **counts)


class Short(Exception):
    """Too little is there; ``left`` recipients are."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} recipients left")
        self.left = left


class IncidentSeen(Exception):
    """What the incident cost was given back already."""


@dataclass(frozen=True, slots=True)
class Grant:
    """An account as the ledger must know it: its period and allowance, both empty for a bag."""

    name: str
    period: str = ""
    allowance: int = 0

    def words(self) -> list[Argument]:
        return [self.name, self.period, self.allowance]

    @classmethod
    def of(cls, account: AccountSettings, now: float, zone: str) -> Self:
        monthly = account.quota == "monthly"
        return cls(account.name, calendar.moment(now, zone).month if monthly else "", account.allowance)


def new_token() -> str:
    return os.urandom(12).hex()


class Ledger:
    """The slot ``{quota}:`` and the bags of all shards. Every verb may be repeated, those with a token under it."""

    def __init__(self, slot: Slot, shards: Sequence[Shard]) -> None:
        self.slot = slot
        self.shards = shards

    async def _run(self, verb: str, token: str, account: Grant, *words: Argument) -> Book:
        answer = await self.slot.run("ledger", [verb, token, *account.words(), *words])
        if len(answer) == 2 and answer[0] == b"short":
            raise Short(int(answer[1]))
        if len(answer) == 2 and answer[0] == b"seen":
            raise IncidentSeen
        return Book.read(answer)

    async def enter(self, account: Grant, kind: Kind, amount: int, token: str, **said: Any) -> Book:
        """One entry; an amount below none calls back what shards hold, if need be. Raises Short, IncidentSeen."""
        return await self._called_back(account, token, "enter", kind, amount, orjson.dumps(said))

    async def transfer(self, giver: Grant, taker: Grant, amount: int, token: str, **said: Any) -> Book:
        """Both entries or none; returns the giver's book. Raises Short."""
        words = (amount, *taker.words(), orjson.dumps(said))
        return await self._called_back(giver, token, "transfer", *words)

    async def _called_back(self, account: Grant, token: str, verb: str, *words: Argument) -> Book:
        for _ in range(ROUNDS):  # mail that goes in meanwhile has bags filled again
            try:
                return await self._run(verb, token, account, *words)
            except Short:
                await self.recall(account, await self.look(account.name))
        return await self._run(verb, token, account, *words)

    async def allot(self, account: Grant, shard: int, need: int, chunk: int) -> Book:
        return await self._run("allot", "", account, shard, need, chunk)

    async def look(self, account: str) -> Book:
        return await self._run("look", "", Grant(account))

    async def fund(self, account: str, shard: int, book: Book, mode: str = "fund") -> Bag:
        words: list[Argument] = [mode, account, book.total.get(shard, 0), book.begin.get(shard, 0), book.period]
        bag = Bag.read(await self.shards[shard].run("bag", words))
        if bag.returned > book.returned.get(shard, 0) or bag.lapsed > book.lapsed.get(shard, 0):
            await self._run("collect", "", Grant(account), shard, bag.returned, bag.before, bag.lapsed, bag.period)
        return bag

    async def recall(self, account: Grant, book: Book, but: int | None = None) -> Book:
        """What shards have left goes back to the ledger; the book afterwards."""
        for shard in sorted(book.total):
            if shard != but and shard < len(self.shards):
                await self.fund(account.name, shard, book, "recall")
        return await self.look(account.name)

    async def accounts(self) -> list[str]:
        return sorted(name.decode() for name in await self.slot.command("SMEMBERS", self.slot.prefix + "accounts"))

    async def entries(self, account: str) -> list[dict[str, Any]]:
        """Oldest first; ``at`` Unix ms, ``sum`` that of all entries until then."""
        rows = await self.slot.command("XRANGE", f"{self.slot.prefix}e:{account}", "-", "+")
        return [orjson.loads(fields[1]) for _, fields in rows]


@dataclass(slots=True, eq=False)
class Need:
    """A message that waits for its shard's bag to be filled."""

    count: int
    waited_for: bool = True


class Allotments:
    """Fills bags for one process: one refill at a time for an account in a shard, and what waits meanwhile is the next."""

    def __init__(self, ledger: Ledger, chunk: int) -> None:
        self._ledger = ledger
        self._chunk = chunk
        self._refills: dict[tuple[int, Grant], Batch[Need, int]] = {}

    async def refill(self, shard: int, charge: Charge, count: int, deadline: float) -> int | None:
        """None: filled, put again; else how many are left, and that is too few. Raises QueueDown at ``deadline``."""
        key = shard, Grant(charge.account, charge.period, charge.allowance)
        batch = self._refills.get(key)
        if batch is None:
            batch = self._refills[key] = self._batch(*key)
        need = Need(count)
        try:
            async with asyncio.timeout_at(deadline):
                left = await asyncio.shield(batch.add(need))
        except TimeoutError:
            raise QueueDown("the quota ledger gave no answer in time") from None
        finally:
            need.waited_for = False
        return left if left < count else None

    def _batch(self, shard: int, account: Grant) -> Batch[Need, int]:
        async def call(_number: int, needs: list[Need]) -> list[int | Exception]:
            left = await self._fill(shard, account, [need.count for need in needs])
            return [left] * len(needs)

        return Batch(
            call,
            most=MOST_TOGETHER,
            give_up=lambda needs: not any(need.waited_for for need in needs),
            skip=lambda need: not need.waited_for,
        )

    async def _fill(self, shard: int, account: Grant, counts: list[int]) -> int:
        """How many the shard can take from now: at least the largest count, or all there are anywhere."""
        ledger = self._ledger
        for _ in range(ROUNDS):
            book = await ledger.allot(account, shard, sum(counts), self._chunk)
            bag = await ledger.fund(account.name, shard, book)
            if bag.left >= max(counts):
                return bag.left
            after = await ledger.recall(account, book, but=shard)
            # Final only if nothing moved while we looked: what came back to the ledger, or went to another shard.
            if after.balance == 0 and after.total == book.total:
                return bag.left
        raise QueueDown("the quota's last recipients are on the move between shards")

    async def close(self) -> None:
        for batch in list(self._refills.values()):
            await batch.close()


def _facts(answer: Sequence[Any]) -> dict[str, str]:
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in answer]
    return dict(zip(words[::2], words[1::2], strict=True))
