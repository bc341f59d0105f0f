"""Ledger and bags against whatever order of their scripts: each step of a refill, a return and a change of month may be
left out, come late, or come twice, with the answers of any earlier moment; nothing is lost or made by it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from config.settings import QueueSettings
from mailqueue import keys
from mailqueue.content import Encoder
from mailqueue.queue import Queue
from mailqueue.quota import Bag, Book, Charge, Grant, IncidentSeen, Ledger, Short, new_token
from mailqueue.server import inspect_server
from mailqueue.writer import Put, Void, prepare
from tests.quota_kit import SAID, check, many, paid

NAMES = ("padre", "hija", "mensual")
SHARDS = 2
ALLOWANCE = 40
PICK = st.integers(0, 1000)
NAME = st.sampled_from(NAMES)
SHARD = st.integers(0, SHARDS - 1)
COUNT = st.integers(1, 30)
T = TypeVar("T")


class QuotaMachine(RuleBasedStateMachine):
    """``url`` is set on a subclass. ``credited`` and ``lapsed`` are reckoned here; ``used`` too, message by message."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.month = 1
        self.books: list[tuple[str, Book]] = []
        self.bags: list[tuple[str, int, Bag]] = []
        self.entered: list[tuple[str, str, int, str]] = []
        self.used: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.queued: list[Put] = []
        self.given_back, self.period = 0, ""  # of the monthly account, since its month began
        self.number = 0
        self.encoder = Encoder(dictionaries=False)
        self.queue: Queue = self.do(self._open())
        self.ledger: Ledger = self.queue.ledger

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def _open(self) -> Queue:
        queue = await Queue.open(QueueSettings(url=self.url, shards=SHARDS, durability="relaxed"), "test", patience=5)
        await queue.shards[0].command("FLUSHALL")
        await inspect_server(queue.shards[0], queue.settings)
        return queue

    def teardown(self) -> None:
        self.do(self.settle_all())
        self.do(self.queue.close())
        self.loop.close()

    async def settle_all(self) -> None:
        """What is in transit arrives, all of it, and is in one place."""
        for name in NAMES:
            book = await self.ledger.recall(self.grant(name), await self.ledger.look(name))
            _, bags = await check(self.ledger, self.queue, name)
            assert [bag.left for bag in bags] == [0] * SHARDS
            assert book.sum - book.balance == self.used[name]
        if book.period:  # of the last account: nothing of an earlier month is left
            entries = await self.ledger.entries("mensual")
            begin = max(at for at, entry in enumerate(entries) if entry["kind"] == "grant")
            of_the_month = sum(entry["amount"] for entry in entries[begin:] if entry["kind"] != "lapse")
            assert book.balance <= of_the_month + self.given_back

    def grant(self, name: str, late: bool = False) -> Grant:
        month = max(1, self.month - late)
        return Grant(name, f"2026-{month:02}", ALLOWANCE) if name == "mensual" else Grant(name)

    @rule()
    def month_ends(self) -> None:
        self.month = min(self.month + 1, 12)

    @rule(name=NAME, amount=COUNT, again=st.booleans(), pick=PICK)
    def enter(self, name: str, amount: int, again: bool, pick: int) -> None:
        kind, token = "credit", new_token()
        if again and self.entered:
            name, kind, amount, token = self.entered[pick % len(self.entered)]
        before = self.do(self.ledger.look(name))
        self.do(self.ledger.enter(self.grant(name), kind, amount, token, **SAID))  # type: ignore[arg-type]
        if again and self.entered:
            assert self.do(self.ledger.look(name)) == before
        self.entered.append((name, kind, amount, token))

    @rule(name=NAME, amount=COUNT)
    def debit(self, name: str, amount: int) -> None:
        try:
            self.do(self.ledger.enter(self.grant(name), "debit", -amount, new_token(), **SAID))
        except Short as short:
            assert short.left < amount

    @rule(name=NAME, amount=COUNT, incident=st.integers(1, 2))
    def replenish(self, name: str, amount: int, incident: int) -> None:
        said = {**SAID, "incident": f"I-{incident}"}
        entries = self.do(self.ledger.entries(name))
        seen = any(entry.get("incident") == said["incident"] for entry in entries)
        try:
            self.do(self.ledger.enter(self.grant(name), "replenish", amount, new_token(), **said))
            assert not seen
        except IncidentSeen:
            assert seen

    @rule(giver=NAME, taker=NAME, amount=COUNT)
    def transfer(self, giver: str, taker: str, amount: int) -> None:
        if giver == taker:
            return
        try:
            self.do(self.ledger.transfer(self.grant(giver), self.grant(taker), amount, new_token(), **SAID))
        except Short as short:
            assert short.left < amount

    @rule(name=NAME, shard=SHARD, need=COUNT, chunk=COUNT, late=st.booleans())
    def allot(self, name: str, shard: int, need: int, chunk: int, late: bool) -> None:
        """And crash, if nothing follows."""
        self.books.append((name, self.do(self.ledger.allot(self.grant(name, late), shard, need, chunk))))

    @rule(shard=SHARD, pick=PICK, mode=st.sampled_from(("fund", "fund", "recall")))
    def bag(self, shard: int, pick: int, mode: str) -> None:
        """With what the ledger said at any time."""
        if self.books:
            name, book = self.books[pick % len(self.books)]
            words: list[Any] = [mode, name, book.total.get(shard, 0), book.begin.get(shard, 0), book.period]
            self.bags.append((name, shard, Bag.read(self.do(self.queue.shards[shard].run("bag", words)))))

    @rule(pick=PICK)
    def collect(self, pick: int) -> None:
        """With what a bag said at any time."""
        if self.bags:
            name, shard, bag = self.bags[pick % len(self.bags)]
            words = [shard, bag.returned, bag.before, bag.lapsed, bag.period]
            self.do(self.ledger._run("collect", "", Grant(name), *words))

    @rule(name=NAME, shard=SHARD, count=COUNT, refill=st.booleans(), again=st.booleans(), late=st.booleans())
    def put(self, name: str, shard: int, count: int, refill: bool, again: bool, late: bool) -> None:
        grant = self.grant(name, late)
        while True:
            sent = paid(*many(count), account=name)
            if keys.shard_of(sent.envelope.id, SHARDS) == shard:
                break
        charge = Charge(name, grant.period, "2026-01-01", "smtp", grant.allowance)
        entry = prepare(sent, self.encoder, charge=charge)
        answer = self.do(self._put(shard, entry))
        if answer.startswith("a") and refill:
            deadline = self.loop.time() + 10
            left = self.do(self.queue._allotments.refill(shard, charge, count, deadline))
            answer = self.do(self._put(shard, entry))
            assert answer.startswith("a") is (left is not None), (answer, left)
        if answer == "q":
            self.used[name] += count
            self.queued.append(entry)
            if again:  # under another number, as a writer that asks once more
                assert self.do(self._put(shard, entry)) == "q"

    async def _put(self, shard: int, entry: Put) -> str:
        self.number += 1
        words = ["w", self.number, 1000, 0, 1, *entry.arguments(b"")]
        return (await self.queue.shards[shard].run("put", words))[0].decode()  # type: ignore[no-any-return]

    @rule(pick=PICK, again=st.booleans())
    def void(self, pick: int, again: bool) -> None:
        if not self.queued:
            return
        entry = self.queued.pop(pick % len(self.queued))
        void = Void(entry.id, entry.flow, entry.destinations, (), entry.charge)
        assert entry.charge is not None
        shard = self.queue.shards[keys.shard_of(entry.id, SHARDS)]
        for taken in (len(entry.destinations), 0)[: 1 + again]:
            self.number += 1
            answer = self.do(shard.run("put", ["w", self.number, 1000, 1, *void.arguments(), 0]))
            assert answer == [b"v:%d" % taken]
            self.used[entry.charge.account] -= taken
            if entry.charge.account == "mensual":
                self.given_back += taken

    @invariant()
    def adds_up(self) -> None:
        for name in NAMES:
            book, bags = self.do(check(self.ledger, self.queue, name))
            assert sum(bag.used for bag in bags) == self.used[name]
            entries = self.do(self.ledger.entries(name))
            grants = [entry["period"] for entry in entries if entry["kind"] == "grant"]
            assert grants == sorted(set(grants)), "a month is granted once"
            assert book.period == (grants[-1] if grants else "")
        if book.period != self.period:
            self.given_back, self.period = 0, book.period


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_nothing_is_lost_or_made(make_redis_server: Any, kind: str) -> None:
    class Machine(QuotaMachine):
        url = make_redis_server(kind, appendfsync="everysec").url

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
