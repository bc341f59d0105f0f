"""What tests of quotas share: an account that pays, its messages, and the law that its books add up."""

from __future__ import annotations

from typing import Any

from config.accounts import AccountSettings
from mailqueue import keys
from mailqueue.message import Message
from mailqueue.queue import Queue
from mailqueue.quota import Bag, Book, Grant, Ledger, new_token
from mailqueue.statement import look
from mailqueue.writer import Verdict
from tests.queue_kit import message

LIMA = "America/Lima"
SAID = {"origin": "api", "who": "test"}


def account(name: str = "rrhh", **facts: Any) -> AccountSettings:
    return AccountSettings(name=name, **{"quota": "bag", **facts})


def paid(*recipients: str, **changes: Any) -> Message:
    return message(*recipients, **{"pays": True, **changes})


def many(count: int, domain: str = "x.test") -> list[str]:
    return [f"p{number}@{domain}" for number in range(count)]


async def credit(queue: Queue, amount: int, name: str = "rrhh") -> Book:
    return await queue.ledger.enter(Grant(name), "credit", amount, new_token(), reason="contrato", **SAID)


async def put(
    queue: Queue, count: int = 1, key: str | None = None, shard: int | None = None, **changes: Any
) -> Verdict:
    """``shard``: in this one; else where the id leads."""
    who = changes.pop("of", None) or account(changes.get("account", "rrhh"))
    while True:
        sent = paid(*many(count), **changes)
        if shard is None or keys.shard_of(sent.envelope.id, len(queue.shards)) == shard:
            return await queue.put(sent, key, account=who)


async def bags(queue: Queue, name: str = "rrhh") -> list[Bag]:
    """Of every shard, and that each agrees with its use."""
    found = []
    for shard in queue.shards:
        one = await look(shard, name)
        found.append(one.bag)
        assert one.bag.left >= 0, one
        assert one.bag.used == sum(one.use.values())
    return found


async def check(ledger: Ledger, queue: Queue, name: str = "rrhh") -> tuple[Book, list[Bag]]:
    """Nothing is lost or made: what was entered is in the ledger, in bags, used, lapsed, or on its way."""
    book, found = await ledger.look(name), await bags(queue, name)
    entries = await ledger.entries(name)
    assert book.sum == sum(entry["amount"] for entry in entries) == (entries[-1]["sum"] if entries else 0)
    assert book.balance >= 0
    counted = 0
    for shard, bag in enumerate(found):
        total, returned, lapsed = (facts.get(shard, 0) for facts in (book.total, book.returned, book.lapsed))
        assert total >= bag.funded and bag.returned >= returned and bag.lapsed >= lapsed, (book, bag)
        in_transit = (total - bag.funded) + (bag.returned - returned) + (bag.lapsed - lapsed)
        counted += in_transit + bag.left + bag.used
    assert book.sum == book.balance + counted, (book, found)
    return book, found
