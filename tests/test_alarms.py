"""Alarms: told once each time, by metric, event and log, whoever sees them, over restarts and a queue that is away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from typer.testing import CliRunner

from mailqueue.alarms import Alarm, raised
from mailqueue.errors import QueueDown
from mailqueue.processes import Presence, Process
from mailqueue.queue import Queue
from maintenance.alarms import Alarms
from relayctl.main import app
from tests.queue_kit import events, opened


class Watch:
    """Alarms as one maintenance process has them."""

    def __init__(self, queue: Queue) -> None:
        self.registry = CollectorRegistry()
        self.alarms = Alarms(queue.shards[0], self.registry)

    def gauge(self, name: str) -> float | None:
        return self.registry.get_sample_value("tambo_alarm", {"name": name})


async def told(queue: Queue) -> list[tuple[str, str, str, int]]:
    found = [event for event in await events(queue) if event.kind == "alarm"]
    return [(event.subject, event.after, event.reason, event.count) for event in found]


def lines(captured: Any) -> list[tuple[str, str, str]]:
    return [(line["log_level"], line["name"], line["state"]) for line in captured if line["event"] == "alarm"]


def test_only_a_change_is_told(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            watch = Watch(queue)
            with capture_logs() as captured:
                for on in (False, True, True, False, False):
                    await watch.alarms.set("no-progress", on, "nothing moves\n in gmail" if on else "it moves", 7)
                    assert watch.gauge("no-progress") == on
            assert await told(queue) == [
                ("no-progress", "on", "nothing moves in gmail", 7),
                ("no-progress", "off", "it moves", 7),
            ]
            assert lines(captured) == [("warning", "no-progress", "on"), ("info", "no-progress", "off")]
            assert watch.alarms.on == {} == await raised(queue.shards[0])

    asyncio.run(scenario())


def test_what_is_on_stays_on_over_a_restart_and_its_reason_follows(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            first, second = Watch(queue), Watch(queue)
            await first.alarms.set("stream-lag:bounces", True, "an hour behind", 3600)
            since = (await raised(queue.shards[0]))["stream-lag:bounces"].since
            await second.alarms.refresh()
            assert second.gauge("stream-lag:bounces") == 1
            await second.alarms.set("stream-lag:bounces", True, "two hours behind", 7200)
            now = await raised(queue.shards[0])
            assert now == {"stream-lag:bounces": Alarm("stream-lag:bounces", since, "two hours behind", 7200)}
            assert len(await told(queue)) == 1

    asyncio.run(scenario())


def test_two_processes_say_it_once(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, opened(shared_redis.url) as other:
            watches = [Watch(queue), Watch(other)]
            with capture_logs() as captured:
                for on in (True, False, True):
                    for watch in watches:
                        await watch.alarms.refresh()
                    await asyncio.gather(*(watch.alarms.set("no-workers", on, "so") for watch in watches))
                    assert [watch.gauge("no-workers") for watch in watches] == [on, on]
            assert [word for _, word, _, _ in await told(queue)] == ["on", "off", "on"]
            assert len(lines(captured)) == 3

    asyncio.run(scenario())


def test_another_process_ends_it(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            first, second = Watch(queue), Watch(queue)
            await first.alarms.set("no-workers", True, "none")
            await second.alarms.refresh()
            await second.alarms.set("no-workers", False)
            await first.alarms.refresh()
            assert first.gauge("no-workers") == 0
            await first.alarms.set("no-workers", False)
            assert [word for _, word, _, _ in await told(queue)] == ["on", "off"]

    asyncio.run(scenario())


def test_a_family_is_on_for_those_named_and_for_nobody_else(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            watch = Watch(queue)
            await watch.alarms.set("stream-lag-of-old", True, "another's")
            await watch.alarms.family("stream-lag", {"a": ("behind", 1), "b": ("behind", 2)})
            await watch.alarms.family("stream-lag", {"b": ("behind", 3)})
            assert set(watch.alarms.on) == {"stream-lag-of-old", "stream-lag:b"}
            assert (watch.gauge("stream-lag:a"), watch.gauge("stream-lag:b")) == (0, 1)
            await Watch(queue).alarms.family("stream-lag", {})  # knows of none until it has asked
            assert "stream-lag:b" in await raised(queue.shards[0])

    asyncio.run(scenario())


def test_a_queue_that_is_away_has_metric_and_log_and_the_event_follows(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            watch = Watch(queue)
            redis_server.stop()
            with capture_logs() as captured:
                for _ in range(2):
                    with pytest.raises(QueueDown):
                        await watch.alarms.set("archive-failed", True, "disk full")
                    watch.alarms.without_queue("queue-away", True, "gone")
                assert (watch.gauge("archive-failed"), watch.gauge("queue-away")) == (1, 1)
                redis_server.start()
                watch.alarms.without_queue("queue-away", False)
                await watch.alarms.set("archive-failed", True, "disk full")
                await watch.alarms.set("archive-failed", False)
            assert lines(captured) == [
                ("warning", "archive-failed", "on"),
                ("warning", "queue-away", "on"),
                ("info", "queue-away", "off"),
                ("info", "archive-failed", "off"),
            ]
            assert [(name, word) for name, word, _, _ in await told(queue)] == [
                ("archive-failed", "on"),
                ("archive-failed", "off"),
            ]

    asyncio.run(scenario())


def test_what_the_queue_never_heard_of_ends_in_the_log(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            watch = Watch(queue)
            redis_server.stop()
            with capture_logs() as captured:
                with pytest.raises(QueueDown):
                    await watch.alarms.set("no-workers", True, "none")
                redis_server.start()
                await watch.alarms.set("no-workers", False)
            assert [state for _, _, state in lines(captured)] == ["on", "off"]
            assert await told(queue) == []

    asyncio.run(scenario())


def test_relayctl_shows_those_that_are_on(shared_redis: Any, tmp_path: Path) -> None:
    config = tmp_path / "tambo.toml"
    config.write_text(f'[queue]\nurl = "{shared_redis.url}"\n')

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["alarms", *words, "--config", str(config)])

    unwatched = run("--check")
    assert (unwatched.exit_code, unwatched.stdout) == (1, "no alarm is on\n")
    assert "nobody watches" in unwatched.stderr

    async def watch() -> None:
        async with opened(shared_redis.url) as queue:
            process = Process("maintenance", "h", 7, "", 0.0, "1", 1)
            presence = Presence(queue.shards[0], lambda: process)
            await presence._say()

    asyncio.run(watch())
    watched = run("--check")
    assert (watched.exit_code, watched.stdout) == (0, "no alarm is on\n") and "nobody" not in watched.stderr

    async def ring() -> None:
        async with opened(shared_redis.url) as queue:
            await Watch(queue).alarms.set("archive", True, "disk full: [/x]", 3)

    asyncio.run(ring())
    found = run()
    assert (found.exit_code, run("--check").exit_code) == (0, 1)
    assert "archive" in found.stdout
    assert "disk full: [/x]" in found.stdout
    (alarm,) = orjson.loads(run("--json").stdout)
    assert (alarm["name"], alarm["count"], alarm["reason"]) == ("archive", 3, "disk full: [/x]")
