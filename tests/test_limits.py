"""Limits of a source at a site, and the plans that tell them to the scripts."""

from __future__ import annotations

from typing import Any

import pytest

from config.durations import Rate as ConfiguredRate
from config.providers import ProviderRule
from ipreputation.limits import GUARD_SECONDS, Ceiling, Limits, Pace, limits_for
from ipreputation.plans import Lease, connect_plan, extend_plan, message_plan, release_plan
from ipreputation.throttle import Rate


def rule(**limits: Any) -> ProviderRule:
    facts: dict[str, Any] = {"name": "google", "connections": 5, "messages_per_connection": 50, "tls": "opportunistic"}
    return ProviderRule(**{**facts, **limits})


def both(source: str, opening: Rate | None = None, messages: Rate | None = None) -> Limits:
    """Limits of a source's own and of all sources together."""
    return Limits(
        connections=(Ceiling(f"g/{source}", 5), Ceiling("g", 8)),
        opening=(Pace(f"g/{source}#opening", opening),) if opening else (),
        messages=(Pace(f"g/{source}#messages", messages),) if messages else (),
    )


def test_all_limits_of_a_provider_are_named() -> None:
    told = rule(connection_rate=ConfiguredRate(100, 60.0), message_rate=ConfiguredRate(100, 1.0, 10))
    assert limits_for(told, "google", "127.0.1.1") == Limits(
        connections=(Ceiling("google/127.0.1.1", 5),),
        opening=(Pace("google/127.0.1.1#opening", Rate(100, 60.0 + GUARD_SECONDS)),),
        messages=(Pace("google/127.0.1.1#messages", Rate(100, 1.0 + GUARD_SECONDS, 10)),),
        per_connection=50,
    )


def test_what_is_not_said_is_no_limit() -> None:
    told = limits_for(rule(), "mx.example", "::1")
    assert (told.opening, told.messages) == ((), ())
    assert limits_for(rule(connections=0), "x", "s").connections == (Ceiling("x/s", 0),)  # 0 is said: none at all
    assert limits_for(rule(), "x", "").connections[0].name == "x/any"


def test_what_differs_for_a_source() -> None:
    told = rule(overrides={"127.0.1.9": {"connections": 2}})
    assert limits_for(told, "x", "127.0.1.9").connections[0].most == 2
    assert limits_for(told, "x", "127.0.1.8").connections[0].most == 5


def test_no_message_per_connection_is_refused() -> None:
    with pytest.raises(ValueError, match="per_connection"):
        Limits(per_connection=0)


def test_plans_number_each_name_once() -> None:
    candidates = [(source, both(source, Rate(2, 1.0), Rate(3, 1.0))) for source in ("a", "b")]
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
