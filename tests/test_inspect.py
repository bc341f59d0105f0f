"""Looking at the queue without touching it."""

from __future__ import annotations

import asyncio
from typing import Any

from mailqueue import inspect, keys
from mailqueue.message import State
from mailqueue.worker import ClaimRequest, Settlement
from tests.queue_kit import claim_all, is_empty, message, now_ms, opened, working
from tests.test_reaper import reaper


def test_places_of_recipients(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            sent = message(*(f"u@d{n}.test" for n in range(5)))
            await queue.put(sent)
            tickets = {ticket.destination: ticket for ticket in (await worker.due({"bulk": 9}))[0]}
            taken = [(await worker.claim(ClaimRequest(tickets[f"d{n}.test"], 1))).items[0] for n in range(4)]
            later = now_ms() + 60_000
            await worker.settle(Settlement(taken[0], "final"))
            await worker.settle(Settlement(taken[1], "again", due=later, state=State(2, 0, "451 x", "127.0.1.1", 7)))
            await worker.settle(Settlement(taken[2], "hold"))
            found = await inspect.find(queue.shards, sent.envelope.id)
            assert found is not None
            assert found[1] == sent.envelope
            rows = await inspect.items(*found)
            assert [row.place for row in rows] == ["final", "queued", "held", "in flight", "queued"]
            assert (rows[1].due, rows[1].state.reply) == (later, "451 x")
            await queue.shards[0].command("ZADD", "{q0}:w", 1, worker.epoch)
            await queue.shards[0].run("reap", [1])  # buried, its items not yet put back
            rows = await inspect.items(*found)
            assert rows[3].place == "in flight"
            assert await inspect.find(queue.shards, "0" * 20) is None

    asyncio.run(scenario())


def test_the_summary_counts_over_shards(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue, working(queue, 1) as worker:
            sent = [message(f"u{n}@x.test", f"v{n}@y.test", campaign="enero") for n in range(30)]
            await asyncio.gather(*(queue.put(one) for one in sent))
            items = await claim_all(worker)
            assert items
            held = next(one.envelope for one in sent if keys.shard_of(one.envelope.id, 3) == 0)
            await reaper(queue, 0).withdraw(held, "hold", "held", "prueba")
            await queue.suspend("account:rrhh", reason="prueba")
            await queue.suspend("destination:x.test", 60)
            facts = await inspect.summary(queue.shards)
            assert (facts.messages, facts.open, facts.held) == (30, 60, 2)
            assert facts.in_flight == len(items)
            assert facts.stops == {"account:rrhh": "0 prueba"}
            assert facts.suspended == 3, "once in each shard"
            assert facts.events == 30 + 2 + 2
            (left,) = facts.workers.values()
            assert 25 < left <= 30
            assert {flow.campaign for flow in facts.flows} == {"enero"}
            for item in items:
                await worker.settle(Settlement(item, "final"))
            assert await is_empty(queue.shards[1]) == []
            done = sum(flow.done for flow in (await inspect.summary(queue.shards)).flows)
            assert done == 0, "the flow of the shard that is done has gone with its books"

    asyncio.run(scenario())
