"""What an account's quota came to: its statement between two days, and the reconciliation of all the places where it
stands (entries, ledger, bags, use, events). Reads only; exact while mail goes in, too, for each shard's bag, use and
place in the event stream are read in one step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from mailqueue import calendar
from mailqueue.quota import Bag, Book, Ledger
from mailqueue.scripts import Shard

Use = dict[tuple[str, str], int]  # (local day, origin) → recipients
LAST_DAY = "9999-12-31"


@dataclass(frozen=True, slots=True)
class Look:
    """One account in one shard, at one moment."""

    bag: Bag
    use: Use
    first: str  # place of the first event it paid for, "" = none
    last: str  # of the stream's last event, "" = none is left

    @property
    def paid(self) -> bool:
        return bool(self.bag.used or self.use)


class Past(Protocol):
    """What has happened, as far as it is kept."""

    def read(self, shard: Shard, since: str) -> AsyncIterator[tuple[str, bytes]]:
        """(place, JSON) of the events from ``since`` on, in order. Raises QueueDown."""
        ...


class StreamPast:
    """What the stream alone still has."""

    async def read(self, shard: Shard, since: str) -> AsyncIterator[tuple[str, bytes]]:
        start = since
        while rows := await shard.command("XRANGE", shard.events, start, "+", "COUNT", 5000):
            for place, fields in rows:
                yield place.decode(), fields[1]
            start = f"({rows[-1][0].decode()}"


async def look(shard: Shard, account: str) -> Look:
    bag, first, last = await shard.run("bag", ["look", account])
    use: Use = {}
    for name, count in zip(bag[::2], bag[1::2], strict=True):
        if name.startswith(b"u:"):
            day, _, origin = name[2:].decode().partition("\n")
            use[day, origin] = int(count)
    return Look(Bag.read(bag), use, first.decode(), last.decode())


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Recipients, by the place where each figure stands. ``events`` None: they are not all kept any more."""

    account: str
    credited: int  # all entries but lapses
    lapsed: int
    balance: int  # in the ledger, not allotted
    left: int  # in bags
    in_transit: int
    used: int
    events: int | None
    sum: int  # as the ledger adds up its entries

    @property
    def difference(self) -> int:
        return self.credited - self.lapsed - self.balance - self.left - self.in_transit - self.used

    @property
    def agrees(self) -> bool:
        by_entries = self.sum == self.credited - self.lapsed
        return self.difference == 0 and by_entries and self.events in (None, self.used)


async def reconcile(ledger: Ledger, accounts: Collection[str], past: Past | None = None) -> list[Reconciled]:
    """``past``: where the events are read; the stream alone without."""
    found: dict[str, tuple[Book, list[dict[str, Any]], list[Look]]] = {}
    for account in accounts:
        found[account] = await _still(ledger, account)
    counts: dict[str, int | None] = dict.fromkeys(accounts, 0)
    for shard in ledger.shards:
        looks = {account: looks[shard.number] for account, (_, _, looks) in found.items()}
        for account, count in (await _paid(shard, looks, past or StreamPast())).items():
            total = counts[account]
            counts[account] = None if count is None or total is None else total + count
    return [_reconciled(account, *found[account], counts[account]) for account in accounts]


async def _still(ledger: Ledger, account: str) -> tuple[Book, list[dict[str, Any]], list[Look]]:
    """Ledger and bags at one moment: looked at again while recipients moved between them."""
    while True:
        book = await ledger.look(account)
        looks = [await look(shard, account) for shard in ledger.shards]
        entries = await ledger.entries(account)
        if await ledger.look(account) == book:
            return book, entries, looks


def _reconciled(
    account: str, book: Book, entries: Sequence[Mapping[str, Any]], looks: Sequence[Look], paid: int | None
) -> Reconciled:
    in_transit = 0
    for shard, one in enumerate(looks):
        in_transit += book.total.get(shard, 0) - one.bag.funded
        in_transit += one.bag.returned - book.returned.get(shard, 0)
        in_transit += one.bag.lapsed - book.lapsed.get(shard, 0)
    return Reconciled(
        account,
        credited=sum(entry["amount"] for entry in entries if entry["kind"] != "lapse"),
        lapsed=-sum(entry["amount"] for entry in entries if entry["kind"] == "lapse"),
        balance=book.balance,
        left=sum(one.bag.left for one in looks),
        in_transit=in_transit,
        used=sum(one.bag.used for one in looks),
        events=paid,
        sum=book.sum,
    )


async def _paid(shard: Shard, looks: Mapping[str, Look], past: Past, campaign: str = "") -> dict[str, int | None]:
    """Recipients paid for by the events, account by account, up to the place that each was looked at; None where the
    first one it paid for is kept no more."""
    begun = {account: _place(look.first) for account, look in looks.items() if look.first}
    counts: dict[str, int] = dict.fromkeys(looks, 0)
    whole = {account for account, look in looks.items() if not look.paid}
    if not begun:
        return {account: count if account in whole else None for account, count in counts.items()}
    last = {account: _place(looks[account].last) for account in begun if looks[account].last}
    messages: set[str] = set()  # of the campaign
    async for position, text in past.read(shard, "{}-{}".format(*min(begun.values()))):
        if b'"pays":true' not in text and b'"refunded":' not in text:
            continue
        event, place = orjson.loads(text), _place(position)
        account = event.get("account", "")
        if account not in begun or place > last.get(account, place):
            continue
        if place == begun[account]:
            whole.add(account)
        if campaign and event.get("campaign") == campaign:
            messages.add(event["id"])
        if campaign and event["id"] not in messages:
            continue
        count = -int(event.get("refunded", 0))
        if event["kind"] == "received":
            count = len(event["recipients"]) - len(event.get("skipped", ()))
        counts[account] += count
    return {account: count if account in whole else None for account, count in counts.items()}


def _place(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)


async def campaign_use(ledger: Ledger, account: str, campaign: str, past: Past | None = None) -> int | None:
    """Recipients that a campaign paid for, None when its events are not all kept any more."""
    total = 0
    for shard in ledger.shards:
        looks = {account: await look(shard, account)}
        count = (await _paid(shard, looks, past or StreamPast(), campaign))[account]
        if count is None:
            return None
        total += count
    return total


@dataclass(frozen=True, slots=True)
class Statement:
    """``opening`` + entries - use = ``closing``. Days are local ones, both included; a month's lapse stands where the
    ledger heard of it."""

    account: str
    first: str
    last: str
    opening: int
    entries: tuple[Mapping[str, Any], ...]
    use: Use = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.use.values())

    @property
    def closing(self) -> int:
        return self.opening + sum(int(entry["amount"]) for entry in self.entries) - self.used


async def statement(ledger: Ledger, account: str, zone: str, first: str = "", last: str = LAST_DAY) -> Statement:
    """Use older than it is kept (:data:`mailqueue.quota.USE_DAYS`) is in ``opening`` alone."""
    _, entries, looks = await _still(ledger, account)
    use: Use = {}
    for one in looks:
        for key, count in one.use.items():
            use[key] = use.get(key, 0) + count
    dated = [(calendar.moment(entry["at"] / 1000, zone).day, entry) for entry in entries]
    since = sum(count for (day, _), count in use.items() if day >= first)
    opening = sum(e["amount"] for day, e in dated if day < first) - (sum(one.bag.used for one in looks) - since)
    return Statement(
        account,
        first,
        last,
        opening,
        tuple(entry for day, entry in dated if first <= day <= last),
        {key: use[key] for key in sorted(use) if first <= key[0] <= last and use[key]},
    )
