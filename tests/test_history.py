"""History: everything that became of a message or recipient, from archive and stream, with an index, without, or with a
damaged one."""

from __future__ import annotations

import asyncio
import io
import random
from array import array
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailqueue.events import Event
from mailqueue.message import new_id
from mailqueue.trimming import trim
from streams import index, segment
from streams.appender import Appender
from streams.archive import Archive
from streams.history import _made, history
from streams.index import Covered
from streams.indexing import Indexer
from streams.segment import Entry
from tests.queue_kit import message, now_ms, opened

DAY = 1_767_225_600_000
NAMES = ("Ana@Gob.test", "ana@gob.test", "luz.e@xn--and-6ma2c.test", "Luz.E@ñandú.test", '"a b"@x.test', "josé@x.test")


def written(directory: Path, groups: list[list[Entry]], *, indexed: bool = True, shard: int = 0) -> Archive:
    appender, indexer = Appender(directory), Indexer()
    appender.open()
    try:
        for group in groups:
            for one, _ in appender.append(shard, group):
                if indexed:
                    indexer.catch_up(one.path)
    finally:
        appender.close()
    return Archive(directory)


def mail(count: int, step: int = 1) -> list[Event]:
    """Of each message received and delivered, recipients in turn, over several days."""
    found = []
    for number in range(count):
        address, at = NAMES[number % len(NAMES)], DAY + number * step
        found.append(Event("received", at, id=f"m{number}", account="rrhh", recipients=("otro@x.test", address)))
        for recipient in ("otro@x.test", address):
            found.append(Event("delivered", at, id=f"m{number}", account="rrhh", recipient=recipient))
    return found


def parted(events: list[Event], size: int) -> list[list[Entry]]:
    rows = [(f"{event.at}-{number % 3}", event.to_json()) for number, event in enumerate(events)]
    return [rows[at : at + size] for at in range(0, len(rows), size)]


@pytest.mark.parametrize("state", ["indexed", "none", "torn", "behind", "of another", "damaged"])
def test_whatever_the_index_is_like_the_answer_is_the_same(shared_redis: Any, tmp_path: Path, state: str) -> None:
    events = mail(600, 400_000)
    archive = written(tmp_path / "a", parted(events, 50), indexed=state != "none")
    for one in archive.segments():
        beside = index.path_of(one.path)
        if state == "torn":
            beside.write_bytes(beside.read_bytes()[: beside.stat().st_size // 2])
        elif state == "of another":
            text = bytearray(beside.read_bytes())
            text[20] ^= 1
            beside.write_bytes(text)
        elif state == "behind":
            with beside.open("r+b") as file, one.path.open("rb") as of:
                head = segment.read_head(of)
                assert head is not None
                first = next(index.blocks(file, head.tag))
                file.truncate(first.after)
        elif state == "damaged":
            text = bytearray(beside.read_bytes())
            for at in range(len(text) - 400, len(text), 8):
                text[at] ^= 0x40
            beside.write_bytes(text)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for number in (0, 1, 299, 598, 599):
                found = await history(queue.shards, archive, id=f"m{number}")
                assert [(e.kind, e.at) for e in found] == [(e.kind, e.at) for e in events if e.id == f"m{number}"]
            for names, spelled in (((0, 1), "ANA@GOB.TEST"), ((2, 3), "luz.e@ÑANDÚ.test"), ((4,), '"A b"@x.test')):
                found = await history(queue.shards, archive, recipient=spelled)
                there = [e for e in events if any(NAMES[n] in (e.recipient, *e.recipients) for n in names)]
                assert sorted(found, key=orjson_of) == sorted(there, key=orjson_of), spelled
                assert [e.at for e in found] == sorted(e.at for e in found)

    asyncio.run(scenario())


def orjson_of(event: Event) -> bytes:
    return event.to_json()


def test_from_the_archive_and_the_stream_together(shared_redis: Any, tmp_path: Path) -> None:
    """Archived and still in the stream: told once. Not archived yet: told, too."""

    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            events = mail(100)
            for shard in queue.shards:
                rows = [row for group in parted(events, 1000) for row in group]
                for place, event in rows:
                    await shard.command("XADD", shard.events, place, "e", event)
                written(tmp_path / "a", [rows[:150], rows[150:201]], shard=shard.number)
                await shard.command("XTRIM", shard.events, "MINID", rows[120][0])
            archive = Archive(tmp_path / "a")
            found = await history(queue.shards, archive, recipient="otro@x.test")
            assert [e.at for e in found] == sorted(
                [e.at for e in events if "otro@x.test" in (e.recipient, *e.recipients)] * 2
            )
            newest = await history(queue.shards, archive, recipient="otro@x.test", limit=7)
            assert newest == found[-7:]
            some = await history(queue.shards, archive, recipient="otro@x.test", since_ms=DAY + 20, until_ms=DAY + 40)
            assert [e.at for e in some] == [e.at for e in found if 20 <= e.at - DAY <= 40]
            assert len(some) == 21 * 2 * 2
            some = await history(queue.shards, archive, account="rrhh", since_ms=DAY + 20, until_ms=DAY + 20)
            assert len(some) == 6
            assert await history(queue.shards, archive, id="m3", account="otra") == []
            assert await history(queue.shards, archive, id="m3", campaign="otra") == []
            assert await history(queue.shards, archive, id="none") == []
            without = await history(queue.shards, None, recipient="otro@x.test")
            assert [e.at for e in without] == [e.at for e in found if e.at - DAY >= 40]

    asyncio.run(scenario())


def test_an_id_says_when_it_was_made(shared_redis: Any, tmp_path: Path) -> None:
    made = new_id()
    assert abs(_made(made) - now_ms()) < 1000
    assert [_made(text) for text in ("", "m1", "!" * 20, "ñ" * 20, "v" * 20)] == [0, 0, 0, 0, 0]

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.shards[0].command("XADD", queue.shards[0].events, "*", "e", Event("held", 5, id=made).to_json())
            assert [e.kind for e in await history(queue.shards, None, id=made)] == ["held"]

    asyncio.run(scenario())


KEYS = st.lists(
    st.lists(st.integers(0, 2**40 - 1) | st.integers(0, 300), max_size=40, unique=True), min_size=1, max_size=6
)


@given(KEYS, st.integers(1, 50))
def test_an_index_finds_every_batch_and_no_other(groups: list[list[int]], bucket: int) -> None:
    covered = [
        Covered(100 * number, 100 * number + 100, array("Q", sorted(hashes))) for number, hashes in enumerate(groups)
    ]
    with patch.object(index, "BUCKET", bucket):
        text = index.block(covered, {"x": 1}, segment.HEAD_BYTES)
    one = index._block_at(io.BytesIO(text), 0)
    assert one is not None and one.after == len(text)
    assert (one.begin, one.end, one.kinds) == (segment.HEAD_BYTES, 100 * len(groups), {"x": 1})
    assert index.is_sound(io.BytesIO(text), one)
    for hash_ in {hash_ for group in groups for hash_ in group} | {7, 2**40 - 1}:
        assert list(one.find(io.BytesIO(text), hash_)) == [100 * n for n, group in enumerate(groups) if hash_ in group]


def test_an_index_torn_anywhere_is_made_whole(tmp_path: Path) -> None:
    archive = written(tmp_path / "a", parted(mail(20), 10))
    path = archive.segments()[0].path
    beside = index.path_of(path)
    text, dice = beside.read_bytes(), random.Random(1)
    for _ in range(40):
        beside.write_bytes(text[: dice.randrange(len(text))])
        Indexer().catch_up(path)
        with beside.open("rb") as file, path.open("rb") as of:
            head = segment.read_head(of)
            assert head is not None
            blocks = list(index.blocks(file, head.tag))
            assert blocks[-1].end == path.stat().st_size
            assert all(index.is_sound(file, block) for block in blocks)
    assert not Indexer().catch_up(path)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Ana@Gob.test", "ana@gob.TEST", True),
        ("ana@gob.test.", "ana@gob.test", True),
        ("luz@ñandú.test", "LUZ@xn--and-6ma2c.test", True),
        ("ana+x@gob.test", "ana@gob.test", False),
        ("postmaster", "Postmaster", True),
        ("ana@gob.test", "ana@gob.pe", False),
    ],
)
def test_what_is_one_mailbox(first: str, second: str, same: bool) -> None:
    assert (index.recipient_key(first) == index.recipient_key(second)) is same


def test_an_archive_that_is_younger_than_what_was_trimmed(shared_redis: Any, tmp_path: Path) -> None:
    """Or that lies on another host: what the stream has is told, and nobody is waited for."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for _ in range(5):
                await queue.put(sent := message("a@x.test"))
            await trim(queue.shards[0], 2)
            for directory in (tmp_path, tmp_path / "none"):
                found = await history(queue.shards, Archive(directory), id=sent.envelope.id)
                assert [event.kind for event in found] == ["received"]

    asyncio.run(scenario())
