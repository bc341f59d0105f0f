"""What mail rests on, as maintenance checks it: routes, clocks, configurations, quotas."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from mailqueue import intake
from mailqueue.events import Event
from mailqueue.processes import Process
from mailqueue.queue import Queue
from mailqueue.quota import Grant
from maintenance import checks
from maintenance.alarms import Alarms
from maintenance.checks import Checks
from tests.queue_kit import now_ms, opened


class Post:
    def __init__(self, queue: Queue) -> None:
        self.registry = CollectorRegistry()
        self.alarms = Alarms(queue.shards[0], self.registry)
        self.checks = Checks(queue, self.alarms, self.registry)

    async def look(self) -> dict[str, tuple[str, int]]:
        await self.checks.look()
        await self.checks.quotas()
        return {name: (alarm.reason, alarm.count) for name, alarm in self.alarms.on.items()}


def test_a_route_that_delivery_suspended_is_told_and_an_operators_word_is_not(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            post = Post(queue)
            await queue.suspend("route:formal", 60, reason="535 5.7.8 wrong password")
            await queue.suspend("route:other", reason="until I say so")
            await queue.suspend("source:127.0.1.1", 60, reason="no route")
            assert await post.look() == {"route-suspended:formal": ("535 5.7.8 wrong password", 0)}
            await queue.resume("route:formal")
            assert await post.look() == {}

    asyncio.run(scenario())


def test_intake_that_is_stopped(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            post = Post(queue)
            await intake.stop(queue.shards[0], "moving house", 0, Event("audit", now_ms()))
            assert await post.look() == {"intake-stopped": ("moving house", 0)}
            await intake.start(queue.shards[0], Event("audit", now_ms()))
            assert await post.look() == {}

    asyncio.run(scenario())


def test_clocks_that_differ_or_step(shared_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            post = Post(queue)
            assert await post.look() == {}
            assert abs(post.registry.get_sample_value("tambo_clock_offset_seconds") or 0) < checks.OFFSET_SECONDS
            real, ahead = checks.time.time, 3.0
            monkeypatch.setattr(checks.time, "time", lambda: real() + ahead)
            assert await post.look() == {
                f"clock@{socket.gethostname()}": ("the clock of this host has stepped by +3 s", 0)
            }
            assert post.registry.get_sample_value("tambo_clock_steps_total") == 1
            ahead = 3600.0
            monkeypatch.setattr(checks, "STEP_TOLD_SECONDS", 0.0)
            reason, _ = (await post.look())[f"clock@{socket.gethostname()}"]
            assert "differ" in reason
            ahead = 0.0
            assert await post.look() == {}

    asyncio.run(scenario())


def test_what_was_told_of_a_host_ends_with_its_maintenance(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            post = Post(queue)
            process = Process("maintenance", "there", 1, "1", 0.0, "1", 1)
            facts = {name: getattr(process, name) for name in Process.__slots__}
            said = orjson.dumps({**facts, "at": now_ms() / 1000})
            await queue.shards[0].command("HSET", "{q0}:processes", process.name, said)
            for name in ("step-failed:reap@there", "step-failed:reap@gone", "clock@gone", "archive"):
                await post.alarms.set(name, True, "so")
            assert set(await post.look()) == {"step-failed:reap@there", "archive"}

    asyncio.run(scenario())


def test_processes_that_have_different_configurations(shared_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DIFFER_SECONDS", 0.0)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            post = Post(queue)
            one = Process("delivery", "host", 1, "1", 0.0, "1", 1)

            async def say(pid: int, digest: str, role: str = "delivery") -> None:
                process = replace(one, pid=pid, digest=digest, role=role)
                facts = {name: getattr(process, name) for name in Process.__slots__}
                said = orjson.dumps({**facts, "at": now_ms() / 1000})
                await queue.shards[0].command("HSET", "{q0}:processes", process.name, said)

            for pid in (1, 2):
                await say(pid, "new")
            assert await post.look() == {}
            await say(3, "old", "relayd")
            text = f"not all processes have the same configuration: look at relayd@{one.host}:3"
            assert await post.look() == {"config-differs": (text, 0)}
            assert post.registry.get_sample_value("tambo_processes", {"role": "delivery"}) == 2
            await say(3, "new", "relayd")
            assert await post.look() == {}

    asyncio.run(scenario())


def test_a_bag_that_is_nearly_empty(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            post = Post(queue)
            bag, monthly = Grant("bag"), Grant("monthly", "2026-11", 10)
            await queue.ledger.enter(bag, "credit", 1000, "t1", by="a", why="b")
            await queue.ledger.allot(monthly, 0, 1, 1)
            assert await post.look() == {}
            for shard in (0, 1):  # allotted to shards and not used is not spent
                book = await queue.ledger.allot(bag, shard, 490, 490)
                await queue.ledger.fund("bag", shard, book)
            assert await post.look() == {}
            for shard, used in ((0, 490), (1, 465)):
                await queue.shards[shard].command("HSET", f"{{q{shard}}}:bag:bag", "used", used)
            assert await post.look() == {
                "quota-low:bag": ("less than 5% of its quota of 1000 recipients is left", 45),
            }
            await queue.ledger.enter(bag, "credit", 1000, "t2", by="a", why="b")
            assert await post.look() == {}

    asyncio.run(scenario())
