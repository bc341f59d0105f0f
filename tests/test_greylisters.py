"""Greylisting hosts know an address, not a pool: what they put off comes again from the same source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.delivery_kit import Rig, rig
from tests.queue_kit import message

POOL = [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.48"}]}]


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path) -> Callable[..., None]:
    def run(story: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
        async def whole() -> None:
            async with rig(shared_redis.url, tmp_path, **options) as it:
                await story(it)

        uvloop.run(whole())

    return run


@pytest.mark.parametrize("count", [1, 3, 30])
def test_what_was_greylisted_comes_again_from_the_same_source(play: Any, count: int) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "greylist")
        for number in range(count):
            await it.queue.put(message(f"u{number}@gob.test"))
        await it.until({"delivered": count}, seconds=60)
        tries = Counter(event.recipient for event in await it.events("deferred"))
        assert max(tries.values()) <= (1 if count == 1 else 2)

    play(scenario, pools=POOL)
