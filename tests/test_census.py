"""How much is queued, by provider and class."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from maintenance import census
from maintenance.census import Census
from tests.queue_kit import claim_all, message, opened, working


def test_the_census_adds_up(shared_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue, working(queue) as worker, working(queue, 1) as other:
            registry = CollectorRegistry()
            counter = Census(queue.shards, registry)
            for one in (worker, other):
                await one.assign("gmail.test", "google")
            for number in range(20):
                await queue.put(message("a@gmail.test", f"a@d{number}.test", campaign=f"c{number % 3}"))
            await queue.put(message("b@gmail.test", class_="transactional"))
            expected = {("google", "bulk"): 20, ("default", "bulk"): 20, ("google", "transactional"): 1}
            assert +await counter.take() == expected
            monkeypatch.setattr(census, "MOST", 1)  # of each lane: what it does not see is the default's
            some = await counter.take()
            assert some["google", "bulk"] + some["default", "bulk"] == 40
            monkeypatch.undo()
            assert len(await claim_all(worker)) + len(await claim_all(other)) == 41
            assert await counter.take() == {("default", "bulk"): 40, ("default", "transactional"): 1}
            labels = {"provider": "google", "class": "bulk"}
            assert registry.get_sample_value("tambo_queued", labels) == 0

    asyncio.run(scenario())
