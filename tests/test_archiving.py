"""Archiving: on disk first, trimmed after; one at a time; kill -9, a full disk and a server that went back lose nothing."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from benchmarks.harness import Relay, scratch
from config.load import Loaded
from config.settings import Settings
from mailqueue.alarms import raised
from mailqueue.lease import Lease
from maintenance.rounds import Maintenance
from streams import ids
from streams.appender import Appender
from streams.archive import Archive
from streams.starts import last_id
from tests.archive_kit import add, archiver, archiving, event, holds, length, numbers, value
from tests.conftest import REPOSITORY
from tests.delivery_kit import providers
from tests.queue_kit import eventually, now_ms, opened


def test_all_is_archived_and_only_then_trimmed(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            archive = Archive(tmp_path / "a")
            for shard in queue.shards:
                await add(shard, 0, 12_500)
            async with archiving(queue, tmp_path / "a") as registry:
                for shard in queue.shards:
                    await eventually(lambda s=shard: short(s))  # type: ignore[misc]
                await add(queue.shards[0], 12_500, 2500)
                await eventually(lambda: archived(queue, registry, 27_500))
                assert value(registry, "tambo_archive_leads") == 1
                assert value(registry, "tambo_archived_bytes_total") > 0
            kept = [await length(shard) for shard in queue.shards]
            assert all(1000 <= count < 1200 for count in kept), kept
            assert await numbers(queue.shards, archive) == {0: list(range(15_000)), 1: list(range(12_500))}
            sizes = sum(one.path.stat().st_size for one in archive.segments())
            assert sizes < 15_000 * 20  # compressed

    async def short(shard: Any) -> bool:
        return await length(shard) < 1200

    async def archived(queue: Any, registry: Any, count: int) -> bool:
        return value(registry, "tambo_archived_entries_total") == count

    asyncio.run(scenario())


def test_a_second_one_takes_over(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, opened(shared_redis.url) as other:
            shard = queue.shards[0]
            await add(shard, 0, 3000)
            first, facts = archiver(queue, tmp_path / "a")
            second, others = archiver(other, tmp_path / "a")
            stops = asyncio.Event(), asyncio.Event()
            tasks = [asyncio.create_task(first.run(stops[0]))]
            await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 3000))
            tasks.append(asyncio.create_task(second.run(stops[1])))
            await add(shard, 3000, 3000)
            await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 6000))
            assert value(others, "tambo_archived_entries_total") == 0
            assert (second.trouble, value(others, "tambo_archive_leads")) == ("", 0)
            stops[0].set()
            await tasks[0]
            await add(shard, 6000, 3000)
            await eventually(lambda: holds(lambda: value(others, "tambo_archived_entries_total") == 3000))
            assert value(others, "tambo_archive_leads") == 1
            stops[1].set()
            await tasks[1]
            assert await numbers(queue.shards, Archive(tmp_path / "a")) == {0: list(range(9000))}

    asyncio.run(scenario())


def test_a_stop_in_order_leaves_nothing_unarchived(shared_redis: Any, tmp_path: Path) -> None:
    """What came after its last look is read and written, however much it is: the server may be lost after it."""

    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            work, facts = archiver(queue, tmp_path / "a", linger_seconds=30.0)
            stop = asyncio.Event()
            task = asyncio.create_task(work.run(stop))
            await eventually(lambda: holds(lambda: value(facts, "tambo_archive_leads") == 1))
            await add(queue.shards[0], 0, 12_500)
            await add(queue.shards[1], 0, 1)
            stop.set()
            await task
            assert {one: Archive(tmp_path / "a").newest(one) for one in (0, 1)} == {
                shard.number: await last_id(shard) for shard in queue.shards
            }
            assert await numbers(queue.shards, Archive(tmp_path / "a")) == {0: list(range(12_500)), 1: [0]}

    asyncio.run(scenario())


def test_who_has_lost_the_lease_writes_nothing(shared_redis: Any, tmp_path: Path) -> None:
    """Another host's process, that our lock does not keep out, has taken it."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            other = Lease(shard, "archive")
            assert await other.take()
            work, facts = archiver(queue, tmp_path / "a")
            await add(shard, 0, 2000)
            assert not await work._round()
            assert value(facts, "tambo_archive_leads") == 0
            assert Archive(tmp_path / "a").segments() == []
            await other.give_back()
            assert await other.take() and other.left > 20
            await other.give_back()
            assert other.left == 0
            await work._round()
            assert value(facts, "tambo_archive_leads") == 1
            await work._resign()

    asyncio.run(scenario())


def test_kill_9_in_the_middle(shared_redis: Any, tmp_path: Path) -> None:
    """A process of its own, killed at any moment while it writes and trims, then another; events go on all the while."""

    async def scenario() -> None:
        dice = random.Random(4)
        async with opened(shared_redis.url, shards=2) as queue:
            sent, kills = 0, 0
            archive = Archive(tmp_path / "a")
            while kills < 2:
                newest = archive.newest(0)
                command = [sys.executable, "-m", "tests.archive_kit", shared_redis.url, str(tmp_path / "a"), "2"]
                process = subprocess.Popen(command, cwd=REPOSITORY)  # noqa: ASYNC220
                try:
                    async with asyncio.timeout(20):
                        while archive.newest(0) == newest:  # it has begun
                            for shard in queue.shards:
                                await add(shard, sent, 500, diagnostic_code=dice.randbytes(100).hex())
                            sent += 500
                    await asyncio.sleep(dice.random() / 10)
                finally:
                    process.kill()
                    process.wait()
                kills += 1
            assert await numbers(queue.shards, archive) == {0: list(range(sent)), 1: list(range(sent))}
            async with archiving(queue, tmp_path / "a"):
                await eventually(lambda: whole(queue, archive))
            assert await numbers(queue.shards, archive) == {0: list(range(sent)), 1: list(range(sent))}

    async def whole(queue: Any, archive: Archive) -> bool:
        last = [(await shard.command("XREVRANGE", shard.events, "+", "-", "COUNT", 1))[0][0] for shard in queue.shards]
        return [archive.newest(shard.number).encode() for shard in queue.shards] == last

    asyncio.run(scenario())


@pytest.mark.parametrize("why", ["busy", "hangs"])
def test_it_is_said_when_nobody_gets_on(
    shared_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Another program has the directory's lock and does nothing, or the disk does not answer."""
    monkeypatch.setattr("maintenance.archiving.BEHIND_SECONDS", 0.5)
    answers = threading.Event()
    append = Appender.append

    def hanging(*words: Any) -> Any:
        answers.wait(30)
        return append(*words)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 1)
            other = Appender(tmp_path / "a")
            if why == "busy":
                other.open()
            else:
                monkeypatch.setattr(Appender, "append", hanging)
            async with archiving(queue, tmp_path / "a") as facts:
                try:
                    await eventually(lambda: said(shard, True))
                finally:
                    answers.set()
                    other.close()
                await eventually(lambda: said(shard, False))
                assert value(facts, "tambo_archived_entries_total") >= 1

    async def said(shard: Any, on: bool) -> bool:
        alarm = (await raised(shard)).get("archive")
        return alarm is not None and "s behind" in alarm.reason if on else alarm is None

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", ["restored", "new"])
def test_a_stream_that_went_back_goes_on_behind_its_archive(shared_redis: Any, tmp_path: Path, stream: str) -> None:
    """Its ids would be smaller than those archived, and count as archived."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            ahead = int((await shard.command("TIME"))[0]) * 1000 + 3_600_000
            await shard.command("XADD", shard.events, f"{ahead}-7", "e", b'{"n":0}')
            async with archiving(queue, tmp_path / "a"):
                await eventually(lambda: holds(lambda: Archive(tmp_path / "a").newest(0) == f"{ahead}-7"))
            await shard.command("DEL", shard.events)
            if stream == "restored":
                await add(shard, 1, 1)
            async with archiving(queue, tmp_path / "a") as facts:
                await eventually(lambda: holds(lambda: value(facts, "tambo_archive_leads") == 1))
                await add(shard, 2, 3)
                await eventually(lambda: holds(lambda: newest_n() == b'"n":4'))
            found = [event for _, event in Archive(tmp_path / "a").read(0)]
            assert [b'"n":%d' % number in event for number, event in zip((2, 3, 4), found[-3:], strict=True)] == [
                True
            ] * 3
            assert ids.parse(Archive(tmp_path / "a").newest(0))[0] == ahead
            assert sum(b'"n":1,' in event for event in found) == (stream == "restored")

    def newest_n() -> bytes:
        *_, last = (event for _, event in Archive(tmp_path / "a").read(0))
        return last[last.find(b'"n":') :][:5]

    asyncio.run(scenario())


def test_very_large_events_go_in_smaller_batches(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await add(queue.shards[0], 0, 90, reason="x" * 200_000)
            async with archiving(queue, tmp_path / "a") as facts:
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 90))
            assert await numbers(queue.shards, Archive(tmp_path / "a")) == {0: list(range(90))}

    asyncio.run(scenario())


def test_a_server_without_memory_gets_it_back(redis_server: Any, tmp_path: Path) -> None:
    """What was written while nobody archived has filled it: archiving must not need memory to free some."""

    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 30_000)
            used = int(redis_server.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r")[0])
            assert redis_server.command("CONFIG", "SET", "maxmemory", str(used - 100_000)) == b"+OK\r\n"
            assert redis_server.command("SET", "x", "1").startswith(b"-OOM")
            async with archiving(queue, tmp_path / "a"):
                await eventually(lambda: short(shard))
                assert redis_server.command("SET", "x", "1") == b"+OK\r\n"
            assert await numbers(queue.shards, Archive(tmp_path / "a")) == {0: list(range(30_000))}

    async def short(shard: Any) -> bool:
        return await length(shard) < 1200

    asyncio.run(scenario())


def test_the_process_says_why_it_does_not_archive(tmp_path: Path) -> None:
    """The directory above is not there; once it is, the same process goes on by itself."""
    with scratch("archive") as directory:
        settings = {"archive": {"directory": str(tmp_path / "above" / "a")}}
        relay = Relay(directory, roles=("maintenance",), settings=settings)
        try:
            relay.start_server()
            relay.start("maintenance", wait=False)
            assert "No such file or directory" in asyncio.run(told(relay, ready=False))
            (tmp_path / "above").mkdir()
            asyncio.run(told(relay, ready=True))
            assert relay.metrics("maintenance")["tambo_archive_leads"] == 1
            assert (tmp_path / "above" / "a" / "lock").exists()
        finally:
            relay.close()


@pytest.mark.parametrize("before", [True, False])
def test_who_trims_is_settled_at_the_start(shared_redis: Any, tmp_path: Path, before: bool) -> None:
    """A reload changes archive.directory, which is in force after the next start: until then nobody else may trim what is
    not archived, and somebody must trim."""

    def configured(archives: bool) -> Any:
        directory = str(tmp_path / "a") if archives else None
        return Settings.model_validate({"archive": {"directory": directory}, "queue": {"events_keep": 1000}})

    async def scenario() -> None:
        async with opened(shared_redis.url, events_keep=1000) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 1500)
            reloader: Any = SimpleNamespace(settings=configured(before))
            reloader.loaded = Loaded(reloader.settings, {}, providers())
            work = Maintenance(queue, reloader, CollectorRegistry())
            reloader.settings = configured(not before)
            assert await work._round(0) == ""
            left = await length(shard)
            assert left == 1500 if before else left < 1100

    asyncio.run(scenario())


def test_who_archives_nothing_does_not_trim_what_another_archives(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, events_keep=1000) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 1500)
            settings = Settings.model_validate({"queue": {"events_keep": 1000}})
            reloader: Any = SimpleNamespace(settings=settings, loaded=Loaded(settings, {}, providers()))
            work = Maintenance(queue, reloader, CollectorRegistry())
            other = Lease(shard, "archive")
            assert await other.take()
            assert await work._round(0) == ""
            assert await length(shard) == 1500
            await other.give_back()
            assert await work._round(0) == ""
            assert await length(shard) < 1100

    asyncio.run(scenario())


async def told(relay: Relay, *, ready: bool) -> str:
    """What /readyz says once it is ready, or is not because of the archive."""
    said = ""

    async def answers() -> bool:
        nonlocal said
        status, said = await asyncio.to_thread(readiness, relay)
        return status == 200 if ready else "archive: " in said

    await eventually(answers, 30)
    return said


def readiness(relay: Relay) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{relay._ports['maintenance']}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:  # not yet
        return 0, ""


def test_an_archive_of_another_queue_does_not_swallow_events(shared_redis: Any, tmp_path: Path) -> None:
    """It is newer than what this stream has, so that all of that would count as archived."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 2500)
            appender = Appender(tmp_path / "a")
            appender.open()
            appender.append(0, [(f"{now_ms() + 1000}-0", event(9000))])
            appender.close()
            async with archiving(queue, tmp_path / "a") as facts:
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 2500))
                await eventually(lambda: short(shard))
            assert (await numbers(queue.shards, Archive(tmp_path / "a")))[0] == [9000, *range(2500)]
            async with archiving(queue, tmp_path / "a"):
                await add(shard, 2500, 10)
            assert (await numbers(queue.shards, Archive(tmp_path / "a")))[0] == [9000, *range(2510)]

    async def short(shard: Any) -> bool:
        return await length(shard) < 1200

    asyncio.run(scenario())
