"""Wake-ups: one waiter per freed slot, none lost, and no ceiling ever exceeded under a crowd of workers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from ipreputation.limits import Ceiling, Limits
from ipreputation.store import Lease, LimitStore
from tests.conftest import RedisServer
from tests.test_limit_store import candidates, client

TOTAL = "google"


@dataclass
class Worker:
    """A store, and what it was told. ``wants`` = its answer to a wake-up."""

    store: LimitStore
    wants: bool = True
    heard: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def on_freed(self, name: str) -> bool:
        self.heard.put_nowait(name)
        return self.wants

    async def hears(self) -> str:
        async with asyncio.timeout(5):
            return await self.heard.get()


@contextlib.asynccontextmanager
async def working(redis: Redis, *names: str, lease_seconds: float = 30.0) -> AsyncIterator[list[Worker]]:
    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for name in names:
            worker = Worker(None)  # type: ignore[arg-type]
            worker.store = LimitStore(redis, name, lease_seconds, on_freed=worker.on_freed)
            workers.append(await _started(stack, worker))
        yield workers


async def _started(stack: contextlib.AsyncExitStack, worker: Worker) -> Worker:
    await stack.enter_async_context(worker.store)
    async with asyncio.timeout(5):
        await worker.store.listening()
    return worker


async def refused(worker: Worker, most: int = 1) -> None:
    granted = await worker.store.connect(candidates(1, most=most), want=1)
    assert granted.leases == []


def test_each_freed_slot_wakes_exactly_one_in_turn(any_redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with client(any_redis_server) as redis, working(redis, "a", "b", "c", "d") as (a, b, c, d):
            held = await a.store.connect(candidates(1, most=2), want=2, each=2)
            for worker in (b, c, d):
                await refused(worker, most=2)
            await a.store.release(held.leases)
            assert [await b.hears(), await c.hears()] == ["google/127.0.1.1"] * 2
            granted = await b.store.connect(candidates(1, most=2), want=1)  # leaves room: the next one is told
            assert await d.hears() == "google/127.0.1.1"
            b.wants = False
            await b.store.release(granted.leases)  # other flows of b may wait: it is asked once more
            assert await b.hears() == "google/127.0.1.1"
            await redis.ping()
            assert all(worker.heard.empty() for worker in (a, b, c, d))

    asyncio.run(scenario())


def test_the_worker_itself_is_woken_without_a_message(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis:
            worker = Worker(None)  # type: ignore[arg-type]
            worker.store = LimitStore(redis, "alone", on_freed=worker.on_freed)  # not even listening
            held = await worker.store.connect(candidates(1, most=1), want=1)
            await refused(worker)
            await worker.store.release(held.leases)
            assert worker.heard.get_nowait() == "google/127.0.1.1"

    asyncio.run(scenario())


def test_a_wake_up_nobody_wants_goes_on(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis, working(redis, "a", "b", "c", "d") as (a, b, c, d):
            held = await a.store.connect(candidates(1, most=1), want=1)
            for worker in (a, b, c, d):
                await refused(worker)
            a.wants = b.wants = c.wants = False
            await a.store.release(held.leases)
            assert [await worker.hears() for worker in (a, b, c, d)] == ["google/127.0.1.1"] * 4

    asyncio.run(scenario())


def test_a_dead_worker_swallows_no_wake_up(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with client(shared_redis) as redis, working(redis, "a", "c") as (a, c):
            held = await a.store.connect(candidates(1, most=1), want=1)
            async with working(redis, "b") as (b,):
                await refused(b)
            await refused(c)
            await a.store.release(held.leases)
            assert await c.hears() == "google/127.0.1.1"

    asyncio.run(scenario())


def test_who_waits_for_another_limit_does_not_block_the_slot(shared_redis: RedisServer) -> None:
    """b is woken for the source but the total is full: the slot of the source goes on to c, who needs only that."""

    async def scenario() -> None:
        async with client(shared_redis) as redis, working(redis, "a", "b", "c") as (a, b, c):
            both = Limits(connections=(Ceiling("s", 1), Ceiling("t", 1)))
            only = Limits(connections=(Ceiling("s", 1),))
            held = await a.store.connect([("s", only)], want=1)
            other = await a.store.connect([("t", Limits(connections=(Ceiling("t", 1),)))], want=1)
            assert (await b.store.connect([("s", both)], want=1)).leases == []
            assert (await c.store.connect([("s", only)], want=1)).leases == []
            await a.store.release(held.leases)
            assert await b.hears() == "s"
            assert (await b.store.connect([("s", both)], want=1)).leases == []
            assert await c.hears() == "s"
            assert len((await c.store.connect([("s", only)], want=1)).leases) == 1
            await a.store.release(other.leases)
            assert await b.hears() == "t"

    asyncio.run(scenario())


def test_a_listener_that_lost_its_connection_makes_up_for_it(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with client(redis_server) as redis, working(redis, "a", "b") as (a, b):
            held = await a.store.connect(candidates(1, most=1), want=1)
            await refused(b)
            redis_server.kill()
            redis_server.start()
            await a.store.release(held.leases)  # perhaps before b listens again
            assert await b.hears() == "google/127.0.1.1"
            async with asyncio.timeout(5):
                await b.store.listening()
            assert len((await b.store.connect(candidates(1, most=1), want=1)).leases) == 1

    asyncio.run(scenario())


class Crowd:
    """Workers with several tasks each that open, hold and release, and a count of what is really open."""

    def __init__(self, redis: Redis, most: int, total: int, rounds: int) -> None:
        self.redis, self.most, self.total, self.rounds = redis, most, total, rounds
        self.open: dict[str, int] = {}
        self.served = 0
        self.waits = 0
        self.seen = 0
        self.busy = asyncio.Event()  # somebody holds leases

    def offer(self) -> list[tuple[str, Limits]]:
        offer = candidates(3, most=self.most, total=self.total)
        random.shuffle(offer)
        return offer

    def opened(self, lease: Lease, step: int) -> None:
        for ceiling in lease.limits.connections:
            self.open[ceiling.name] = self.open.get(ceiling.name, 0) + step
            assert self.open[ceiling.name] <= ceiling.most, ceiling

    async def watch(self) -> None:
        """What the server holds alive, again and again."""
        while True:
            seconds, microseconds = await self.redis.time()
            now = seconds * 1000 + microseconds // 1000
            assert await self.redis.zcount("{rep}lease:google", now, "+inf") <= self.total
            for source, _ in candidates(3):
                assert await self.redis.zcount(f"{{rep}}lease:google/{source}", now, "+inf") <= self.most
            self.seen += 1
            await asyncio.sleep(0.002)

    async def worker(self, name: str, holding: float) -> None:
        """One flow that asks again at ``Wait.until`` or when woken. Cancelled, it dies: nothing is given back."""
        freed = asyncio.Event()
        store = LimitStore(self.redis, name, 1.0, on_freed=lambda _: freed.set() or True)
        await store.open()
        heartbeat = asyncio.create_task(beat(store, asyncio.Event()))
        try:
            done = 0
            while done < self.rounds:
                freed.clear()
                granted = await store.connect(self.offer(), 3, each=2)
                if granted.leases:
                    await self.hold(granted.leases, holding)
                    await store.release(granted.leases)
                    done, self.served = done + 1, self.served + 1
                elif granted.wait:
                    self.waits += 1
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(granted.wait.until):
                            await freed.wait()
        except asyncio.CancelledError:
            assert store._listener is not None
            store._listener.cancel()
            raise
        finally:
            await stopped(heartbeat)
        await store.close()

    async def hold(self, leases: list[Lease], seconds: float) -> None:
        try:
            for lease in leases:
                self.opened(lease, 1)
            self.busy.set()
            await asyncio.sleep(seconds)
        finally:
            for lease in leases:
                self.opened(lease, -1)

    async def session(self, store: LimitStore, waiters: deque[asyncio.Future[None]]) -> None:
        """One flow: takes slots until it has had its rounds. It waits for wake-ups only, never for Wait.until."""
        for _ in range(self.rounds):
            while True:
                want = random.randint(1, 3)
                granted = await store.connect(self.offer(), want, each=2)
                if granted.leases:
                    break
                self.waits += 1
                assert granted.wait is not None
                if granted.wait.until > 0:
                    waiters.append(asyncio.get_running_loop().create_future())
                    async with asyncio.timeout(20):
                        await waiters[-1]
            for lease in granted.leases:
                self.opened(lease, 1)
            await asyncio.sleep(random.choice((0, 0, 0.001, 0.003)))
            for lease in granted.leases:
                self.opened(lease, -1)
            await store.release(granted.leases)
            self.served += 1


@pytest.mark.parametrize(("most", "total"), [(1, 2), (2, 3), (3, 9)])
def test_a_crowd_never_exceeds_a_ceiling_and_loses_no_wake_up(
    any_redis_server: RedisServer, most: int, total: int
) -> None:
    """4 workers × 3 flows; a heartbeat runs all the time. A lost wake-up would hang a flow until its time-out."""

    async def scenario() -> None:
        async with client(any_redis_server) as redis, contextlib.AsyncExitStack() as stack:
            crowd = Crowd(redis, most, total, rounds=25)
            async with asyncio.TaskGroup() as flows:
                for number in range(4):
                    await _join(stack, flows, crowd, f"w{number}")
            assert crowd.served == 4 * 3 * 25
            assert crowd.waits > 0
            assert set(crowd.open.values()) == {0}
            await stack.aclose()  # gives back what a heartbeat made anew of leases released under it
            assert await redis.keys("{rep}lease:*") == []

    asyncio.run(scenario())


def test_killed_workers_give_their_slots_back_in_time(any_redis_server: RedisServer) -> None:
    """Workers die holding leases (no release, no heartbeat) and start again under their name; all others are served."""

    async def scenario() -> None:
        async with client(any_redis_server) as redis:
            crowd = Crowd(redis, most=2, total=3, rounds=40)
            watch = asyncio.create_task(crowd.watch())
            for _ in range(2):
                victim = asyncio.create_task(crowd.worker("victim", holding=10.0))
                await crowd.busy.wait()  # it holds all
                others = [asyncio.create_task(crowd.worker(f"w{number}", holding=0.001)) for number in range(2)]
                await redis.ping()
                await stopped(victim)
                crowd.busy.clear()
                async with asyncio.timeout(30):
                    await asyncio.gather(*others)
            await stopped(watch)
            assert crowd.served == 2 * 2 * 40
            assert crowd.seen > 10

    asyncio.run(scenario())


async def _join(stack: contextlib.AsyncExitStack, flows: asyncio.TaskGroup, crowd: Crowd, name: str) -> None:
    waiters: deque[asyncio.Future[None]] = deque()

    def on_freed(_: str) -> bool:
        if not waiters:
            return False
        waiters.popleft().set_result(None)
        return True

    store = await stack.enter_async_context(LimitStore(crowd.redis, name, 5.0, on_freed=on_freed))
    async with asyncio.timeout(5):
        await store.listening()
    for _ in range(3):
        flows.create_task(crowd.session(store, waiters))
    done = asyncio.Event()
    heartbeat = asyncio.create_task(beat(store, done))

    async def leave() -> None:
        done.set()
        await heartbeat
        assert await store.extend() == []

    stack.push_async_callback(leave)


async def beat(store: LimitStore, done: asyncio.Event) -> None:
    while not done.is_set():
        assert await store.extend() == []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await done.wait()


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
