"""Following the events: all shards, from any position, over a restart of the server."""

from __future__ import annotations

import asyncio
from typing import Any

from mailqueue.consumer import follow
from mailqueue.events import Event
from tests.queue_kit import events, message, now_ms, opened


def test_all_shards_from_the_beginning(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            sent = [message(f"u{n}@x.test") for n in range(40)]
            await asyncio.gather(*(queue.put(one) for one in sent))
            assert sorted(event.id for event in await events(queue)) == sorted(one.envelope.id for one in sent)

    asyncio.run(scenario())


def test_more_events_than_one_reading_holds_in_order(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for n in range(2500):
                queue.emit(Event(kind="rejected", at=n + 1, reason=str(n)))
            await queue._events.close(5)
            assert [event.at for event in await events(queue)] == list(range(1, 2501))

    asyncio.run(scenario())


def test_from_now_on(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message("antes@x.test"))
            following = follow(queue.shards, "$", block_seconds=0.5)
            first = asyncio.create_task(anext(following))
            await asyncio.sleep(0.05)
            await queue.put(message("luego@x.test"))
            event = await asyncio.wait_for(first, 5)
            assert event.recipients == ("luego@x.test",)
            await following.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_a_restart_of_the_server_is_sat_out(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            await queue.put(message("antes@x.test"))
            following = follow(queue.shards, "0", block_seconds=0.2)
            assert (await anext(following)).recipients == ("antes@x.test",)
            waiting = asyncio.create_task(anext(following))
            redis_server.kill()
            await asyncio.sleep(0.05)
            redis_server.start()
            await queue.put(message("luego@x.test"))
            assert (await asyncio.wait_for(waiting, 10)).recipients == ("luego@x.test",)
            assert now_ms() > 0
            await following.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())
