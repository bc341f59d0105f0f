"""Who could not be reached, and until when: pure, by tables."""

from __future__ import annotations

import random

import pytest

from delivery.away import AWAY_SECONDS, Absences
from delivery.outcome import lost
from delivery.reply import Phase

WHY = lost(Phase.CONNECT, "refused")
KEY = ("default", "mx.test")


def test_steps_grow_and_the_last_repeats() -> None:
    book, at = Absences(random.Random(3)), 1_000_000
    for times in range(1, 9):
        away = book.note(KEY, WHY, at)
        step = AWAY_SECONDS[min(times, len(AWAY_SECONDS)) - 1]
        assert away.times == times
        assert 0.9 * step * 1000 - 1 <= away.until_ms - at <= 1.1 * step * 1000
        at = away.until_ms


def test_over_at_its_time_and_forgotten_when_reached() -> None:
    book = Absences(random.Random(3))
    away = book.note(KEY, WHY, 0)
    assert book.now(KEY, away.until_ms - 1) is away
    assert book.now(KEY, away.until_ms) is None
    book.reached(KEY)
    assert book.now(KEY, 1) is None
    assert book.note(KEY, WHY, 0).times == 1


@pytest.mark.parametrize("step", [3_600_000, 86_400_000])
def test_a_clock_set_back_makes_no_long_absence(step: int) -> None:
    book = Absences(random.Random(3))
    book.note(KEY, WHY, 10 * step)
    assert book.now(KEY, 10 * step - step) is None


def test_bounded() -> None:
    book = Absences(random.Random(3), most=2)
    for name in "abc":
        book.note(("p", name), WHY, 0)
    assert book.now(("p", "a"), 1) is None
    assert book.now(("p", "c"), 1) is not None
