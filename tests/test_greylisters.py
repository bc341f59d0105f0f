"""Greylisting hosts know an address, not a pool: what they put off comes again from the same source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.delivery_kit import Rig, player
from tests.queue_kit import eventually, message

POOL = [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.48"}]}]


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path) -> Callable[..., None]:
    return player(shared_redis.url, tmp_path)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_what_was_greylisted_comes_again_from_the_same_source(play: Any, count: int) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "greylist")
        for number in range(count):
            await it.queue.put(message(f"u{number}@gob.test"))
        await it.until({"delivered": count}, seconds=60)
        await check(it, most=1 if count == 1 else 2)

    play(scenario, pools=POOL)


def test_the_next_of_its_order_where_the_first_may_not_send(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "greylist")
        await it.queue.put(message("a@gob.test"))
        await it.until({"delivered": 1})
        (first,) = {event.source for event in await it.events("delivered")}
        await it.queue.suspend(f"source:{first}")
        await eventually(lambda: stopped(it, first))
        for number in range(30):
            await it.queue.put(message(f"u{number}@gob.test"))
        await it.until({"delivered": 31}, seconds=60)
        await check(it, most=2)
        (second,) = {event.source for event in await it.events("delivered")} - {first}
        assert second

    play(scenario, pools=POOL)


async def stopped(it: Rig, source: str) -> bool:
    return source in it.engine.stopped_sources


async def check(it: Rig, most: int) -> None:
    """Nobody was put off more often; who delivered had been put off last."""
    put_off = await it.events("deferred")
    assert max(Counter(event.recipient for event in put_off).values()) <= most
    last = {event.recipient: event.source for event in put_off}
    assert {event.recipient: event.source for event in await it.events("delivered")} == last
