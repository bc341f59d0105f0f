"""Maintenance: dead workers, the outcome-unknown policy, delay notices, expiry, hold and release, tidying."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from mailqueue import inspect, keys
from mailqueue.content import Encoder
from mailqueue.queue import Queue
from mailqueue.reaper import Reaper
from mailqueue.worker import Settlement
from mailqueue.writer import prepare
from tests.queue_kit import check_index, claim_all, events, is_empty, message, now_ms, opened, working


def record(envelope: Any, index: int, state: Any, action: str, now: int) -> bytes:
    return f"{action}:{envelope.recipients[index]}".encode() if envelope.reverse_path else b""


def reaper(queue: Queue, shard: int = 0) -> Reaper:
    return Reaper(queue.shards[shard], record)


async def die(queue: Queue, worker: Any) -> None:
    for task in worker._tasks:
        task.cancel()
    await queue.shards[0].command("ZADD", "{q0}:w", 1, worker.epoch)


@pytest.mark.parametrize(
    ("policy", "left", "kinds"),
    [("retry", 1, []), ("never", 0, ["unknown"]), ("once:60", 1, ["unknown"])],
)
def test_a_worker_that_dies_after_the_final_dot(shared_redis: Any, policy: str, left: int, kinds: list[str]) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            worker = queue.workers()[0]
            await worker.start(lambda epoch: None)
            await queue.put(message("a@x.test", unknown=policy))
            (item,) = await claim_all(worker)
            assert await worker.mark(item)
            await die(queue, worker)
            assert await reaper(queue).reap() == 1
            async with working(queue) as other:
                now_due = await claim_all(other)
            assert len(now_due) == (1 if policy == "retry" else 0)
            facts = await inspect.summary(queue.shards)
            assert facts.open == left
            told = [event for event in await events(queue) if event.kind not in ("received",)]
            assert [event.kind for event in told] == kinds
            assert all(event.recipient == "a@x.test" for event in told)
            if policy == "once:60":
                found = await inspect.find(queue.shards, item.message.envelope.id)
                assert found is not None
                (place,) = await inspect.items(*found)
                assert 55_000 < place.due - now_ms() <= 60_000
                assert place.state.unknowns == 1
            if left == 0:
                assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


def test_classes_survive_the_reaper(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            worker = queue.workers()[0]
            await worker.start(lambda epoch: None)
            await queue.put(message("a@x.test", class_="emergency"))
            await queue.put(message("a@x.test", class_="bulk"))
            assert len(await claim_all(worker)) == 2
            await die(queue, worker)
            await reaper(queue).reap()
            await check_index(queue.shards[0])
            async with working(queue) as other:
                tickets, _, _ = await other.due({"emergency": 5})
            assert [ticket.class_ for ticket in tickets] == ["emergency"]

    asyncio.run(scenario())


def test_delay_notice_then_expiry(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            soon = now_ms() + 60
            late = message("a@x.test", "b@y.test", notify_after=soon, expires_at=soon + 150)
            await queue.put(late)
            await queue.suspend("account:rrhh")
            assert await claim_all(worker) == []
            keeper = reaper(queue)
            assert await keeper.look() == 0
            await asyncio.sleep(0.08)
            assert await keeper.look() == 1
            (notice,) = await keeper.notices()
            assert notice.records == (b"delayed:a@x.test", b"delayed:b@y.test")
            assert notice.message is not None
            assert notice.message.content == late.content
            dsn = prepare(message("aviso@entidad.test", reverse_path="", class_="transactional"), Encoder())
            assert await keeper.notified(notice, [dsn])
            assert await keeper.look() == 0
            await asyncio.sleep(0.16)
            assert await keeper.look() == 1
            (notice,) = await keeper.notices()
            assert notice.records == (b"failed:a@x.test", b"failed:b@y.test")
            assert await keeper.notified(notice, [])
            assert await keeper.look() == 0
            expired = [event for event in await events(queue) if event.kind == "expired"]
            assert [event.recipient for event in expired] == ["a@x.test", "b@y.test"]
            assert all(event.status == "4.4.7" for event in expired)
            facts = await inspect.summary(queue.shards)
            assert facts.open == 1, "the DSN is left"

    asyncio.run(scenario())


def test_what_is_in_flight_does_not_expire_under_the_worker(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", expires_at=now_ms() + 1))
            (item,) = await claim_all(worker)
            await asyncio.sleep(0.01)
            assert await reaper(queue).look() == 1
            assert [event.kind for event in await events(queue)] == ["received"]
            assert await worker.settle(Settlement(item, "final")) == "d"
            assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


def test_a_null_reverse_path_gets_no_notice(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message("a@x.test", reverse_path="", expires_at=now_ms() - 1))
            keeper = reaper(queue)
            assert await keeper.look() == 1
            assert await keeper.notices() == []
            assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


def test_hold_and_release(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            sent = message("a@x.test", "b@x.test")
            await queue.put(sent)
            keeper = reaper(queue)
            assert await keeper.withdraw(sent.envelope, "hold", "held", "auditoría", only={1}) == 1
            assert [item.recipient for item in await claim_all(worker)] == ["a@x.test"]
            assert await keeper.withdraw(sent.envelope, "release", "released", "visto") == 1
            assert [item.recipient for item in await claim_all(worker)] == ["b@x.test"]
            assert [event.kind for event in await events(queue)] == ["received", "held", "released"]
            await check_index(queue.shards[0])

    asyncio.run(scenario())


def test_tidy_trims_events_and_old_answers(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message())
            await queue.shards[0].command("HSET", "{q0}:put", "old", '1 1000 ["q"]')
            await reaper(queue).tidy(1000)
            names = await queue.shards[0].command("HKEYS", "{q0}:put")
            assert b"old" not in names
            assert len(names) == 1

    asyncio.run(scenario())


def test_one_log_line_per_event(shared_redis: Any) -> None:
    """Held, released, expired, suspended, resumed: each said where it applied, by the one of two who did it."""

    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            told: list[str] = []
            sent = message("a@x.test", "b@x.test", expires_at=now_ms() + 150)
            await queue.put(sent)
            shard = keys.shard_of(sent.envelope.id, 2)
            keepers = [Reaper(queue.shards[shard], record, lambda event: told.append(event.kind)) for _ in range(2)]
            await keepers[0].withdraw(sent.envelope, "hold", "held", "auditoría", only={1})
            await keepers[0].withdraw(sent.envelope, "hold", "held", "otra vez")
            await keepers[0].withdraw(sent.envelope, "release", "released", "visto", only={0})
            await queue.suspend("account:rrhh", 60, "llamaron")
            await queue.resume("account:rrhh", "listo")
            await asyncio.sleep(0.2)
            await asyncio.gather(*(keeper.look() for keeper in keepers))
            for keeper in keepers:
                await keeper.withdraw(sent.envelope, "close", "expired", "otra vez")
            assert told == ["held", "held", "released", "expired", "expired"]
            kinds = sorted(event.kind for event in await events(queue) if event.kind != "received")
            assert kinds == sorted([*told, "suspended", "resumed"])

    with capture_logs() as lines:
        asyncio.run(scenario())
    said = sorted(line["event"] for line in lines)
    assert said == ["expired", "expired", "held", "held", "released", "resumed", "suspended"]
    (suspended,) = (line for line in lines if line["event"] == "suspended")
    assert (suspended["destination"], suspended["reason"]) == ("account:rrhh", "llamaron")


def test_what_the_reaper_settles_is_logged_once(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            worker = queue.workers()[0]
            await worker.start(lambda epoch: None)
            await queue.put(message("a@x.test", unknown="never"))
            await queue.put(message("b@x.test"))
            for item in await claim_all(worker):
                if item.recipient == "a@x.test":
                    assert await worker.mark(item)
            await die(queue, worker)
            await asyncio.gather(*(reaper(queue).reap() for _ in range(3)))

    with capture_logs() as lines:
        asyncio.run(scenario())
    assert [line["recipient"] for line in lines if line["event"] == "unknown"] == ["a@x.test"]
    assert not [line for line in lines if line["event"] == "held"]


def test_one_message_that_can_t_be_looked_at_does_not_keep_the_others(shared_redis: Any) -> None:
    def picky(envelope: Any, index: int, state: Any, action: str, now: int) -> bytes:
        if envelope.account == "bad":
            raise RuntimeError("no such record")
        return record(envelope, index, state, action, now)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message("a@x.test", account="bad", expires_at=now_ms() - 10))
            await queue.put(message("b@x.test", expires_at=now_ms() - 1))
            await Reaper(queue.shards[0], picky).look()
            assert [event.recipient for event in await events(queue) if event.kind == "expired"] == ["b@x.test"]
            assert (await inspect.summary(queue.shards)).open == 1, "kept, and looked at again"

    asyncio.run(scenario())


def test_tidy_forgets_suspensions_whose_time_is_over(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.suspend("destination:for-ever.test")
            await queue.suspend("account:for-ever")
            for name in ("destination:short.test", "provider:short"):
                await queue.suspend(name, 0.05)
            for number in range(1200):  # more than one page
                await queue.shards[0].command("HSET", "{q0}:sus", f"old{number}.test", "1000 unreachable")
            await queue.suspend("destination:long.test", 60)
            await asyncio.sleep(0.06)
            shard = queue.shards[0]
            assert await shard.run("stop", ["forget", "sus", "old1.test", "999 suspended anew meanwhile"]) == 0
            await reaper(queue).tidy(1000)
            assert sorted(await shard.command("HKEYS", "{q0}:sus")) == [b"for-ever.test", b"long.test"]
            assert await shard.command("HKEYS", "{q0}:stop") == [b"account:for-ever"]

    asyncio.run(scenario())


def test_a_server_whose_clock_is_ahead_is_not_asked_for_ever(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await asyncio.gather(*(queue.put(message(f"u{n}@x.test")) for n in range(120)))
            for member in await queue.shards[0].command("ZRANGE", "{q0}:x", 0, -1):
                await queue.shards[0].command("ZADD", "{q0}:x", 1, member)  # due by the server's clock, not by ours
            assert await asyncio.wait_for(reaper(queue).look(), 10) == 120
            assert await reaper(queue).look() == 0
            assert [event.kind for event in await events(queue) if event.kind != "received"] == []

    asyncio.run(scenario())
