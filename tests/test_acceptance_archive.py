"""The runs of the archive in small: the same code as ``make accept``, fewer events; and that their checks can fail."""

from __future__ import annotations

import pytest

from benchmarks import accept_history, accept_weekend
from benchmarks.accept_weekend import FIRST, Replayed, Sample, number_of, rise, warmed
from benchmarks.day import rows
from benchmarks.harness import scratch
from mailqueue.events import KINDS, Event
from mailqueue.message import born


def test_a_weekend_is_replayed_exactly() -> None:
    with scratch("weekend") as directory:
        outcome = accept_weekend.run(40_000, 20_000, 5000, directory, killed=False)  # memory says nothing so soon
    said = {
        check.claim.partition(":")[2] or check.claim: check for check in outcome.checks if "memory" not in check.claim
    }
    assert len(said) >= 4
    assert all(check.holds for check in said.values()), outcome.checks
    assert not outcome.full


def test_a_small_day_has_its_history() -> None:
    with scratch("history") as directory:
        outcome = accept_history.run(3000, 3, directory)
    answers = [check for check in outcome.checks if "second" not in check.claim]
    assert len(answers) == 4 and all(check.holds for check in answers), answers


def test_a_made_day_is_one_of_real_events() -> None:
    found = list(rows(300, 1_767_225_600_000, 600_000))
    events = [Event.from_json(row.data) for row in found]
    assert {event.kind for event in events} == {"received", "deferred", "delivered"} <= set(KINDS)
    assert [row.stream_id for row in found] == sorted({row.stream_id for row in found}, key=lambda id: row_order(id))
    assert all(abs(born(row.id) - row.at) < 90_000 for row in found)
    assert all(row.mailbox in (event.recipient, *event.recipients) for row, event in zip(found, events, strict=True))


def row_order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number)


@pytest.mark.parametrize(
    ("numbers", "exact"),
    [([0, 1, 2, 3], True), ([0, 1, 3], False), ([0, 1, 1, 2, 3], False), ([0, 2, 1, 3], False), ([0, 1, 2], False)],
    ids=["exact", "lost", "twice", "out of order", "the last one lost"],
)
def test_the_replays_check_sees_what_differs(numbers: list[int], exact: bool) -> None:
    found = Replayed()
    for number in numbers:
        found.take(FIRST + number)
    found.take(-1)
    assert found.exact(4) is exact


def test_running_numbers_are_read_back() -> None:
    assert number_of(b'{"kind":"delivered","at":1,"n":10000042}') == FIRST + 42
    assert number_of(b'{"kind":"alarm","at":1}') == -1


@pytest.mark.parametrize(
    ("used", "flat"), [([100] * 20, True), ([100 + n % 3 for n in range(20)], True), (list(range(100, 140)), False)]
)
def test_the_memorys_check_sees_growth(used: list[int], flat: bool) -> None:
    samples = [Sample(float(at), at * 1000, float(mb), 1000, 0.0, 50.0) for at, mb in enumerate(used)]
    assert (rise(samples) <= accept_weekend.FLAT) is flat
    assert rise(samples[:3]) > 1
    assert [sample.sent for sample in warmed(samples, 2000)] == [at * 1000 for at in range(4, len(used))]
