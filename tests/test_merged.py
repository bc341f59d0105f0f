"""From archive and stream without a gap or a repetition, whatever is archived and trimmed meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mailqueue.scripts import Shard
from streams import ids
from streams.appender import Appender
from streams.archive import Archive
from streams.merged import Tape, in_order, replay
from streams.segment import Entry, SegmentDamaged
from tests.queue_kit import opened

AT = 1_767_225_600_000


def entry(number: int, shard: int = 0) -> Entry:
    return f"{AT + number}-{shard}", b'{"kind":"delivered","at":1,"n":%d}' % number


async def add(shard: Shard, first: int, count: int) -> None:
    for number in range(first, first + count):
        place, event = entry(number, shard.number)
        await shard.command("XADD", shard.events, place, "e", event)


async def trim(shard: Shard, first_kept: int) -> None:
    await shard.command("XTRIM", shard.events, "MINID", entry(first_kept, shard.number)[0])


def archive(directory: Path, first: int, count: int, *, step: int = 7, shard: int = 0) -> Archive:
    appender = Appender(directory)
    appender.open()
    try:
        group = [entry(number, shard) for number in range(first, first + count)]
        for at in range(0, count, step):
            appender.append(shard, group[at : at + step])
    finally:
        appender.close()
    return Archive(directory)


async def read_all(tape: Tape, most: int = 10) -> list[Entry]:
    found: list[Entry] = []
    while rows := await tape.next(most):
        found += rows
    return found


@pytest.mark.parametrize("trimmed", [0, 1, 40, 60])
@pytest.mark.parametrize("start", [-1, 0, 10, 39, 40, 41, 59, 60, 99])
def test_wherever_it_begins_and_whatever_is_trimmed(
    shared_redis: Any, tmp_path: Path, trimmed: int, start: int
) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 100)
            kept = archive(tmp_path / "a", 0, 60)
            await trim(shard, trimmed)
            after = entry(start)[0] if start >= 0 else "0"
            lost: list[Any] = []
            tape = Tape(shard, kept, after, lambda *what: lost.append(what))
            assert await read_all(tape) == [entry(number) for number in range(start + 1, 100)]
            assert lost == []

    asyncio.run(scenario())


def test_an_entry_trimmed_between_the_archive_and_the_stream(shared_redis: Any, tmp_path: Path) -> None:
    """At every reading all that is archived is trimmed and more is archived: the worst that maintenance can do."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 300)
            kept = archive(tmp_path / "a", 0, 10)
            done = 10

            class Racing(Tape):
                async def _stream(self, most: int) -> list[Entry]:
                    rows = await super()._stream(most)
                    await archive_and_trim()
                    return rows

                def _archived(self, most: int) -> list[Entry]:
                    found = super()._archived(most)
                    asyncio.run_coroutine_threadsafe(archive_and_trim(), loop).result(10)
                    return found

            async def archive_and_trim() -> None:
                nonlocal done
                await asyncio.to_thread(archive, tmp_path / "a", done, min(5, 300 - done))
                done = min(done + 5, 300)
                await trim(shard, done)

            loop = asyncio.get_running_loop()
            for most in (1, 3, 50):
                assert await read_all(Racing(shard, kept), most) == [entry(number) for number in range(300)]

    asyncio.run(scenario())


@pytest.mark.parametrize("has_archive", [False, True])
def test_what_may_be_lost_is_said(shared_redis: Any, tmp_path: Path, has_archive: bool) -> None:
    """Trimmed without an archive, or deleted from it."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 50)
            kept = archive(tmp_path / "a", 20, 20) if has_archive else None
            first = 20 if has_archive else 30
            await trim(shard, 30)
            lost: list[Any] = []
            tape = Tape(shard, kept, entry(10)[0], lambda *what: lost.append(what))
            assert await read_all(tape) == [entry(number) for number in range(first, 50)]
            assert lost == [(0, entry(10)[0], entry(first)[0])]

    asyncio.run(scenario())


def test_damage_is_said_after_what_stands_before_it(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await add(shard, 0, 40)
            kept = archive(tmp_path / "a", 0, 30, step=10)
            await trim(shard, 25)
            path = kept.segments()[0].path
            text = bytearray(path.read_bytes())
            text[len(text) // 2] ^= 1
            path.write_bytes(text)
            tape = Tape(shard, kept)
            assert await tape.next(100) == [entry(number) for number in range(10)]
            for _ in range(2):
                with pytest.raises(SegmentDamaged) as said:
                    await tape.next(100)
            tape.skip_to(said.value.after)
            assert await read_all(tape) == [entry(number) for number in range(20, 40)]

    asyncio.run(scenario())


def test_all_shards_in_the_order_of_their_ids(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            for shard in queue.shards:
                await add(shard, 0, 100)
                archive(tmp_path / "a", 0, 50, shard=shard.number)
                await trim(shard, 40 + shard.number)
            kept = Archive(tmp_path / "a")
            found = [record async for record in replay(queue.shards, kept, end=True)]
            assert [ids.parse(one.stream_id) for one in found] == sorted(ids.parse(one.stream_id) for one in found)
            assert len(found) == 300
            places = {0: entry(98, 0)[0], 1: entry(99, 1)[0]}
            found = [record async for record in replay(queue.shards, kept, places, end=True)]
            assert [(one.shard, one.stream_id) for one in found] == (
                [(2, entry(number, 2)[0]) for number in range(99)] + [(0, entry(99, 0)[0]), (2, entry(99, 2)[0])]
            )

    asyncio.run(scenario())


def test_it_waits_for_what_comes(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            await add(queue.shards[1], 0, 3)
            reading = replay(queue.shards, None, block_seconds=0.2)
            first = [await anext(reading) for _ in range(3)]
            assert [one.stream_id for one in first] == [entry(number, 1)[0] for number in range(3)]
            waiting = asyncio.ensure_future(anext(reading))
            await asyncio.sleep(0)
            await add(queue.shards[0], 3, 1)
            assert (await waiting).stream_id == entry(3)[0]
            await reading.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_who_may_have_more_holds_up_the_others() -> None:
    held = {0: [("1-0", b"a"), ("5-0", b"b")], 1: [("2-0", b"c"), ("3-0", b"d")], 2: []}
    assert [record.data for record in in_order(held)] == [b"a", b"c", b"d"]
    assert held == {0: [("5-0", b"b")], 1: [], 2: []}
    assert [record.data for record in in_order(held)] == [b"b"]
    assert in_order(held) == []
