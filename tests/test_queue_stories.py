"""Stories of the queue that the machine of tests/queue_machine.py tells too rarely."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from mailqueue import keys
from mailqueue.errors import QueueDown
from mailqueue.message import new_id
from mailqueue.reaper import Reaper
from mailqueue.worker import Claimed, ClaimRequest, Settlement
from mailqueue.writer import Void, marker
from tests.queue_kit import claim_all, is_empty, message, opened, working
from tests.queue_kit import events as events_of
from tests.queue_machine import ALL, record


def test_a_put_answered_451_leaves_no_marker(redis_server: Any) -> None:
    """The server carried it out after the client had been told 451: the client's repetition is no duplicate."""

    async def scenario() -> None:
        async with opened(redis_server.url, put_deadline_seconds=1) as queue:
            await queue.put(message("antes@x.test"))
            redis_server.pause()
            with pytest.raises(QueueDown):
                await queue.put(message("a@x.test", "b@x.test"), "lote-1")
            redis_server.resume()
            again = None
            while again is None:
                with suppress(QueueDown):
                    again = await queue.put(message("a@x.test", "b@x.test", "c@x.test"), "lote-1")
            assert (again.kind, again.queued, again.skipped) == ("queued", 3, 0)
            async with working(queue) as worker:
                got = sorted(item.recipient for item in await claim_all(worker, recipients=5))
            assert got == ["a@x.test", "antes@x.test", "b@x.test", "c@x.test"]

    asyncio.run(scenario())


def test_idempotency_holds_over_shards(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            ids = [queue.new_id("rrhh", "lote-1") for _ in range(20)]
            verdicts = [await queue.put(message("a@x.test", id=one), "lote-1") for one in ids]
            assert [verdict.kind for verdict in verdicts] == ["queued"] + ["duplicate"] * 19
            elsewhere = next(one for one in iter(new_id, "") if keys.shard_of(one, 3) != keys.shard_of(ids[0], 3))
            with pytest.raises(ValueError, match="new_id"):
                await queue.put(message("a@x.test", id=elsewhere), "lote-1")

    asyncio.run(scenario())


def test_what_a_worker_has_of_a_voided_put_keeps_its_marker(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            sent = message("a@x.test", "b@y.test")
            await queue.put(sent, "k")
            ticket = next(t for t in (await worker.due(ALL))[0] if t.destination == "x.test")
            (item,) = (await worker.claim(ClaimRequest(ticket, 1))).items
            marks = tuple(marker("rrhh", "k", "aviso@entidad.test", r) for r in sent.envelope.recipients)
            void = Void(sent.envelope.id, "b\nrrhh\n\ndefault", ("x.test", "y.test"), marks)
            assert await queue._writers[0]._batch.add(void) == "v:1"
            again = await queue.put(message("a@x.test", "b@y.test"), "k")
            assert (again.kind, again.queued, again.skipped) == ("queued", 1, 1)
            assert await worker.settle(Settlement(item, "final")) == "d"

    asyncio.run(scenario())


@pytest.mark.parametrize("key", ["flow:1.1", "account:rrhh", "campaign:rrhh/enero", "provider:default"])
def test_a_stop_ends_what_a_ticket_may_draw(shared_redis: Any, key: str) -> None:
    """A site that holds the ticket gets no more of what an operator has stopped."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for n in range(6):
                await queue.put(message(f"u{n}@x.test", campaign="enero"))
            (ticket,), _, _ = await worker.due(ALL)
            first = await worker.claim(ClaimRequest(ticket, 2, keep=True))
            assert (len(first.items), first.left) == (2, 4)
            await queue.suspend(key)
            assert await worker.claim(ClaimRequest(ticket, 2, keep=True)) == Claimed((), 0)
            assert (await worker.due(ALL))[0] == []
            await queue.resume(key)
            assert len(await claim_all(worker)) == 4

    asyncio.run(scenario())


def test_a_parked_flow_that_changes_lanes_is_counted_once(shared_redis: Any) -> None:
    """Its account would pay double for ever: parked in one lane, ready in the other, a destination moves over."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await worker.assign("g.test", "google")
            await queue.put(message("a@g.test"))
            await queue.put(message("a@x.test"))
            await queue.suspend("account:rrhh")
            assert (await worker.due({"bulk": 5}, ["b:google"]))[0] == []  # parked in default, ready in google
            await worker.assign("x.test", "google")
            await queue.resume("account:rrhh")
            assert await queue.shards[0].command("HGET", "{q0}:v:b:google", "a:1") == b"1"
            assert len(await claim_all(worker)) == 2

    asyncio.run(scenario())


def test_an_unknown_that_was_repeated_once_is_not_repeated_again(shared_redis: Any) -> None:
    """once:0, and two workers in turn die between the final dot and its reply."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message("a@x.test", unknown="once:0"))
            for _ in range(2):
                worker = queue.workers()[0]
                await worker._join()
                (item,) = await claim_all(worker)
                assert await worker.mark(item)
                await queue.shards[0].command("ZADD", "{q0}:w", 1, worker.epoch)
                assert await Reaper(queue.shards[0], record).reap() == 1
            told = [event for event in await events_of(queue) if event.kind == "unknown"]
            assert [event.attempt for event in told] == [0, 1]
            assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


def test_two_reapers_say_it_once(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message("a@x.test", unknown="never"))
            worker = queue.workers()[0]
            await worker._join()
            (item,) = await claim_all(worker)
            assert await worker.mark(item)
            await queue.shards[0].command("ZADD", "{q0}:w", 1, worker.epoch)
            await asyncio.gather(*(Reaper(queue.shards[0], record).reap() for _ in range(3)))
            assert [event.kind for event in await events_of(queue)] == ["received", "unknown"]

    asyncio.run(scenario())


def test_a_delay_notice_counts_what_is_in_flight(shared_redis: Any) -> None:
    """It is made once: whoever is just being tried must not miss it."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", "b@y.test", notify_after=1))
            ticket = (await worker.due(ALL))[0][0]
            (item,) = (await worker.claim(ClaimRequest(ticket, 1))).items
            reaper = Reaper(queue.shards[0], record)
            assert await reaper.look() == 1
            (notice,) = await reaper.notices()
            assert len(notice.records) == 2
            await worker.settle(Settlement(item, "back"))

    asyncio.run(scenario())


def test_many_calls_at_once_wait_in_turn(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await asyncio.gather(*(worker.assign(f"d{n}.test", "google") for n in range(200)))
            assert await queue.shards[0].command("HLEN", "{q0}:dest") == 200

    asyncio.run(scenario())


def test_what_a_stopped_worker_gave_back_it_does_not_send(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message())
            worker = queue.workers()[0]
            await worker.start(lambda epoch: None)
            (item,) = await claim_all(worker)
            assert worker.holds(item)
            await worker.stop()
            assert not worker.holds(item)

    asyncio.run(scenario())
