"""Positions and how far a shard is acknowledged: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.positions import by_shard, date_ms, parts, position
from streams.progress import Progress


@given(st.lists(st.booleans(), max_size=40), st.randoms())
def test_a_position_is_reached_when_everything_up_to_it_is_acknowledged(given_: list[bool], rng: object) -> None:
    """Against the plain definition, acknowledged in any order."""
    progress = Progress("0-0")
    ids = [f"{n + 1}-0" for n in range(len(given_))]
    for id, wanted in zip(ids, given_, strict=True):
        (progress.give if wanted else progress.skip)(id)
    open_ = [id for id, wanted in zip(ids, given_, strict=True) if wanted]
    rng.shuffle(open_)  # type: ignore[attr-defined]
    while True:
        first = min((ids.index(id) for id in open_), default=len(ids))
        assert progress.reached == (ids[first - 1] if first else "0-0")
        assert progress.unacked == len(open_)
        if not open_:
            return
        assert progress.ack(open_.pop())


def test_an_acknowledgement_counts_once() -> None:
    progress = Progress("0-0")
    progress.give("1-0")
    assert [progress.ack("1-0"), progress.ack("1-0"), progress.ack("9-9")] == [True, False, False]
    assert progress.reached == "1-0"


def test_what_is_passed_over_takes_no_room() -> None:
    progress = Progress("0-0")
    progress.give("1-0")
    for n in range(2, 1000):
        progress.skip(f"{n}-0")
    progress.give("1000-0")
    assert progress.span == 3
    progress.ack("1-0")
    assert (progress.reached, progress.span) == ("999-0", 1)


def test_positions_say_their_shard() -> None:
    assert parts(position(3, "1732612345678-5")) == (3, "1732612345678-5")
    assert by_shard(["1-5-0", "0-7-1"], 2) == {1: "5-0", 0: "7-1"}


@pytest.mark.parametrize(
    ("positions", "complaint"),
    [
        (["2-5-0"], "there is no shard 2"),
        (["0-5-0", "0-6-0"], "shard 0 twice"),
        (["5-0"], "no position"),
        (["0-5-0 "], "no position"),
        (["-0-5"], "no position"),
        (["$"], "no position"),
    ],
)
def test_what_is_no_position_is_said(positions: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        by_shard(positions, 2)


def test_dates() -> None:
    assert date_ms("2026-11-25T00:00:00+00:00") == 1795564800000
    assert date_ms("2026-11-25T08:30") - date_ms("2026-11-25") == (8 * 60 + 30) * 60_000
    with pytest.raises(ValueError, match="oldest"):
        date_ms("yesterday")
