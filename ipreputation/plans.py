"""What the scripts are told, pure: keys and numbered plans. The only file that spells the keys (beside the .lua files).

All keys carry the hash tag ``{rep}``: one slot, so that each script may touch any of them. In a plan, ceilings, paces
and members are named by their number in the list of keys or members, from 1, as Lua counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ipreputation.limits import Ceiling, Limits, Pace

LEASE, WAIT, PACE, FREED = "{rep}lease:", "{rep}wait:", "{rep}pace:", "{rep}freed:"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to hold one connection from ``source``; it counts under all ceilings of ``limits``."""

    source: str
    token: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Plan:
    """Keys and JSON argument of one call; ``ceilings`` and ``paces`` turn the numbers of the reply into names."""

    keys: list[str]
    body: dict[str, Any]
    ceilings: list[str]
    paces: list[str]


class _Numbered:
    """Gives each name a number at its first mention. One name has one number: what is said of it first holds."""

    __slots__ = ("numbers", "said")

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.said: list[Any] = []

    def ceiling(self, ceiling: Ceiling) -> int:
        number = self.numbers.get(ceiling.name)
        if number is None:
            number = self.numbers[ceiling.name] = len(self.said) + 1
            self.said.append(ceiling.most)
        return number

    def pace(self, pace: Pace) -> int:
        number = self.numbers.get(pace.name)
        if number is None:
            number = self.numbers[pace.name] = len(self.said) + 1
            self.said.append((pace.rate.limit, pace.rate.period_us, pace.rate.burst))
        return number


def connect_plan(candidates: Sequence[tuple[str, Limits]]) -> Plan:
    ceilings, paces = _Numbered(), _Numbered()
    rows = [
        ([ceilings.ceiling(c) for c in limits.connections], [paces.pace(p) for p in limits.opening])
        for _, limits in candidates
    ]
    keys = _lease_and_wait(ceilings.numbers) + [PACE + name for name in paces.numbers]
    body = {"ceilings": ceilings.said, "paces": paces.said, "candidates": rows}
    return Plan(keys, body, list(ceilings.numbers), list(paces.numbers))


def message_plan(requests: Iterable[tuple[Limits, int]]) -> Plan:
    paces = _Numbered()
    rows = [(max(0, count), [paces.pace(p) for p in limits.messages]) for limits, count in requests]
    return Plan(
        [PACE + name for name in paces.numbers], {"paces": paces.said, "requests": rows}, [], list(paces.numbers)
    )


def release_plan(leases: Iterable[Lease], worker: str) -> Plan:
    members: dict[str, list[str]] = {}
    for lease in leases:
        for ceiling in lease.limits.connections:
            members.setdefault(ceiling.name, []).append(f"{worker}/{lease.token}")
    body = {"worker": worker, "members": list(members.values())}
    return Plan(_lease_and_wait(members), body, list(members), [])


def pass_on_plan(names: Sequence[str], worker: str) -> Plan:
    return Plan([WAIT + name for name in names], {"worker": worker}, list(names), [])


def extend_plan(leases: Sequence[Lease], worker: str, lease_ms: int) -> Plan:
    """``most`` of a ceiling is what its newest lease says."""
    most: dict[str, int] = {}
    numbers: dict[str, list[int]] = {}
    for number, lease in enumerate(leases, 1):
        for ceiling in lease.limits.connections:
            most[ceiling.name] = ceiling.most
            numbers.setdefault(ceiling.name, []).append(number)
    body = {
        "lease": lease_ms,
        "members": [f"{worker}/{lease.token}" for lease in leases],
        "ceilings": [(most[name], numbers[name]) for name in most],
    }
    return Plan([LEASE + name for name in most], body, list(most), [])


def _lease_and_wait(names: Iterable[str]) -> list[str]:
    return [key for name in names for key in (LEASE + name, WAIT + name)]
