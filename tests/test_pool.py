"""How many sessions are worth having, which sources may open one, and what limits hold for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import DeliverySettings
from delivery.pool import Source, pools_of, sessions_worth_having, usable


@pytest.mark.parametrize(("demand", "sessions"), [(0, 0), (1, 1), (10, 4), (100, 16), (1000, 64), (10_000, 252)])
def test_few_for_few_many_for_many(demand: int, sessions: int) -> None:
    assert sessions_worth_having(demand, 10_000) == sessions


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1000))
def test_more_demand_is_never_worth_fewer_sessions(one: int, other: int, most: int) -> None:
    low, high = sorted((one, other))
    assert sessions_worth_having(low, most) <= sessions_worth_having(high, most) <= most
    assert sessions_worth_having(high, 10**6) <= high


def test_pools_spell_out_their_ranges() -> None:
    settings = DeliverySettings.model_validate(
        {
            "hostname": "relay.test",
            "pools": [
                {"name": "a", "sources": [{"address": "127.0.1.1-127.0.1.3", "weight": 2}, {"address": "::1"}]},
                {"name": "b", "sources": [{"address": "127.0.1.9", "hostname": "nueve.test"}]},
                {"name": "vacio", "sources": []},
            ],
        }
    )
    pools = pools_of(settings)
    assert [source.address for source in pools["a"]] == ["127.0.1.1", "127.0.1.2", "127.0.1.3", "::1"]
    assert [(source.weight, source.version) for source in pools["a"]] == [(2, 4)] * 3 + [(1, 6)]
    assert pools["b"] == (Source("127.0.1.9", "nueve.test"),)
    assert "vacio" not in pools


def test_without_pools_the_kernel_chooses() -> None:
    assert pools_of(DeliverySettings(hostname="relay.test")) == {"default": (Source("", "relay.test"),)}


def test_usable_sources() -> None:
    four, six, any_ = Source("127.0.1.1", "a"), Source("::1", "b"), Source("", "c")
    everyone = (four, six, any_)
    assert usable(everyone, {4}, (), ()) == [four, any_]
    assert usable(everyone, {4, 6}, {"127.0.1.1": 5.0}, ()) == [six, any_]
    assert usable(everyone, {4, 6}, (), {"::1"}) == [four, any_]
