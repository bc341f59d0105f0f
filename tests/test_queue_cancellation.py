"""A cancellation that comes while a command is being sent is not lost (Python 3.11's wait_for loses it)."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

from mailqueue.consumer import follow
from mailqueue.events import Event
from tests.queue_kit import now_ms, opened


def test_a_follower_ends_when_cancelled(shared_redis: Any) -> None:
    """Cancelled in the very turn of the loop in which it sends its next read."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.shards[0].command("XADD", queue.shards[0].events, "*", "e", Event("held", now_ms()).to_json())

            async def reading(seen: asyncio.Event) -> None:
                async for _ in follow(queue.shards, "0"):
                    seen.set()

            for _ in range(50):
                seen = asyncio.Event()
                task = asyncio.ensure_future(reading(seen))
                await seen.wait()
                task.cancel()
                done, _waiting = await asyncio.wait({task}, timeout=5)
                assert done and task.cancelled()

    uvloop.run(scenario())


def test_a_timeout_over_commands_comes(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for number in range(60):
                try:
                    async with asyncio.timeout(0.001 + number / 60_000):
                        while True:
                            await queue.shards[0].command("PING")
                except TimeoutError:
                    continue

    uvloop.run(asyncio.wait_for(scenario(), 60))
