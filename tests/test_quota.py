"""Quotas on a real server: what is taken, what is free, what comes back, and that it adds up."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import pytest

from mailqueue import calendar, keys
from mailqueue.errors import QueueDown
from mailqueue.events import about
from mailqueue.queue import Queue
from mailqueue.quota import Charge, Grant, IncidentSeen, Short, charge_of, new_token
from mailqueue.reaper import Reaper
from mailqueue.statement import look
from mailqueue.worker import ClaimRequest, Settlement
from mailqueue.writer import Void
from tests.queue_kit import claim_all, events, message, now_ms, opened, places, working
from tests.quota_kit import LIMA, SAID, account, check, credit, many, paid, put


def ms(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)


NOON = "2026-11-25T12:00:00-05:00"


def test_a_recipient_is_a_unit_and_a_message_is_taken_whole(any_redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(any_redis_server.url) as queue:
            await credit(queue, 10)
            assert (await put(queue, 4)).kind == "queued"
            refused = await put(queue, 7)
            assert (refused.kind, refused.left) == ("over_quota", 6)
            assert (await put(queue, 6)).kind == "queued"
            empty = await put(queue, 1)
            assert (empty.kind, empty.left) == ("over_quota", 0)
            book, (bag,) = await check(queue.ledger, queue)
            assert (book.balance, bag.left, bag.used) == (0, 0, 10)
            assert len(await places(queue.shards)) == 10
            assert [event.pays for event in await events(queue)] == [True, True]

    asyncio.run(scenario())


def test_an_account_that_was_never_credited_has_nothing(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            verdict = await put(queue, 3)
            assert (verdict.kind, verdict.left) == ("over_quota", 0)
            assert await events(queue) == []

    asyncio.run(scenario())


def test_what_does_not_pay_is_free(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            verdict = await queue.put(message(*many(3)), account=account(test=True))
            assert verdict.kind == "queued"
            assert await queue.shards[0].command("KEYS", "{q0}:bag:*") == []

    asyncio.run(scenario())


def test_duplicates_are_free_and_a_refused_message_leaves_no_marker(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await credit(queue, 5)
            first = await put(queue, 3, "lote")
            assert (await put(queue, 3, "lote")).id == first.id
            half = await put(queue, 4, "lote")  # three of them are there
            assert (half.kind, half.queued, half.skipped) == ("queued", 1, 3)
            refused = await put(queue, 9, "lote")
            assert (refused.kind, refused.left) == ("over_quota", 1)
            await credit(queue, 4)
            again = await put(queue, 9, "lote")
            assert (again.kind, again.queued, again.skipped) == ("queued", 5, 4)
            _, (bag,) = await check(queue.ledger, queue)
            assert bag.used == 9

    asyncio.run(scenario())


def test_a_void_gives_back_to_the_day_and_origin_it_took_from(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await credit(queue, 10)
            sent = paid(*many(4), received_at=ms(NOON), origin="api")
            await queue.put(sent, account=account())
            assert await use(queue) == {"2026-11-25 api": 4}
            (ticket,), _, _ = await worker.due({"bulk": 1})
            assert len((await worker.claim(ClaimRequest(ticket, 1, 1))).items) == 1  # one is in a worker's hands
            flow = keys.flow_name(sent.envelope)
            void = Void(sent.envelope.id, flow, ("x.test",) * 4, (), charge_of(sent.envelope, LIMA, account()))
            await queue._writers[0]._batch.add(void)
            _, (bag,) = await check(queue.ledger, queue)
            assert (bag.used, await use(queue)) == (1, {"2026-11-25 api": 1})
            removed = (await events(queue))[-1]
            assert (removed.kind, removed.account, removed.refunded) == ("removed", "rrhh", 3)

    asyncio.run(scenario())


async def use(queue: Queue, shard: int = 0) -> dict[str, int]:
    found = await look(queue.shards[shard], "rrhh")
    return {f"{day} {origin}": count for (day, origin), count in found.use.items()}


@pytest.mark.parametrize("pays", [True, False])
def test_suppressed_recipients_go_back_to_the_quota_that_paid(shared_redis: Any, pays: bool) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await credit(queue, 10)
            await queue.put(paid(*many(3), pays=pays), account=account())
            items = await claim_all(worker)
            charge = charge_of(items[0].message.envelope, LIMA, account())
            assert (charge is not None) is pays
            said = about(items[0], "suppressed", now_ms(), reason="on the list")
            assert await worker.settle(Settlement(items[0], "suppressed", said, charge=charge)) == "s"
            await worker.settle(Settlement(items[1], "hold"))
            reaper = Reaper(queue.shards[0], lambda *_: b"")
            envelope = items[1].message.envelope
            only = {items[1].index, items[2].index}  # the other is in this worker's hands
            assert await reaper.withdraw(envelope, "suppress", "suppressed", "list", only=only, charge=charge) == 1
            assert await reaper.withdraw(envelope, "suppress", "suppressed", "list", only=only, charge=charge) == 0
            _, (bag,) = await check(queue.ledger, queue)
            assert bag.used == (1 if pays else 0)
            refunded = [event.refunded for event in await events(queue) if event.kind == "suppressed"]
            assert refunded == ([1, 1] if pays else [0, 0])
            assert list(await places(queue.shards)) == [items[2].key]

    asyncio.run(scenario())


def test_a_late_suppression_gives_back_only_what_it_closed(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await credit(queue, 10)
            await put(queue, 2)
            one, two = await claim_all(worker)
            charge = charge_of(one.message.envelope, LIMA, account())
            said = [about(item, "suppressed", now_ms()) for item in (one, two)]
            await worker.settle(Settlement(one, "back"))
            await worker.settle(Settlement(two, "final"))
            assert await worker.settle(Settlement(one, "suppressed", said[0], charge=charge)) == "l"
            assert await worker.settle(Settlement(two, "suppressed", said[1], charge=charge)) == "L"
            _, (bag,) = await check(queue.ledger, queue)
            assert bag.used == 1
            assert [(e.kind, e.refunded) for e in await events(queue)][-2:] == [("suppressed", 1), ("late", 0)]

    asyncio.run(scenario())


def test_the_last_recipients_are_found_wherever_they_lie(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            await credit(queue, 300)
            for shard in range(3):
                assert (await put(queue, 10, shard=shard)).kind == "queued"
            book, there = await check(queue.ledger, queue)
            assert all(bag.left for bag in there) and book.balance < 260
            assert (await put(queue, 260, shard=1)).kind == "queued"
            refused = await put(queue, 11, shard=2)
            assert (refused.kind, refused.left) == ("over_quota", 10)
            assert (await put(queue, 10, shard=0)).kind == "queued"
            _, there = await check(queue.ledger, queue)
            assert sum(bag.used for bag in there) == 300

    asyncio.run(scenario())


@pytest.mark.parametrize("shards", [1, 3])
def test_exactly_as_many_as_there_are_go_through_however_many_ask(shared_redis: Any, shards: int) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=shards) as one, opened(shared_redis.url, shards=shards) as two:
            await credit(one, 100)
            verdicts = await asyncio.gather(*(put(queue, 3) for _ in range(60) for queue in (one, two)))
            assert sum(verdict.queued for verdict in verdicts) == 99
            _, there = await check(one.ledger, one)
            assert sum(bag.used for bag in there) == 99

    asyncio.run(scenario())


def test_months_begin_and_end_by_the_clock_of_lima(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            who = account(quota="monthly", allowance=100)
            november, december = ms("2026-11-30T23:59:59-05:00"), ms("2026-12-01T00:00:00-05:00")
            assert (await put(queue, 30, of=who, received_at=november, shard=0)).kind == "queued"
            assert (await put(queue, 30, of=who, received_at=november, shard=1)).kind == "queued"
            assert (await put(queue, 41, of=who, received_at=november)).left == 40
            assert (await put(queue, 100, of=who, received_at=december, shard=0)).kind == "queued"
            assert (await put(queue, 1, of=who, received_at=december, shard=1)).left == 0
            # A process whose clock lags pays from the month that has begun.
            assert (await put(queue, 1, of=who, received_at=november)).kind == "over_quota"
            book, there = await check(queue.ledger, queue)
            assert book.period == "2026-12"
            assert sum(bag.used for bag in there) == 160
            entries = [(e["kind"], e["amount"]) for e in await queue.ledger.entries("rrhh")]
            assert entries[0] == ("grant", 100) and ("grant", 100) in entries[1:]
            assert sum(amount for kind, amount in entries if kind == "lapse") == -40

    asyncio.run(scenario())


def test_what_was_on_its_way_when_the_month_ended_lapses(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            old, new = Grant("rrhh", "2026-11", 100), Grant("rrhh", "2026-12", 60)
            await queue.ledger.allot(old, 0, 30, 1)  # never funded
            book = await queue.ledger.allot(old, 1, 30, 1)
            await queue.ledger.fund("rrhh", 1, book)
            await queue.shards[1].run("bag", ["recall", "rrhh", 30, 0, "2026-11"])  # never collected
            book = await queue.ledger.allot(new, 0, 5, 1)
            await queue.ledger.recall(new, book)
            book, there = await check(queue.ledger, queue)
            assert (book.balance, book.sum, [bag.left for bag in there]) == (60, 60, [0, 0])
            assert all(not bag.used for bag in there)

    asyncio.run(scenario())


def test_what_a_bag_gave_back_before_its_month_ended_lapses_when_it_is_counted(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            old, new, shard = Grant("rrhh", "2026-11", 100), Grant("rrhh", "2026-12", 60), queue.shards[0]
            book = await queue.ledger.allot(old, 0, 30, 1)
            await queue.ledger.fund("rrhh", 0, book)
            await shard.run("bag", ["recall", "rrhh", 30, 0, "2026-11"])
            book = await queue.ledger.allot(new, 0, 20, 1)
            await shard.run("bag", ["fund", "rrhh", book.total[0], book.begin[0], "2026-12"])
            await shard.run("bag", ["recall", "rrhh", book.total[0], book.begin[0], "2026-12"])
            await queue.ledger.fund("rrhh", 0, book)  # counts both returns at once: 30 of November, the rest of now
            book, _ = await check(queue.ledger, queue)
            assert (book.balance, book.sum) == (60, 60)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("at", "kind", "why"),
    [
        ("2026-11-24T23:59:59-05:00", "over_quota", "quota valid from 2026-11-25 until 2026-11-26"),
        ("2026-11-25T00:00:00-05:00", "queued", ""),
        ("2026-11-26T23:59:59-05:00", "queued", ""),
        ("2026-11-27T00:00:00-05:00", "over_quota", "quota valid from 2026-11-25 until 2026-11-26"),
    ],
)
def test_a_bag_has_a_term(shared_redis: Any, at: str, kind: str, why: str) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await credit(queue, 10)
            who = account(term_from=datetime.date(2026, 11, 25), term_until=datetime.date(2026, 11, 26))
            verdict = await put(queue, 1, of=who, received_at=ms(at))
            assert (verdict.kind, verdict.why) == (kind, why)

    asyncio.run(scenario())


def test_transfers_call_back_what_shards_hold(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            await credit(queue, 100, "padre")
            await put(queue, 10, account="padre", shard=0)
            padre, hija, token = Grant("padre"), Grant("hija"), new_token()
            for _ in range(2):  # the second answers alike and moves nothing
                await queue.ledger.transfer(padre, hija, 90, token, reason="reparto", **SAID)
            with pytest.raises(Short) as short:
                await queue.ledger.transfer(padre, hija, 1, new_token(), **SAID)
            assert short.value.left == 0
            assert (await put(queue, 90, account="hija")).kind == "queued"
            for name in ("padre", "hija"):
                await check(queue.ledger, queue, name)
            last = (await queue.ledger.entries("hija"))[-1]
            assert (last["kind"], last["amount"], last["other"], last["reason"], last["token"]) == (
                *("transfer-in", 90, "padre", "reparto"),
                token,
            )

    asyncio.run(scenario())


def test_entries_are_carried_out_once(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            token, who = new_token(), Grant("rrhh")
            books = [await queue.ledger.enter(who, "credit", 10, token, **SAID) for _ in range(3)]
            assert books[0] == books[1] == books[2]
            await queue.ledger.enter(who, "replenish", 5, new_token(), incident="I-7", **SAID)
            with pytest.raises(IncidentSeen):
                await queue.ledger.enter(who, "replenish", 5, new_token(), incident="I-7", **SAID)
            with pytest.raises(Short):
                await queue.ledger.enter(who, "debit", -16, new_token(), **SAID)
            book = await queue.ledger.enter(who, "debit", -15, new_token(), **SAID)
            assert (book.balance, book.sum) == (0, 0)
            kinds = [(entry["kind"], entry["sum"]) for entry in await queue.ledger.entries("rrhh")]
            assert kinds == [("credit", 10), ("replenish", 15), ("debit", 0)]

    asyncio.run(scenario())


def test_the_books_survive_the_server(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, shards=2, put_deadline_seconds=20) as queue:
            await credit(queue, 1000)
            puts = [asyncio.ensure_future(put(queue, 2)) for _ in range(150)]
            for _ in range(3):
                await asyncio.sleep(0.03)
                await asyncio.to_thread(redis_server.kill)
                await asyncio.to_thread(redis_server.start)
            verdicts = await asyncio.gather(*puts)
            assert {verdict.kind for verdict in verdicts} == {"queued"}
            _, there = await check(queue.ledger, queue)
            assert sum(bag.used for bag in there) == 300
            assert len(await places(queue.shards)) == 300

    asyncio.run(scenario())


def test_a_put_without_answer_ends_in_time_and_costs_nothing(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, put_deadline_seconds=1) as queue:
            await credit(queue, 10)
            await put(queue, 1)
            redis_server.pause()
            try:
                with pytest.raises(QueueDown):
                    await put(queue, 3)
            finally:
                redis_server.resume()
            await asyncio.sleep(0.5)
            await put(queue, 1)  # behind the void
            _, (bag,) = await check(queue.ledger, queue)
            assert bag.used == 2
            assert [event.refunded for event in await events(queue) if event.kind == "removed"] == [3]

    asyncio.run(scenario())


def test_a_charge_is_the_same_whenever_it_is_made() -> None:
    sent = paid(received_at=ms(NOON), origin="panel").envelope
    assert charge_of(sent, LIMA) == Charge("rrhh", "", "2026-11-25", "panel")
    monthly = account(quota="monthly", allowance=7)
    assert str(charge_of(sent, LIMA, monthly)) == "rrhh\n2026-11\n2026-11-25\npanel"
    assert charge_of(message().envelope, LIMA, monthly) is None


def test_windows_of_a_clock() -> None:
    at = datetime.datetime.fromisoformat("2026-11-25T13:45:30-05:00").timestamp()
    now = calendar.moment(at, LIMA)
    assert (now.day, now.month) == ("2026-11-25", "2026-11")
    assert [calendar.clock(end, LIMA) for end in now.ends] == ["13:46:00 -0500", "14:00:00 -0500", "00:00:00 -0500"]
    assert now.ends[2] - now.midnight == 86_400
    summer = calendar.moment(datetime.datetime.fromisoformat("2026-03-29T12:00:00+02:00").timestamp(), "Europe/Madrid")
    assert summer.tomorrow - summer.midnight == 82_800  # the clock went forward
    half = calendar.moment(0, "Asia/Kolkata")
    assert half.hour % 3600 == 1800
