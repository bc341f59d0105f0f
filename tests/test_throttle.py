"""GCRA: what is granted when, and that no window ever holds more than the rate and one burst."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipreputation.throttle import Decision, Rate, gcra

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("rate", "ahead", "asked", "expected"),
    [
        (Rate(1, 1.0), 0.0, 1, (1, 1.0, 0.0)),
        (Rate(1, 1.0), 0.0, 2, (1, 1.0, 1.0)),
        (Rate(1, 1.0), 1.0, 1, (0, 1.0, 1.0)),
        (Rate(1, 1.0), 0.25, 1, (0, 0.25, 0.25)),
        (Rate(100, 60.0, 10), 0.0, 25, (10, 6.0, 0.6)),
        (Rate(100, 60.0, 10), 5.4, 1, (1, 6.0, 0.0)),
        (Rate(100, 60.0, 10), 5.5, 1, (0, 5.5, 0.1)),
        (Rate(3, 1.0), 0.0, 1, (1, 0.333334, 0.0)),  # rounded up: never faster
        (Rate(5, 1.0), -3600.0, 9, (1, 0.2, 0.2)),  # an idle hour saves nothing up
        (Rate(0, 1.0), 0.0, 3, (0, 0.0, 1.0)),
        (Rate(1, 1.0), 0.0, 0, (0, 0.0, 0.0)),
        (Rate(100, 1.0), 3600.0, 1, (0, 0.01, 0.01)),  # raised from 1/h: full, but at the new rate
        (Rate(1, 3600.0, 5), 1.0, 9, (4, 14401.0, 1.0)),
    ],
)
def test_table(rate: Rate, ahead: float, asked: int, expected: tuple[int, float, float]) -> None:
    """``ahead`` = TAT before, seconds from now; expected = granted, the same after, wait."""
    granted, ahead_after, wait = expected
    decision = gcra(NOW + ahead, NOW, asked, rate)
    assert decision.granted == granted
    assert decision.tat - NOW == pytest.approx(ahead_after, abs=1e-6)
    assert decision.wait == pytest.approx(wait, abs=1e-6)


def test_never_used() -> None:
    assert gcra(0.0, NOW, 1, Rate(1, 2.0)) == Decision(1, NOW + 2.0, 0.0)


@pytest.mark.parametrize("wrong", [(-1, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0), (1, 1e9, 1), (1, 86_400.0, 100_000)])
def test_wrong_rates(wrong: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match=r"allowed|at most"):
        Rate(*wrong)


rates = st.builds(Rate, st.integers(1, 1000), st.sampled_from([0.5, 1.0, 7.0, 60.0, 3600.0]), st.integers(1, 50))


@given(rates, st.lists(st.tuples(st.floats(0, 2), st.integers(1, 80)), min_size=1, max_size=60))
def test_no_window_exceeds_the_rate_and_one_burst(rate: Rate, calls: list[tuple[float, int]]) -> None:
    tat, now, log = 0.0, NOW, []
    for pause, asked in calls:
        now += pause * rate.period / 10
        decision = gcra(tat, now, asked, rate)
        tat = decision.tat
        log.append((now, decision.granted))
    for start in range(len(log)):
        total = 0
        for moment, granted in log[start:]:
            total += granted
            window = moment - log[start][0] + 1e-6
            assert total <= rate.burst + rate.limit * window / rate.period + 1e-6


@given(rates, st.floats(-10, 10), st.integers(1, 200))
def test_waiting_as_told_lets_one_through_and_no_less_does(rate: Rate, ahead: float, asked: int) -> None:
    first = gcra(NOW + ahead * rate.period, NOW, asked, rate)
    assert 0 <= first.granted <= min(asked, rate.burst)
    if first.granted < asked:
        assert gcra(first.tat, NOW + first.wait, 1, rate).granted == 1
        if first.wait > 1e-5:
            assert gcra(first.tat, NOW + first.wait - 5e-6, 1, rate).granted == 0


@given(rates, rates, st.integers(1, 100))
def test_a_changed_rate_applies_from_now(old: Rate, new: Rate, asked: int) -> None:
    full = gcra(gcra(0.0, NOW, 10_000, old).tat, NOW, asked, new)
    assert full.wait <= new.period / new.limit + 2e-6  # never longer than one step of the new rate
    same = gcra(gcra(0.0, NOW, 10_000, old).tat, NOW, asked, old)
    assert same.granted == 0  # and naming the rate again resets nothing


def test_an_even_pace_loses_nothing() -> None:
    rate, tat, moments = Rate(100, 60.0), 0.0, []
    now = 1000.0  # small, so that adding up floats loses no microsecond
    for _ in range(200):
        decision = gcra(tat, now, 1, rate)
        assert decision.granted == 1
        moments.append(now)
        tat = decision.tat
        now += gcra(tat, now, 1, rate).wait
    assert all(later - earlier == pytest.approx(0.6, abs=1e-5) for earlier, later in pairwise(moments))
