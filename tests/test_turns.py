"""Which source comes next at a site, by tables; over whole deliveries see test_greylisters and the acceptance run sources."""

from __future__ import annotations

from dataclasses import replace

import pytest

from delivery.pool import Source
from delivery.turns import TURN, Turns
from tests.delivery_kit import providers

A, B, C = (Source(f"127.0.1.{n}", "x.test") for n in (1, 2, 3))
GOOGLE = providers().named("google")  # one host of many: rolled up
OTHER = providers().named("default")


def addresses(turns: Turns, having: list[str]) -> list[str]:
    return [address for address, _ in turns.candidates(turns.sources, having)]


@pytest.mark.parametrize(
    ("served", "having", "expected"),
    [
        ({}, [], [A, B, C]),
        ({A: 3, B: 1}, [], [C, B, A]),
        ({A: 3, B: 1}, [C], [B, A, C]),  # fewest sessions first
        ({A: 3, B: 1}, [C, B, A], [C, B, A]),
        ({C: 9}, [A, A, B, B], [C, A, B]),
    ],
)
def test_at_a_provider(served: dict[Source, int], having: list[Source], expected: list[Source]) -> None:
    turns = Turns("google", GOOGLE, (A, B, C))
    turns.candidates(turns.sources, [])  # all are known: nobody is levelled from now on
    for source, count in served.items():
        turns.serve(source, count)
    assert addresses(turns, [one.address for one in having]) == [one.address for one in expected]


def test_weight_counts_twice() -> None:
    heavy = replace(A, weight=2)
    turns = Turns("google", GOOGLE, (heavy, B))
    assert addresses(turns, [heavy.address, B.address]) == [heavy.address, B.address]  # half as full
    turns.serve(heavy, 4)
    turns.serve(B, 3)
    assert (turns.level(heavy), turns.level(B)) == (2.0, 3.0)


def test_a_host_of_its_own_has_an_order_of_its_own() -> None:
    orders = {name: addresses(Turns(name, OTHER, (A, B, C)), []) for name in map("s{}.test".format, range(30))}
    assert len(set(map(tuple, orders.values()))) == 6, "each order is somebody's"
    for name, order in orders.items():
        turns = Turns(name, OTHER, (A, B, C))
        turns.serve(A, 100)
        assert addresses(turns, []) == order, "whatever was sent"
        assert [one.address for one in turns.foremost((A, B, C))] == order[:1]
        rest = [one for one in (A, B, C) if one.address != order[0]]
        assert [one.address for one in turns.foremost(rest)] == order[1:2], "the next where the first may not send"
    assert turns.foremost([]) == []


def test_who_is_a_turn_behind() -> None:
    turns = Turns("google", GOOGLE, (A, B, C))
    assert turns.behind([]) == set() == turns.behind([A])
    turns.serve(A, TURN)
    turns.serve(B, 1)
    assert turns.behind([A]) == set()
    turns.serve(A, 1)
    assert turns.behind([A]) == {C.address}
    assert turns.behind([A, C]) == set()
