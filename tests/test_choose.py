"""Deficit round robin over sources: shares stay within a quantum, weights count, weight 0 is off."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipreputation.choose import levelled, order, steadfast


@pytest.mark.parametrize(
    ("sources", "served", "expected"),
    [
        ([], {}, []),
        ([("a", 1), ("b", 1)], {}, ["a", "b"]),
        ([("b", 1), ("a", 1)], {}, ["b", "a"]),  # equals keep the order given
        ([("a", 1), ("b", 1)], {"a": 1}, ["b", "a"]),
        ([("a", 2), ("b", 1)], {"a": 3, "b": 2}, ["a", "b"]),
        ([("a", 0), ("b", 1)], {"b": 1000}, ["b"]),
        ([("a", 0)], {}, []),
        ([("a", 1), ("b", 1), ("c", 1)], {"a": 2, "b": 1, "x": 0}, ["c", "b", "a"]),
    ],
)
def test_table(sources: list[tuple[str, int]], served: dict[str, float], expected: list[str]) -> None:
    assert order(sources, served) == expected


weights = st.lists(st.integers(0, 10), min_size=1, max_size=12)
quanta = st.lists(st.integers(1, 20), min_size=50, max_size=300)


@given(weights, quanta)
def test_levels_stay_within_a_quantum(weights: list[int], quanta: list[int]) -> None:
    sources = [(f"127.0.1.{number}", weight) for number, weight in enumerate(weights)]
    served: dict[str, float] = {}
    for quantum in quanta:
        turn = order(sources, served)
        if turn:
            served[turn[0]] = served.get(turn[0], 0.0) + quantum
    assert all(served.get(address, 0.0) == 0.0 for address, weight in sources if weight == 0)
    levels = [served.get(address, 0.0) / weight for address, weight in sources if weight]
    apart, most = (
        max(levels, default=0.0) - min(levels, default=0.0),
        max(quanta) / min(filter(None, weights), default=1),
    )
    assert apart <= most or apart == pytest.approx(most)  # thirds are not exact


def test_long_run_shares_follow_weights() -> None:
    sources = [("a", 1), ("b", 2), ("c", 5)]
    served = {"a": 0.0, "b": 0.0, "c": 0.0}
    for _ in range(8000):
        served[order(sources, served)[0]] += 1
    assert served == {"a": 1000, "b": 2000, "c": 5000}


def test_a_source_that_could_not_send_is_first_again_but_not_alone_for_ever() -> None:
    sources = [("a", 1), ("b", 1)]
    served = {"a": 5000.0, "b": 10.0}
    assert order(sources, served) == ["b", "a"]
    assert order([*sources, ("new", 2)], levelled([*sources, ("new", 2)], served)) == ["b", "new", "a"]


@given(weights, st.lists(st.floats(0, 1e6), min_size=12, max_size=12))
def test_levelled_changes_no_order_of_known_sources(weights: list[int], amounts: list[float]) -> None:
    sources = [(f"s{number}", weight) for number, weight in enumerate(weights)]
    served = {address: amount for (address, _), amount in zip(sources, amounts, strict=False)}
    after = levelled(sources, served)
    assert set(after) == {address for address, weight in sources if weight}
    assert min(after.values(), default=0.0) == pytest.approx(0.0, abs=1e-3)
    for address, weight in sources:
        for other, its in sources:
            if weight and its and served[address] / weight > served[other] / its + 1e-3:
                assert after[address] / weight > after[other] / its


def test_the_order_of_a_site_is_its_own_and_shares_are_fair() -> None:
    sources = [(f"127.0.1.{number}", 1) for number in range(1, 9)]
    sources[0] = (sources[0][0], 3)
    firsts = Counter(steadfast(f"s{number}.test", sources)[0] for number in range(5000))
    assert abs(firsts["127.0.1.1"] - 1500) < 150
    assert all(abs(firsts[address] - 500) < 100 for address, _ in sources[1:])
    order_ = steadfast("x.test", sources)
    assert sorted(order_) == sorted(address for address, _ in sources)
    fewer = [one for one in sources if one[0] != order_[0]]
    assert steadfast("x.test", fewer) == order_[1:], "a source that goes moves no other"
    assert steadfast("x.test", [("a", 0)]) == []
