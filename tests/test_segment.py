"""Segments: what goes in comes out, a torn tail is known at every byte, damage is said and never skipped in silence."""

from __future__ import annotations

import datetime
import io
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from streams import ids, segment
from streams.appender import Appender, ArchiveBusy
from streams.archive import Archive, path_of
from streams.segment import Entry, SegmentDamaged

DAY = 1_767_225_600_000  # 2026-01-01 UTC
FIRST = datetime.date(2026, 1, 1)


def entries(first: int, count: int, at: int = DAY) -> list[Entry]:
    return [
        (f"{at + n}-{n % 3}", b'{"kind":"delivered","at":%d,"n":%d}' % (at, n)) for n in range(first, first + count)
    ]


def written(directory: Path, *groups: list[Entry], shard: int = 0) -> Path:
    appender = Appender(directory)
    appender.open()
    try:
        for group in groups:
            appender.append(shard, group)
    finally:
        appender.close()
    return path_of(directory, shard, ids.day(ids.parse(groups[-1][-1][0])))


IDS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
EVENTS = st.binary(max_size=80) | st.sampled_from(
    [b"{}", b"[]", b'{"a":1}', b'{"base64":"x"}', b'{"a":"\r"}', b'{"a":\n1}']
)


@given(st.lists(st.tuples(IDS, EVENTS), min_size=1, max_size=20))
def test_whatever_stood_in_the_stream_comes_back(pairs: list[tuple[ids.StreamId, bytes]]) -> None:
    group = [(ids.text(place), event) for place, event in sorted(pairs)]
    file = io.BytesIO(segment.head(3) + segment.batch(group) + segment.batch(group, level=9))
    head = segment.read_head(file)
    assert head is not None and head.shard == 3
    found = list(segment.batches(file))
    assert [one.count for one in found] == [len(group)] * 2
    for one in found:
        assert list(segment.entries(segment.lines(file, one))) == group
        assert (ids.text(one.first), ids.text(one.last)) == (group[0][0], group[-1][0])


@given(IDS)
def test_ids(place: ids.StreamId) -> None:
    assert ids.parse(ids.text(place)) == place
    assert ids.preceding(ids.following(place)) == place
    assert ids.following(place) > place
    assert ids.preceding(place) < place or place == ids.NONE


@pytest.mark.parametrize("text", ["x", "-", "1-", "-1", "1-2-3", "١", f"{2**64}-0", "1.5"])
def test_what_is_no_id_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no stream id"):
        ids.parse(text)


def test_any_zstd_reads_the_lines_each_the_event_with_its_id_in_front(tmp_path: Path) -> None:
    path = written(tmp_path / "a", entries(0, 2), entries(2, 1))
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        text = reader.read()
    assert text.splitlines()[0] == b'{"stream_id":"%d-0","kind":"delivered","at":%d,"n":0}' % (DAY, DAY)
    assert len(text.splitlines()) == 3
    if zstd := shutil.which("zstd"):
        assert subprocess.run([zstd, "-dc", path], check=True, capture_output=True).stdout == text


def test_a_tail_torn_at_any_byte_is_cut_and_written_again(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    path = written(directory, entries(0, 5))
    good = path.stat().st_size
    written(directory, entries(5, 4))
    text = path.read_bytes()
    archive = Archive(directory)
    for length in range(good, len(text)):
        path.write_bytes(text[:length])
        assert list(archive.read(0)) == entries(0, 5), length
        assert archive.newest(0) == entries(4, 1)[0][0]
        appender = Appender(directory)
        appender.open()
        try:
            assert appender.resume(0) == entries(4, 1)[0][0]
            assert path.stat().st_size == good
            appender.append(0, entries(5, 4))
        finally:
            appender.close()
        assert list(archive.read(0)) == entries(0, 9), length


def test_a_last_batch_whose_pages_never_reached_the_disk_is_cut(tmp_path: Path) -> None:
    """Its length did: the file ends in zeros."""
    directory = tmp_path / "a"
    path = written(directory, entries(0, 5), entries(5, 4))
    text = path.read_bytes()
    with path.open("rb") as file:
        _, last = segment.batches(file)
    for begin in range(last.offset, len(text)):
        damaged = text[:begin] + bytes(len(text) - begin)
        if damaged == text:
            continue
        path.write_bytes(damaged)
        assert list(Archive(directory).read(0)) == entries(0, 5), begin
        appender = Appender(directory)
        appender.open()
        try:
            assert appender.resume(0) == entries(4, 1)[0][0], begin
        finally:
            appender.close()


def test_damage_in_the_middle_is_said_and_never_cut(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    path = written(directory, entries(0, 5), entries(5, 4), entries(9, 3))
    text = path.read_bytes()
    with path.open("rb") as file:
        _, middle, last = segment.batches(file)
    for offset in range(middle.offset, middle.end):
        path.write_bytes(text[:offset] + bytes([text[offset] ^ 0x55]) + text[offset + 1 :])
        reading = Archive(directory).read(0)
        assert [next(reading) for _ in range(5)] == entries(0, 5)
        with pytest.raises(SegmentDamaged) as said:
            next(reading)
        assert list(Archive(directory).read(0, said.value.after)) == entries(9, 3), offset
        appender = Appender(directory)
        appender.open()
        try:
            assert appender.resume(0) == ids.text(last.last)
        finally:
            appender.close()
        assert path.stat().st_size == len(text)


def test_a_segment_of_a_later_version_is_refused_not_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "a", entries(0, 5))
    head = bytearray(segment.head(0))
    head[16] = 9
    body = bytes(head[8:-4])
    path.write_bytes(segment._framed(0x184D2A5A, body) + path.read_bytes()[len(head) :])
    with path.open("rb") as file, pytest.raises(SegmentDamaged, match="format 9"):
        segment.read_head(file)


def test_a_day_a_segment_by_utc(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    group = entries(0, 3, DAY - 2)
    written(directory, group)
    assert [one.day for one in Archive(directory).segments()] == [datetime.date(2025, 12, 31), FIRST]
    assert list(Archive(directory).read(0)) == group


def test_no_batch_is_larger_than_a_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in one piece it would be taken for a torn tail, and cut."""
    monkeypatch.setattr(segment, "MOST_RAW", 40_000)
    monkeypatch.setattr("streams.appender.MOST_BYTES", 10_000)
    large = [(f"{DAY + n}-0", b'{"kind":"received","text":"%s"}' % (b"x" * 3000)) for n in range(30)]
    appender = Appender(tmp_path / "a")
    appender.open()
    try:
        batches = [batch for _, batch in appender.append(0, large)]
        assert appender.resume(0) == large[-1][0]
    finally:
        appender.close()
    assert [batch.raw <= 40_000 for batch in batches] == [True] * 10
    assert list(Archive(tmp_path / "a").read(0)) == large


def test_from_every_place_on(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    group = entries(0, 30, DAY - 15)
    written(directory, group[:7], group[7:8], group[8:20], group[20:])
    archive = Archive(directory)
    for at in range(len(group)):
        assert list(archive.read(0, group[at][0])) == group[at + 1 :]
        assert list(archive.read_from(0, DAY - 15 + at)) == group[at:]
    assert (archive.oldest(0), archive.newest(0)) == (group[0][0], group[-1][0])
    assert (archive.oldest(1), archive.newest(1), list(archive.read(1))) == ("", "", [])
    assert list(Archive(tmp_path / "none").read(0)) == []


def test_a_reader_sees_what_is_written_after_it_began(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    written(directory, entries(0, 3))
    reading = Archive(directory).read(0)
    assert next(reading) == entries(0, 1)[0]
    written(directory, entries(3, 3), entries(6, 2, DAY + 86_400_000))
    assert list(reading) == entries(1, 5) + entries(6, 2, DAY + 86_400_000)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = Appender(tmp_path / "a"), Appender(tmp_path / "a")
    first.open()
    try:
        with pytest.raises(ArchiveBusy, match="another process writes"):
            second.open()
    finally:
        first.close()
    second.open()
    second.close()


def test_a_file_that_changes_under_its_writer_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    appender = Appender(directory)
    appender.open()
    try:
        appender.append(0, entries(0, 3))
        path = path_of(directory, 0, FIRST)
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(OSError, match="changed under our hands"):
            appender.append(0, entries(3, 3))
        assert appender.resume(0) == entries(2, 1)[0][0]
        appender.append(0, entries(3, 3))
    finally:
        appender.close()
    assert list(Archive(directory).read(0)) == entries(0, 6)
