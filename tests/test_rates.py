"""Rates of accounts: recipients per calendar minute, hour and day, counted over processes."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import pytest

from mailqueue.calendar import moment
from mailqueue.errors import QueueDown
from mailqueue.queue import Queue
from mailqueue.rates import Take
from mailqueue.writer import Verdict
from tests.queue_kit import events, message, opened
from tests.quota_kit import LIMA, account, credit, many, paid


def ms(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)


async def put(queue: Queue, count: int, clock: str, key: str | None = None, **rates: int) -> Verdict:
    sent = message(*many(count), received_at=ms(f"2026-11-25T{clock}-05:00"))
    return await queue.put(sent, key, account=account(quota="none", **rates))


@pytest.mark.parametrize(
    ("rates", "full", "room", "limit", "says"),
    [
        ({"rate_minute": 5}, "13:45:59", "13:46:00", "5/minute", "13:46:00 -0500"),
        ({"rate_hour": 5}, "13:59:59", "14:00:00", "5/hour", "14:00:00 -0500"),
        ({"rate_day": 5}, "23:59:59", "", "5/day", "00:00:00 -0500"),
        ({"rate_minute": 9, "rate_hour": 5, "rate_day": 7}, "13:46:10", "14:00:00", "5/hour", "14:00:00 -0500"),
        ({"rate_minute": 5, "rate_hour": 5}, "13:45:59", "", "5/minute", "13:46:00 -0500"),
    ],
)
def test_a_window_ends_with_the_clock(
    shared_redis: Any, rates: dict[str, int], full: str, room: str, limit: str, says: str
) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            assert (await put(queue, 3, "13:45:30", **rates)).kind == "queued"
            assert (await put(queue, 2, "13:45:31", **rates)).kind == "queued"
            refused = await put(queue, 1, full, **rates)
            assert (refused.kind, refused.limit, refused.clock) == ("over_rate", limit, says)
            assert moment(refused.until, LIMA).minute == refused.until
            if room:
                assert (await put(queue, 2, room, **rates)).kind == "queued"
            assert len(await events(queue)) == (3 if room else 2)

    asyncio.run(scenario())


def test_a_message_above_the_rate_is_told_so(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            refused = await put(queue, 6, "13:45:30", rate_minute=100, rate_day=5)
            assert (refused.kind, refused.limit, refused.until) == ("over_rate", "5/day", 0)
            assert (await put(queue, 5, "13:45:30", rate_day=5)).kind == "queued"

    asyncio.run(scenario())


def test_processes_share_the_count(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as one, opened(shared_redis.url) as two:
            puts = (put(queue, 1, "13:45:30", rate_hour=50) for _ in range(40) for queue in (one, two))
            kinds = [verdict.kind for verdict in await asyncio.gather(*puts)]
            assert (kinds.count("queued"), kinds.count("over_rate")) == (50, 30)

    asyncio.run(scenario())


def test_what_is_not_accepted_is_given_back(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            rates = {"rate_hour": 5}
            assert (await put(queue, 3, "13:45:30", "k", **rates)).kind == "queued"
            assert (await put(queue, 2, "13:45:31", "k", **rates)).kind == "duplicate"
            who = account(**rates)
            at = ms("2026-11-25T13:45:32-05:00")
            assert (await queue.put(paid(*many(2), received_at=at), account=who)).kind == "over_quota"
            await credit(queue, 2)
            assert (await queue.put(paid(*many(2), received_at=at), account=who)).kind == "queued"
            assert (await put(queue, 1, "13:45:33", **rates)).kind == "over_rate"

    asyncio.run(scenario())


def test_what_is_given_back_late_does_not_open_a_new_window(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            early = moment(ms("2026-11-25T13:45:30-05:00") / 1000, LIMA)
            late = moment(ms("2026-11-25T13:46:30-05:00") / 1000, LIMA)
            limits = (5, 5, 0)
            rates = queue._rates
            assert await rates.take(Take("a", 2, limits, early)) is None
            assert await rates.take(Take("a", 3, limits, late)) is None
            rates.give_back(Take("a", 2, limits, early), 2)  # of the hour, not of the minute that runs now
            reached = await rates.take(Take("a", 3, limits, late))
            assert reached is not None and reached.limit == "5/minute"
            assert await rates.take(Take("a", 2, limits, late)) is None
            # A clock that lags counts in the window of the others.
            assert (await rates.take(Take("a", 1, limits, early))) is not None

    asyncio.run(scenario())


def test_what_is_counted_too_late_is_given_back(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, put_deadline_seconds=1) as queue:
            rates = {"rate_day": 3}
            assert (await put(queue, 1, "13:45:30", **rates)).kind == "queued"
            redis_server.pause()
            try:
                waiting = [asyncio.ensure_future(put(queue, 2, "13:45:30", **rates)) for _ in range(3)]
                done = await asyncio.gather(*waiting, return_exceptions=True)
                assert all(isinstance(one, QueueDown) for one in done), done
            finally:
                redis_server.resume()
            for _ in range(100):
                if (await put(queue, 2, "13:45:31", **rates)).kind == "queued":
                    break
                await asyncio.sleep(0.02)
            assert (await put(queue, 1, "13:45:32", **rates)).kind == "over_rate"
            assert len(await events(queue)) == 2

    asyncio.run(scenario())
