"""The archive's disk: not mounted, replaced, cut short, full. Nothing is begun anew, trimmed or lost; it goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailqueue.alarms import raised
from mailqueue.events import Event
from streams import holes
from streams.archive import Archive
from streams.starts import last_id
from tests.archive_kit import add, archiver, archiving, holds, length, numbers, value
from tests.queue_kit import eventually, opened


def test_an_archive_that_is_not_mounted_is_not_begun_anew(
    shared_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the start nor at work: what lies in the mount point would hide what was archived, and leave a hole."""
    monkeypatch.setattr("maintenance.archiving.RETRY_SECONDS", 0.05)

    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            shard = queue.shards[0]
            directory, archive = tmp_path / "a", Archive(tmp_path / "a")
            for name in ("disk", "mount point"):
                (tmp_path / name).mkdir()
            leads_to(directory, "disk")
            async with archiving(queue, directory) as facts:
                await add(shard, 0, 3000)
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 3000))
                leads_to(directory, "mount point")
                await add(shard, 3000, 1000)
                await eventually(lambda: said(shard, "shard 0: all to "))
                assert archive.segments() == []
            async with archiving(queue, directory) as facts:
                ours = {"name": "archive"}
                await eventually(lambda: holds(lambda: facts.get_sample_value("tambo_alarm", ours) == 1))
                await eventually(lambda: said(shard, "accept-loss"))
                assert (archive.segments(), value(facts, "tambo_archive_leads")) == ([], 0)
                leads_to(directory, "disk")
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") >= 1000))
                await eventually(lambda: said(shard, ""))
            assert await numbers(queue.shards, archive) == {0: list(range(4000)), 1: []}

    asyncio.run(scenario())


def test_a_disk_that_is_back_just_before_the_stop_gets_all(shared_redis: Any, tmp_path: Path) -> None:
    """It is tried again at the stop, whenever it would have been."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            directory = tmp_path / "a"
            for name in ("disk", "mount point"):
                (tmp_path / name).mkdir()
            leads_to(directory, "disk")
            async with archiving(queue, directory) as facts:
                await add(shard, 0, 100)
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 100))
                leads_to(directory, "mount point")
                await add(shard, 100, 100)
                await eventually(lambda: said(shard, "shard 0: all to "))
                leads_to(directory, "disk")
            assert Archive(directory).newest(0) == await last_id(shard)

    asyncio.run(scenario())


@pytest.mark.parametrize(("more", "trimmed"), [(500, False), (2000, True)])
def test_what_a_cut_archive_lacks_is_read_again_or_said(
    shared_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, trimmed: bool
) -> None:
    """Read again while the stream has it."""
    monkeypatch.setattr("maintenance.archiving.RETRY_SECONDS", 0.05)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            archive = Archive(tmp_path / "a")
            async with archiving(queue, tmp_path / "a") as facts:
                await add(shard, 0, 10)
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 10))
            size = archive.segments(0)[0].path.stat().st_size
            async with archiving(queue, tmp_path / "a") as facts:
                await add(shard, 10, more)
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == more))
            os.truncate(archive.segments(0)[0].path, size)
            async with archiving(queue, tmp_path / "a") as facts:
                if trimmed:
                    await eventually(lambda: said(shard, "shard 0: "))
                    found = await holes.holes(queue.shards, archive)
                    assert [one.after for one in found] == [archive.newest(0)]
                    await holes.accept(shard, found, Event("audit", 1, verb="archive accept-loss"))
                await add(shard, 10 + more, 5)
                await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") >= 5))
                await eventually(lambda: said(shard, ""))
            there = (await numbers(queue.shards, archive))[0]
            assert there[:10] == list(range(10)) and there[-5:] == list(range(10 + more, 15 + more))
            assert (there == list(range(15 + more))) is not trimmed

    asyncio.run(scenario())


def leads_to(directory: Path, name: str) -> None:
    """At once, as mounting does."""
    (link := directory.with_name("link")).symlink_to(name)
    link.replace(directory)


async def said(shard: Any, words: str) -> bool:
    """By the alarm; "" = there is none."""
    alarm = (await raised(shard)).get("archive")
    return words in alarm.reason if alarm is not None and words else alarm is None and not words


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Writing beyond fails in the middle, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_trims_nothing_and_goes_on_by_itself(
    shared_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maintenance.archiving.RETRY_SECONDS", 0.05)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 2000)
            archive = Archive(tmp_path / "a")
            work, facts = archiver(queue, tmp_path / "a")
            stop = asyncio.Event()
            task = asyncio.create_task(work.run(stop))
            await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") == 2000))
            before = archive.newest(0)
            size = archive.segments()[0].path.stat().st_size
            with files_at_most(size + 1000):
                await add(shard, 2000, 3000)
                await eventually(lambda: on(shard))
                assert "File too large" in work.trouble
                assert archive.newest(0) == before
                assert await length(shard) >= 3000
                assert value(facts, "tambo_archive_behind_seconds") > 0
            await eventually(lambda: holds(lambda: value(facts, "tambo_archived_entries_total") >= 5000))
            await eventually(lambda: off(shard))
            assert work.trouble == ""
            stop.set()
            await task
            assert await numbers(queue.shards, archive) == {0: list(range(5000))}

    async def on(shard: Any) -> bool:
        return "archive" in await raised(shard)

    async def off(shard: Any) -> bool:
        return "archive" not in await raised(shard)

    asyncio.run(scenario())
