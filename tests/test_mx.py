"""Which hosts take mail, as a table."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.mx import MxHosts, RouteFailure, is_host_name, select_hosts


def select(
    records: Sequence[tuple[int, str]] | None, own: Sequence[str] = (), seed: int = 1, most: int = 10
) -> MxHosts | RouteFailure:
    return select_hosts("in.test", records, own=own, rng=random.Random(seed), most=most)


def hosts(records: Sequence[tuple[int, str]] | None, own: Sequence[str] = ()) -> list[tuple[int, str]]:
    selected = select(records, own)
    assert isinstance(selected, MxHosts)
    return [(host.preference, host.name) for host in selected.tried]


@pytest.mark.parametrize(
    ("records", "own", "expected"),
    [
        (None, (), [(0, "in.test")]),
        ([(10, "MX.in.test.")], (), [(10, "mx.in.test")]),
        ([(20, "b.test"), (10, "a.test"), (30, "c.test")], (), [(10, "a.test"), (20, "b.test"), (30, "c.test")]),
        ([(20, "a.test"), (10, "a.test")], (), [(10, "a.test")]),
        ([(10, "127.0.0.1."), (10, "::1"), (20, "a.test")], (), [(20, "a.test")]),
        ([(10, ""), (20, "a.test")], (), [(20, "a.test")]),
        ([(10, "a b.test"), (10, "-a.test"), (20, "_a.test")], (), [(20, "_a.test")]),
        ([(10, "a.test"), (20, "us.test"), (20, "b.test"), (30, "c.test")], ["us.test"], [(10, "a.test")]),
    ],
)
def test_hosts(records: Sequence[tuple[int, str]] | None, own: Sequence[str], expected: list[tuple[int, str]]) -> None:
    assert hosts(records, own) == expected


@pytest.mark.parametrize(
    ("records", "own", "status", "code"),
    [
        ([(0, "")], (), "5.1.10", 556),
        ([(0, ".")], (), "5.1.10", 556),
        ([(10, "us.test"), (10, "a.test")], ["us.test"], "5.4.6", 550),
        (None, ["in.test"], "5.4.6", 550),
        ([(10, "192.0.2.1")], (), "4.4.4", 451),
    ],
)
def test_no_host(records: Sequence[tuple[int, str]] | None, own: Sequence[str], status: str, code: int) -> None:
    failure = select(records, own)
    assert isinstance(failure, RouteFailure)
    assert (failure.status, failure.reply.code) == (status, code)
    assert failure.permanent == (code >= 500)


def test_equal_preference_is_shuffled_and_the_list_capped() -> None:
    records = [(10, f"a{n}.test") for n in range(5)] + [(20, f"b{n}.test") for n in range(20)]
    orders = set()
    for seed in range(20):
        selected = select(records, seed=seed)
        assert isinstance(selected, MxHosts)
        names = [host.name for host in selected.tried]
        assert len(names) == 10
        assert sorted(names[:5]) == [f"a{n}.test" for n in range(5)]
        assert selected.names == tuple(sorted(name for _, name in records))  # the site does not depend on the dice
        orders.add(tuple(names))
    assert len(orders) > 10
    assert select(records, seed=3) == select(records, seed=3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a.test", "b.test", "us.test", "", "1.2.3.4"])), max_size=8)
)
def test_never_us_and_never_worse_than_us(records: list[tuple[int, str]]) -> None:
    selected = select(records, ["us.test"])
    if isinstance(selected, MxHosts):
        ours = min((preference for preference, name in records if name == "us.test"), default=99)
        preferences = [host.preference for host in selected.tried]
        assert preferences == sorted(preferences)
        assert all(preference < ours for preference in preferences)
        assert "us.test" not in selected.names


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a.test", True),
        ("xn--bcher-kva.test", True),
        ("_dmarc.a.test", True),
        ("localhost", True),
        ("1.2.3.4", False),
        ("1.2.3.4a", True),
        ("a.1", False),
        ("a..b", False),
        (".a", False),
        ("", False),
        ("a" * 64 + ".test", False),
        (("a" * 60 + ".") * 5 + "test", False),
        ("a.test\n", False),
        ("[1.2.3.4]", False),
    ],
)
def test_host_names(name: str, good: bool) -> None:
    assert is_host_name(name) is good
