"""The limit store on a real server: leases, paces, refusals, failures."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ipreputation.limits import Ceiling, Limits, Pace
from ipreputation.store import Lease, LimitsDown, LimitStore, Wait
from ipreputation.throttle import Rate, gcra
from tests.conftest import RedisServer


def client(server: RedisServer, connections: int = 50) -> Redis:
    return Redis(
        unix_socket_path=server.socket, retry=Retry(NoBackoff(), 0), socket_timeout=None, max_connections=connections
    )


@contextlib.asynccontextmanager
async def opened(server: RedisServer, worker: str = "w1", lease_seconds: float = 30.0) -> AsyncIterator[LimitStore]:
    async with client(server) as redis:
        yield LimitStore(redis, worker, lease_seconds)


def source_limits(site: str, source: str, most: int = 5, total: int | None = None) -> Limits:
    ceilings = (Ceiling(f"{site}/{source}", most),)
    return Limits(connections=ceilings if total is None else (*ceilings, Ceiling(site, total)))


def candidates(count: int, most: int = 5, total: int | None = None) -> list[tuple[str, Limits]]:
    return [(f"127.0.1.{n}", source_limits("google", f"127.0.1.{n}", most, total)) for n in range(1, count + 1)]


def sources(leases: list[Lease]) -> list[str]:
    return [lease.source for lease in leases]


def test_candidates_are_tried_in_order_and_ceilings_hold(any_redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(any_redis_server) as store:
            first = await store.connect(candidates(3, most=2), want=4)
            assert sources(first.leases) == ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
            assert first.wait is None  # only `each` bound
            second = await store.connect(candidates(3, most=2), want=5, each=2)
            assert sources(second.leases) == ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
            assert second.wait is not None
            assert second.wait.limit == "google/127.0.1.1"
            assert 29.0 < second.wait.until <= 30.1
            await store.release([first.leases[1]])
            third = await store.connect(candidates(3, most=2), want=1)
            assert (sources(third.leases), third.wait) == (["127.0.1.2"], None)
            assert store.held == 6

    asyncio.run(scenario())


def test_a_lease_counts_under_all_its_ceilings(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis) as store, opened(shared_redis, "w2") as other:
            mine = await store.connect(candidates(10, total=4), want=3)
            theirs = await other.connect(candidates(10, total=4), want=3, each=3)
            assert (len(mine.leases), sources(theirs.leases)) == (3, ["127.0.1.1"])
            assert theirs.wait is not None
            assert theirs.wait.limit == "google"
            await store.release(mine.leases)
            assert len((await other.connect(candidates(10, total=4), want=9)).leases) == 3

    asyncio.run(scenario())


def test_a_changed_number_resets_nothing(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis) as store:
            await store.connect(candidates(1, most=5), want=5, each=5)
            assert (await store.connect(candidates(1, most=3), want=1)).leases == []
            assert len((await store.connect(candidates(1, most=7), want=5, each=5)).leases) == 2
            slow, fast = (Limits(messages=(Pace("p", Rate(limit, 3600.0, 10)),)) for limit in (10, 36_000))
            assert [taken.count for taken in await store.take([(slow, 25), (slow, 1)])] == [10, 0]
            assert (await store.take([(slow, 1)]))[0].wait == pytest.approx(360, abs=1)
            (taken,) = await store.take([(fast, 10)])
            assert taken.count < 10  # still full, at the new rate
            assert taken.wait <= 0.1

    asyncio.run(scenario())


def test_a_ceiling_of_none_and_no_limits_at_all(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis) as store:
            refused = await store.connect([("a", source_limits("x", "a", most=0))], want=1)
            assert refused.wait == Wait(30.0, "x/a")
            free = await store.connect([("a", Limits()), ("b", Limits())], want=3, each=2)
            assert sources(free.leases) == ["a", "a", "b"]
            assert (await store.connect([], want=1)).leases == []
            assert (await store.connect(candidates(1), want=0)).leases == []
            assert [taken.count for taken in await store.take([(Limits(), 7)])] == [7]

    asyncio.run(scenario())


def test_opening_paces_bind_and_are_paid_only_for_what_is_granted(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis) as store:
            paced = Limits(connections=(Ceiling("y/a", 2),), opening=(Pace("y/a#opening", Rate(3, 3600.0, 3)),))
            both = await store.connect([("a", paced)], want=5, each=5)
            assert len(both.leases) == 2
            assert both.wait is not None
            assert both.wait.limit == "y/a"
            await store.release(both.leases)
            last = await store.connect([("a", paced)], want=5, each=5)
            assert len(last.leases) == 1
            assert last.wait is not None
            assert last.wait.limit == "y/a#opening"
            assert last.wait.until == pytest.approx(1200, abs=2)

    asyncio.run(scenario())


def test_of_several_candidates_the_soonest_binds(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis) as store:
            slow = Limits(opening=(Pace("slow", Rate(1, 60.0)),))
            fast = Limits(opening=(Pace("fast", Rate(1, 10.0)),))
            granted = await store.connect([("a", slow), ("b", fast)], want=4, each=2)
            assert sources(granted.leases) == ["a", "b"]
            assert granted.wait is not None
            assert granted.wait.limit == "fast"
            assert granted.wait.until == pytest.approx(10, abs=0.5)

    asyncio.run(scenario())


def test_messages_are_granted_the_least_of_all_paces(any_redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(any_redis_server) as store:
            total = Pace("g", Rate(1, 3600.0, 10))
            a, b = (Limits(messages=(Pace(f"g/{name}", Rate(1, 3600.0, 8)), total)) for name in "ab")
            taken = await store.take([(a, 6), (b, 6), (a, 1), (b, 0)])
            assert [entry.count for entry in taken] == [6, 4, 0, 0]
            assert [entry.limit for entry in taken] == ["", "g", "g", ""]
            await store.give_back([(b, 3), (a, 0)])
            assert [entry.count for entry in await store.take([(b, 9), (a, 2)])] == [3, 0]  # b paid for 4 − 3 + 3 of 8

    asyncio.run(scenario())


def test_the_script_decides_as_the_pure_function(any_redis_server: RedisServer) -> None:
    """Same rate, same asks: after the same (server) time both have granted the same and hold the same TAT."""

    async def scenario() -> None:
        async with client(any_redis_server) as redis:
            store = LimitStore(redis, "w")
            for number, rate in enumerate([Rate(3, 60.0, 7), Rate(7, 3600.0, 5), Rate(1, 0.001, 1), Rate(100, 1.0, 3)]):
                limits, tat = Limits(messages=(Pace(f"p{number}", rate),)), 0.0
                for asked in (2, 3, 1, 4, 1, 1):
                    before = await redis.time()
                    (taken,) = await store.take([(limits, asked)])
                    after = await redis.time()
                    stored = int(await redis.get(f"{{rep}}pace:p{number}") or 0)
                    moments = range(*(second * 1_000_000 + us for second, us in (before, after)))
                    decisions = [gcra(tat, moment / 1e6, asked, rate) for moment in (*moments, moments.stop)]
                    same = [d for d in decisions if (d.granted, round(d.tat * 1e6)) == (taken.count, stored)]
                    assert same, (rate, taken, stored)
                    assert min(d.wait for d in same) - 1e-6 <= taken.wait <= max(d.wait for d in same) + 1e-6
                    tat = stored / 1e6

    asyncio.run(scenario())


def test_leases_expire_and_the_wait_says_when(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis, "dead", 1.0) as dead, opened(shared_redis, "w") as store:
            await dead.connect(candidates(1, most=2), want=2, each=2)
            refused = await store.connect(candidates(1, most=2), want=1)
            assert refused.wait is not None
            assert 0 < refused.wait.until <= 1.1
            await asyncio.sleep(refused.wait.until)  # what is tested is this very time
            assert len((await store.connect(candidates(1, most=2), want=2, each=2)).leases) == 2

    asyncio.run(scenario())


def test_the_heartbeat_extends_all(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w", 30.0)
            granted = await store.connect(candidates(40, total=2000), want=2000, each=50)
            assert len(granted.leases) == 200
            key = "{rep}lease:google"
            before = dict(await redis.zrange(key, 0, -1, withscores=True))
            await redis.zadd(key, {member: score - 20_000 for member, score in before.items()})
            valid = store.valid_until
            assert await store.extend() == []
            after = dict(await redis.zrange(key, 0, -1, withscores=True))
            assert set(after) == set(before)
            assert min(after.values()) >= max(before.values())
            assert store.valid_until > valid

    asyncio.run(scenario())


def test_a_released_lease_stays_released_whatever_the_heartbeat_does(shared_redis: RedisServer) -> None:
    """A release overtakes a heartbeat that still names the lease: its slot is free after the next one at the latest."""

    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w")
            granted = await store.connect(candidates(1), want=5, each=5)
            async with asyncio.TaskGroup() as group:
                group.create_task(store.extend())
                group.create_task(store.release(granted.leases[:3]))
            await store.extend()
            assert await redis.zcard("{rep}lease:google/127.0.1.1") == store.held == 2

    asyncio.run(scenario())


def test_scripts_are_sent_again_when_the_server_forgot_them(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w")
            for _ in range(2):
                assert len((await store.connect(candidates(2), want=1)).leases) == 1
                await redis.script_flush()

    asyncio.run(scenario())


def test_a_restarted_server_costs_one_repeat(redis_server: RedisServer) -> None:
    """kill -9: the lease was on disk, the broken connection is replaced, the script is loaded anew."""

    async def scenario() -> None:
        async with opened(redis_server) as store:
            await store.connect(candidates(1, most=2), want=1)
            redis_server.kill()
            redis_server.start()
            granted = await store.connect(candidates(1, most=2), want=2, each=2)
            assert len(granted.leases) == 1

    asyncio.run(scenario())


def test_a_lost_reply_is_found_again(shared_redis: RedisServer, tmp_path: os.PathLike[str]) -> None:
    """The first connection breaks after the script has run: the repeat finds its own leases and takes no others."""

    async def scenario() -> None:
        path = os.path.join(tmp_path, "s")
        cut = 1  # connections whose first long reply is swallowed

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal cut
            far_reader, far_writer = await asyncio.open_unix_connection(shared_redis.socket)

            async def forth() -> None:
                while data := await reader.read(65536):
                    far_writer.write(data)
                far_writer.close()

            task = asyncio.create_task(forth())
            while data := await far_reader.read(65536):
                if cut and data.startswith(b"*5"):
                    cut -= 1
                    break
                writer.write(data)
            writer.close()
            task.cancel()
            far_writer.close()

        async with (
            await asyncio.start_unix_server(relay, path),
            Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0), socket_timeout=None) as redis,
            client(shared_redis) as direct,
        ):
            store = LimitStore(redis, "w")
            granted = await store.connect(candidates(3), want=4, each=2)
            assert cut == 0
            assert sources(granted.leases) == ["127.0.1.1"] * 2 + ["127.0.1.2"] * 2
            counts = [await direct.zcard(f"{{rep}}lease:google/127.0.1.{n}") for n in (1, 2, 3)]
            assert counts == [2, 2, 0]
            await store.release(granted.leases)
            assert await direct.exists("{rep}lease:google/127.0.1.1", "{rep}lease:google/127.0.1.2") == 0

    asyncio.run(scenario())


def test_without_a_server_everything_is_limits_down(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server) as store:
            granted = await store.connect(candidates(1), want=2, each=2)
            redis_server.kill()
            with pytest.raises(LimitsDown, match="connect"):
                await store.connect(candidates(1), want=1)
            with pytest.raises(LimitsDown, match="take"):
                await store.take([(Limits(messages=(Pace("p", Rate(1, 1.0)),)), 1)])
            with pytest.raises(LimitsDown):
                await store.extend()
            with pytest.raises(LimitsDown):
                await store.release(granted.leases[:1])
            redis_server.start()
            assert await store.extend() == []  # gives the released one back, too
            assert len((await store.connect(candidates(1), want=5, each=5)).leases) == 4

    asyncio.run(scenario())


def test_a_silent_server_is_limits_down_and_what_it_granted_late_comes_back(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with client(redis_server) as redis:
            store = LimitStore(redis, "w", answer_seconds=0.2)
            await store.connect(candidates(1), want=1)
            redis_server.pause()
            with pytest.raises(LimitsDown, match="no answer"):
                await store.connect(candidates(1), want=4, each=4)
            redis_server.resume()
            assert await redis.zcard("{rep}lease:google/127.0.1.1") == 5  # the late script has run: it was sent first
            await store.extend()
            assert await redis.zcard("{rep}lease:google/127.0.1.1") == 1

    asyncio.run(scenario())


def test_a_cancelled_connect_leaves_no_lease_for_long(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w")
            for steps in range(12):
                task = asyncio.create_task(store.connect(candidates(1), want=3, each=3))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await store.release((await task).leases)
            await redis.ping()
            await store.extend()
            assert await redis.zcard("{rep}lease:google/127.0.1.1") == store.held == 0

    asyncio.run(scenario())


def test_a_client_that_repeats_by_itself_is_refused(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        for careless in (
            Redis(unix_socket_path=shared_redis.socket),
            Redis.from_url(shared_redis.url),
            Redis.from_url(shared_redis.url, socket_timeout=None),
            Redis.from_url(shared_redis.url, retry=Retry(NoBackoff(), 0)),
        ):
            async with careless as redis:
                with pytest.raises(ValueError, match="socket_timeout=None"):
                    LimitStore(redis, "w")
        LimitStore(Redis.from_url(shared_redis.url, retry=Retry(NoBackoff(), 0), socket_timeout=None), "w")
        async with client(shared_redis) as redis:
            with pytest.raises(ValueError, match="lease_seconds"):
                LimitStore(redis, "w", 900.0)

    asyncio.run(scenario())


def test_nothing_stays_in_the_server_for_ever(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            store = LimitStore(redis, "w")
            limits = Limits((Ceiling("x", 1),), (Pace("o", Rate(5, 1.0, 9)),), (Pace("m", Rate(5, 1.0)),))
            await store.connect([("a", limits)], want=2, each=2)
            await store.take([(limits, 1)])
            keys = await redis.keys()
            assert sorted(keys) == [b"{rep}lease:x", b"{rep}pace:m", b"{rep}pace:o", b"{rep}wait:x"]
            assert all([await redis.pttl(key) > 0 for key in keys])

    asyncio.run(scenario())
