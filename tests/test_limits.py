"""Limits of a source at a site, and the plans that tell them to the scripts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ipreputation.limits import Ceiling, Limits, Pace, limits_for
from ipreputation.plans import Lease, connect_plan, extend_plan, message_plan, release_plan
from ipreputation.throttle import Rate


@dataclass(frozen=True)
class Rules:
    connections: int | None = None
    connections_total: int | None = None
    opening: Rate | None = None
    messages: Rate | None = None
    messages_total: Rate | None = None
    messages_per_connection: int = 100


def test_all_limits_of_a_provider_are_named() -> None:
    rules = Rules(5, 100, Rate(100, 60.0), Rate(100, 1.0, 10), Rate(1000, 1.0), 50)
    assert limits_for(rules, "google", "127.0.1.1") == Limits(
        connections=(Ceiling("google/127.0.1.1", 5), Ceiling("google", 100)),
        opening=(Pace("google/127.0.1.1#opening", Rate(100, 60.0)),),
        messages=(Pace("google/127.0.1.1#messages", Rate(100, 1.0, 10)), Pace("google#messages", Rate(1000, 1.0))),
        per_connection=50,
    )


def test_what_is_not_said_is_no_limit() -> None:
    assert limits_for(Rules(), "mx.example", "::1") == Limits(per_connection=100)
    assert limits_for(Rules(connections=0), "x", "s").connections == (Ceiling("x/s", 0),)  # 0 is said: none at all


def test_no_message_per_connection_is_refused() -> None:
    with pytest.raises(ValueError, match="per_connection"):
        Limits(per_connection=0)


def test_plans_number_each_name_once() -> None:
    rules = Rules(5, 8, Rate(2, 1.0), Rate(3, 1.0))
    candidates = [(source, limits_for(rules, "g", source)) for source in ("a", "b")]
    plan = connect_plan(candidates)
    assert plan.ceilings == ["g/a", "g", "g/b"]
    assert plan.keys[:4] == ["{rep}lease:g/a", "{rep}wait:g/a", "{rep}lease:g", "{rep}wait:g"]
    assert plan.keys[6:] == ["{rep}pace:g/a#opening", "{rep}pace:g/b#opening"]
    assert plan.body["candidates"] == [([1, 2], [1]), ([3, 2], [2])]
    assert plan.body["ceilings"] == [5, 8, 5]
    assert message_plan([(candidates[0][1], 4), (candidates[0][1], 2)]).body["requests"] == [(4, [1]), (2, [1])]


def test_plans_of_leases() -> None:
    a, b = (Limits(connections=(Ceiling(f"g/{name}", 5), Ceiling("g", 8))) for name in "ab")
    leases = [Lease("a", "1", a), Lease("b", "2", b)]
    assert release_plan(leases, "w").body["members"] == [["w/1"], ["w/1", "w/2"], ["w/2"]]
    plan = extend_plan(leases, "w", 30_000)
    assert dict(zip(plan.ceilings, plan.body["ceilings"], strict=True)) == {
        "g/a": (5, [1]),
        "g": (8, [1, 2]),
        "g/b": (5, [2]),
    }
