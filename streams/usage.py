"""What quotas were used for after a copy of the queue was made: told by the events, taken off the restored ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailqueue import calendar
from mailqueue.events import Event
from mailqueue.quota import Charge, Grant, Ledger, new_token
from mailqueue.scripts import Shard

Day = tuple[str, str]  # local day, origin


@dataclass(slots=True)
class Usage:
    """By shard and account. ``zone``: whose days count (quota.timezone)."""

    zone: str
    by_account: dict[tuple[int, str], Counter[Day]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, shard: int, event: Event) -> None:
        count = -event.refunded
        if event.kind == "received" and event.pays:
            count = len(event.recipients) - len(event.skipped)
        if count and event.account:
            day = calendar.moment((event.received_at or event.at) / 1000, self.zone).day
            self.by_account[shard, event.account][day, event.origin or "smtp"] += count

    @property
    def total(self) -> int:
        return sum(counts.total() for counts in self.by_account.values())


async def spend(usage: Usage, ledger: Ledger, shards: Sequence[Shard], said: str) -> None:
    """Each shard's bag is filled first where it has too little; what the ledger has not either was credited after the copy,
    and is entered as a credit that says ``said``."""
    for (shard, account), counts in usage.by_account.items():
        grant = Grant(account)
        book = await ledger.look(account)
        bag = await ledger.fund(account, shard, book)
        lacking = counts.total() - bag.left
        if lacking > 0:
            if lacking > book.balance:
                await ledger.enter(grant, "credit", lacking - book.balance, new_token(), reason=said, who="restore")
            book = await ledger.allot(grant, shard, lacking, 0)
            await ledger.fund(account, shard, book)
        words: list[str | int] = [len(counts)]
        for (day, origin), count in counts.items():
            words += [str(Charge(account, "", day, origin)), count]
        await shards[shard].run("spend", words)
