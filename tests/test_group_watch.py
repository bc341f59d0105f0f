"""Maintenance looks after groups: lag as metric and alarm, and who reads no more is forgotten."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from config.settings import StreamSettings
from mailqueue.queue import Queue
from mailqueue.trimming import trim
from maintenance.alarms import Alarms
from maintenance.groups import GroupWatch
from streams import ids
from streams.groups import Groups
from streams.lag import AT_ONCE, MOST_COUNTED, Ends, Lag, lags, of_shard
from streams.positions import FRESH
from tests.queue_kit import events, opened
from tests.test_groups import consumer, entries, rest, write

NOW = 1_800_000_000_000
ENDS = Ends(1000, f"{NOW - 100_000}-0", f"{NOW}-0", "")


def at(seconds_ago: float) -> ids.StreamId:
    return NOW - int(seconds_ago * 1000), 0


@pytest.mark.parametrize(
    ("ends", "after", "count", "first", "lag"),
    [
        (Ends(0, "", "", ""), at(50), 0, "", Lag()),
        (ENDS, at(0), 0, "", Lag()),
        (ENDS, at(50), 7, f"{NOW - 20_000}-3", Lag(7, 20.0)),
        (ENDS, at(50), MOST_COUNTED, f"{NOW - 50_000}-0", Lag(MOST_COUNTED, 50.0)),
        (ENDS, at(90), MOST_COUNTED, f"{NOW - 90_000}-0", Lag(900, 90.0)),
        (
            Ends(1000, f"{NOW - 100_000}-0", f"{NOW}-0", f"{NOW - 100_001}-0"),
            at(200),
            500,
            ENDS.first,
            Lag(2000, 200.0),
        ),
        (Ends(0, "", "", f"{NOW - 5000}-0"), at(60), 0, "", Lag(1, 60.0)),
        (Ends(1, f"{NOW}-0", f"{NOW}-0", ""), at(1), 1, f"{NOW + 10}-0", Lag(1, 0.0)),
    ],
)
def test_lag(ends: Ends, after: ids.StreamId, count: int, first: str, lag: Lag) -> None:
    assert of_shard(ends, after, count, first, NOW) == lag


def watch(queue: Queue, registry: CollectorRegistry) -> GroupWatch:
    return GroupWatch(queue, Alarms(queue.shards[0], registry), registry)


def settings(**changes: Any) -> StreamSettings:
    return StreamSettings(**{"group_expire_seconds": 3600, "lag_alarm_seconds": 3600, **changes})


def test_lag_is_exported_and_raises_an_alarm(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            registry = CollectorRegistry()
            looking = watch(queue, registry)

            def shown(name: str) -> float | None:
                return registry.get_sample_value(f"tambo_stream_lag_{name}", {"group": "crm"})

            await write(queue, range(4))
            await rest(queue)
            await looking.look(settings())
            assert (shown("events"), shown("seconds")) == (0, 0)
            group = await Groups(queue.shards[0]).get("crm")
            assert group is not None
            assert set(group.positions) == {0, 1}
            past = int(time.time() * 1000) - 7_200_000
            await Groups(queue.shards[0]).rewind("crm", {0: f"{past}-0", 1: f"{past}-0"}, "two hours back")
            await looking.look(settings())
            assert shown("events") == 4
            assert (shown("seconds") or 0) < 3600
            await trim(queue.shards[0], 1)
            await looking.look(settings())
            assert (shown("seconds") or 0) > 7000, "in the archive, or lost: since the group's position"
            assert registry.get_sample_value("tambo_alarm", {"name": "stream-lag:crm"}) == 1
            await Groups(queue.shards[0]).remove("crm")
            await looking.look(settings())
            assert shown("events") is None
            assert registry.get_sample_value("tambo_alarm", {"name": "stream-lag:crm"}) == 0
            said = [(event.subject, event.after) for event in await events(queue) if event.kind == "alarm"]
            assert said == [("stream-lag:crm", "on"), ("stream-lag:crm", "off")]

    asyncio.run(scenario())


def test_who_reads_no_more_is_forgotten_and_who_reads_is_not(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            registry = CollectorRegistry()
            looking = watch(queue, registry)
            groups = Groups(queue.shards[0])
            await rest(queue, group="old")
            await rest(queue, group="young")
            before = int((time.time() - 4000) * 1000)
            await queue.shards[0].command("HSET", queue.shards[0].prefix + "gr:old", "read", before)
            await looking.look(settings())
            assert [group.name for group in await groups.all()] == ["young"]
            told = [event for event in await events(queue) if event.kind == "audit"]
            assert [(event.verb, event.subject) for event in told] == [("streams forget", "old")]
            assert told[0].before["owner"] == "ana@agency.pe"
            stale = await groups.get("young")
            assert stale is not None
            async with consumer(queue, group="young"):  # reads between the look and the forgetting
                assert not await groups.forget(stale, stale.read, told[0])
                await queue.shards[0].command("HSET", queue.shards[0].prefix + "gr:young", "read", before)
                await looking.look(settings())  # a consumer has it, however long ago it last said so
                assert not await groups.forget(stale, before + 1, told[0])
            assert [group.name for group in await groups.all()] == ["young"]

    asyncio.run(scenario())


def test_lags_of_many_groups(shared_redis: Any) -> None:
    """Counted a few at a time."""

    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            groups = Groups(queue.shards[0])
            for number in range(2 * AT_ONCE + 1):
                await groups.create(f"g{number}", "ana", (), {0: FRESH, 1: FRESH})
            await write(queue, range(6))
            places = await entries(queue)
            await groups.rewind("g0", {0: places[0][-1][0], 1: places[1][-1][0]}, "read")
            found = await lags(queue.shards, await groups.all(), int(time.time() * 1000))
            assert {name: lag.events for name, lag in found.items()} == {
                f"g{number}": 6 if number else 0 for number in range(2 * AT_ONCE + 1)
            }

    asyncio.run(scenario())


def test_lag_of_a_group_that_began_before_any_event(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            groups = Groups(queue.shards[0])
            await groups.create("crm", "ana", (), {0: FRESH})
            await write(queue, range(3))
            now = int((await entries(queue))[0][0][0].split("-")[0]) + 1500
            assert await lags(queue.shards, await groups.all(), now) == {"crm": Lag(3, 1.5)}
            await trim(queue.shards[0], 0)
            found = await lags(queue.shards, await groups.all(), now)
            assert 1.5 <= found["crm"].seconds < 60, "not since 1970"

    asyncio.run(scenario())
