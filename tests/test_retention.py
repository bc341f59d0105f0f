"""Retention: kinds go when their time is over, closed segments are packed, readers and the place to go on stay."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from maintenance.retaining import Retaining, today
from streams import index, segment
from streams.archive import Archive
from streams.history import history
from streams.retention import Retention, Terms, kind_of
from streams.segment import Entry
from tests.archive_kit import archiving
from tests.queue_kit import eventually, opened
from tests.test_history import written

DAY_MS = 86_400_000
BEGIN = 1_767_225_600_000
FIRST = datetime.date(2026, 1, 1)
KINDS = ("received", "deferred", "delivered")


def days(count: int, a_day: int = 30) -> list[Entry]:
    found = []
    for day in range(count):
        for number in range(a_day):
            at, kind = BEGIN + day * DAY_MS + number, KINDS[number % 3]
            event = {"kind": kind, "at": at, "id": f"m{day}-{number}", "metadata": {"kind": "deferred"}}
            found.append((f"{at}-0", orjson.dumps(event)))
    return found


def kept(archive: Archive) -> list[tuple[datetime.date, str]]:
    """Day and kind of what is left, each once, in order."""
    found = []
    for _, event in archive.read(0):
        record = orjson.loads(event)
        day = datetime.datetime.fromtimestamp(record["at"] / 1000, datetime.UTC).date()
        if (day, record["kind"]) not in found:
            found.append((day, record["kind"]))
    return found


def archive_of(directory: Path, entries: list[Entry], step: int = 7) -> Archive:
    return written(directory, [entries[at : at + step] for at in range(0, len(entries), step)])


def looked(archive: Archive, terms: Terms, age: int) -> int:
    """``age``: of the first day."""
    return Retention(archive, pause=lambda _: None).look(terms, FIRST + datetime.timedelta(age))


@pytest.mark.parametrize(
    ("terms", "age", "over"),
    [
        (Terms(), 9999, set()),
        (Terms(30), 30, set()),
        (Terms(30), 31, {"received", "deferred", "delivered"}),
        (Terms(30, {"delivered": 0}), 31, {"received", "deferred"}),
        (Terms(30, {"delivered": 90}), 91, {"received", "deferred", "delivered"}),
        (Terms(0, {"deferred": 7}), 8, {"deferred"}),
        (Terms(0, {"deferred": 7}), 7, set()),
    ],
)
def test_whose_time_is_over(terms: Terms, age: int, over: set[str]) -> None:
    assert terms.over(KINDS, age) == over


def test_kinds_go_one_by_one_then_the_day(tmp_path: Path) -> None:
    entries = days(4)
    archive = archive_of(tmp_path / "a", entries)
    terms = Terms(20, {"deferred": 10, "delivered": 30})
    dates = [FIRST + datetime.timedelta(day) for day in range(4)]
    everything = [(day, kind) for day in dates for kind in KINDS]
    assert looked(archive, terms, 10) == 3  # packed, the last day is still written
    assert list(archive.read(0)) == entries
    assert looked(archive, terms, 10) == 0
    assert looked(archive, terms, 12) == 2
    assert kept(archive) == [(d, k) for d, k in everything if k != "deferred" or d >= dates[2]]
    assert looked(archive, terms, 21) == 2
    assert (dates[0], "received") not in kept(archive)
    assert looked(archive, terms, 34) == 3
    assert kept(archive) == everything[-3:]
    assert [one.day for one in archive.segments()] == dates[3:]
    assert archive.newest(0) == entries[-1][0]
    assert {path.stat().st_mode & 0o007 for path in (tmp_path / "a").iterdir()} == {0}
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["2026-01-04.q0.index", "2026-01-04.q0.jsonl.zst", "lock"]


def test_ids_and_order_stay_and_an_open_reader_is_not_disturbed(tmp_path: Path) -> None:
    entries = days(3, 300)
    archive = archive_of(tmp_path / "a", entries, 50)
    reading = archive.read(0)
    begun = [next(reading) for _ in range(20)]
    assert looked(archive, Terms(0, {"deferred": 1}), 5) == 2
    assert begun + list(reading)[: 300 - 20] == entries[:300]
    left = [
        (place, event)
        for place, event in entries
        if place >= entries[600][0] or not event.startswith(b'{"kind":"deferred"')
    ]
    assert list(archive.read(0)) == left
    middle = entries[450][0]
    assert list(archive.read(0, middle)) == [entry for entry in left if entry[0] > middle]


def test_packed_segments_have_one_index_that_finds(shared_redis: Any, tmp_path: Path) -> None:
    entries = days(2, 3000)
    archive = archive_of(tmp_path / "a", entries, 100)
    before = archive.segments()[0].path.stat().st_size
    assert looked(archive, Terms(), 5) == 1
    path = archive.segments()[0].path
    assert path.stat().st_size < before
    assert {each.stat().st_mode & 0o777 for each in (path, index.path_of(path))} == {0o640}
    with path.open("rb") as file, index.path_of(path).open("rb") as beside:
        head = segment.read_head(file)
        assert head is not None and head.flags & segment.PACKED
        (block,) = index.blocks(beside, head.tag)
        assert (block.begin, block.end) == (segment.HEAD_BYTES, path.stat().st_size)
        assert block.kinds == dict.fromkeys(KINDS, 1000)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for number in (0, 1500, 2999):
                (found,) = await history(queue.shards, archive, id=f"m0-{number}")
                assert found.at == BEGIN + number

    asyncio.run(scenario())


@pytest.mark.parametrize("lacking", [False, True])
def test_a_damaged_index_is_made_anew(tmp_path: Path, lacking: bool) -> None:
    archive = archive_of(tmp_path / "a", days(4))
    retention = Retention(archive, pause=lambda _: None)
    assert retention.look(Terms(), FIRST + datetime.timedelta(5)) == 3
    paths = [index.path_of(one.path) for one in archive.segments()[:-1]]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        if lacking:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    for _ in range(3):  # one at each pass
        retention.look(Terms(), FIRST + datetime.timedelta(5))
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("where", ["middle", "tail", "head"])
def test_a_damaged_segment_is_kept_as_it_is(tmp_path: Path, where: str) -> None:
    archive = archive_of(tmp_path / "a", days(2))
    path = archive.segments()[0].path
    text = bytearray(path.read_bytes())
    at = {"middle": len(text) // 2, "tail": len(text) - 2, "head": 9}[where]
    text[at] ^= 1
    path.write_bytes(text)
    for _ in range(2):
        assert looked(archive, Terms(0, {"deferred": 1}), 100) == 0
    assert path.read_bytes() == text


def test_stopped_in_the_middle_nothing_has_happened(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a", days(2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for asked in range(2, 5):
        answers = iter([False] * asked + [True] * 100)
        retention = Retention(archive, lambda answers=answers: next(answers), pause=lambda _: None)  # type: ignore[misc]
        assert retention.look(Terms(0, {"deferred": 1}), FIRST + datetime.timedelta(100)) == 0
        assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"stream_id":"1-0","kind":"held","at":1}', "held"),
        (b'{"stream_id":"1-0","at":1,"metadata":{"kind":"no"},"kind":"held"}', "held"),
        (b'{"stream_id":"1-0","at":1}', ""),
        (b'{"stream_id":"1-0","base64":"e30="}', ""),
        (b"{", ""),
    ],
)
def test_the_kind_of_a_line(line: bytes, kind: str) -> None:
    assert kind_of(line) == kind


@pytest.mark.parametrize(
    ("clocks", "day"),
    [((1_767_225_600.0, 1_767_225_599.0), "2025-12-31"), ((1_767_225_600.0, 4_000_000_000.0), "2026-01-01")],
    ids=["utc", "run-away"],
)
def test_today_is_by_the_clock_that_is_behind(clocks: tuple[float, float], day: str) -> None:
    assert today(*clocks).isoformat() == today(*reversed(clocks)).isoformat() == day


def test_where_the_archiver_is_there_is_retention(shared_redis: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Old days are thinned while the day goes on; events so old raise an alarm, which is the day's own."""
    monkeypatch.setattr("maintenance.retaining.EVERY_SECONDS", 0.05)
    monkeypatch.setattr(Retaining.__init__, "__kwdefaults__", {"first_seconds": 0.05})

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            archive = Archive(tmp_path / "a")
            for place, event in days(3):
                await shard.command("XADD", shard.events, place, "e", event)
            async with archiving(queue, tmp_path / "a", days_by_kind={"deferred": 1, "nothing": 3}):
                await eventually(lambda: thinned(archive))

    async def thinned(archive: Archive) -> bool:
        days_and_kinds = kept(archive)
        return bool(days_and_kinds) and days_and_kinds[-1][1] == "alarm" and len(days_and_kinds) == 2 * 3 + 1

    asyncio.run(scenario())
