"""What a step of the server's clock does to leases and paces, and what the heartbeat mends.

The clock itself cannot be moved here: a step by +1 h is the same as all that is stored being an hour older.
"""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from ipreputation.limits import Ceiling, Limits, Pace
from ipreputation.store import LimitStore
from ipreputation.throttle import Rate
from tests.conftest import RedisServer
from tests.test_limit_store import candidates, client

HOUR = 3600.0
LEASES = "{rep}lease:google/127.0.1.1"


async def step_clock(redis: Redis, seconds: float) -> None:
    """As if the server's clock had jumped by ``seconds``: expiries and TATs move the other way."""
    for key in await redis.keys("{rep}lease:*"):
        moved = {m: s - seconds * 1000 for m, s in await redis.zrange(key, 0, -1, withscores=True)}
        await redis.zadd(key, moved)
    for key in await redis.keys("{rep}pace:*"):
        await redis.set(key, int(await redis.get(key)) - int(seconds * 1_000_000))


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_heartbeat_before_anybody_looks_mends_all(shared_redis: RedisServer, step: float) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store, other = LimitStore(redis, "w"), LimitStore(redis, "x")
            await store.connect(candidates(1), want=5, each=5)
            await step_clock(redis, step)
            assert await store.extend() == []
            refused = await other.connect(candidates(1), want=1)
            assert refused.wait is not None
            assert 29 < refused.wait.until < 31

    asyncio.run(scenario())


def test_forward_slots_given_away_meanwhile_are_lost_to_the_first(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store, other = LimitStore(redis, "w"), LimitStore(redis, "x")
            mine = await store.connect(candidates(1), want=5, each=5)
            await step_clock(redis, HOUR)
            theirs = await other.connect(candidates(1), want=3)
            assert len(theirs.leases) == 1  # here 6 are open: this is the excess that the docstring names
            assert len((await other.connect(candidates(1), want=2, each=2)).leases) == 2
            lost = await store.extend()
            assert len(lost) == 3
            assert set(lost) < set(mine.leases)
            assert await redis.zcard(LEASES) == 5
            assert (store.held, other.held) == (2, 3)
            assert await other.extend() == []
            await store.release(lost)  # as the engine does when the sessions are closed: frees nobody else's slot
            assert await redis.zcard(LEASES) == 5

    asyncio.run(scenario())


def test_a_lease_lost_under_one_ceiling_is_lost_whole_and_counts_until_released(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store, other = LimitStore(redis, "w"), LimitStore(redis, "x")
            await store.connect(candidates(1, most=2, total=2), want=2, each=2)
            await redis.delete("{rep}lease:google")
            total = Limits(connections=(Ceiling("google", 2),))
            await other.connect([("b", total)], want=1)
            lost = await store.extend()
            assert len(lost) == 1
            assert [await redis.zcard(key) for key in (LEASES, "{rep}lease:google")] == [2, 2]
            await store.release(lost)
            assert [await redis.zcard(key) for key in (LEASES, "{rep}lease:google")] == [1, 2]

    asyncio.run(scenario())


def test_backward_leases_of_the_dead_are_cut_at_the_first_refusal(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            dead, store = LimitStore(redis, "dead"), LimitStore(redis, "w", 1.0)
            await dead.connect(candidates(1, most=2), want=2, each=2)
            await step_clock(redis, -HOUR)
            refused = await store.connect(candidates(1, most=2), want=1)
            assert refused.wait is not None
            assert refused.wait.until <= 1.1
            await asyncio.sleep(refused.wait.until)  # what is tested is this very time
            assert len((await store.connect(candidates(1, most=2), want=2, each=2)).leases) == 2

    asyncio.run(scenario())


def test_paces_neither_stop_nor_pour(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w")
            limits = Limits(messages=(Pace("p", Rate(600, 60.0, 10)),))
            await store.take([(limits, 10)])
            await step_clock(redis, -HOUR)
            (taken,) = await store.take([(limits, 1)])
            assert (taken.count, taken.limit) == (0, "p")
            assert taken.wait <= 0.1
            await asyncio.sleep(taken.wait)  # what is tested is this very time
            assert [entry.count for entry in await store.take([(limits, 1)])] == [1]
            await step_clock(redis, HOUR)
            (taken,) = await store.take([(limits, 100)])
            assert taken.count == 10  # one burst, not an hour's worth

    asyncio.run(scenario())


def test_a_server_that_lost_all_is_told_again(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w")
            await store.connect(candidates(3), want=9, each=3)
            await redis.flushall()
            assert await store.extend() == []
            assert [await redis.zcard(key) for key in sorted(await redis.keys())] == [3, 3, 3]

    asyncio.run(scenario())
