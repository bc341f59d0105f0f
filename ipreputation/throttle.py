"""The generic cell rate algorithm (GCRA), pure: state and time in, a decision out.

One number is all the state of a rate: the theoretical arrival time (TAT), the moment at which everything granted so
far would have gone out at an even pace. A grant moves the TAT by ``period / limit``; the TAT may run ahead of now by
``burst`` such steps. In any window of length ``w`` at most ``limit * w / period + burst`` are granted.

The TAT says nothing about the rate that made it, so a changed rate applies from now and forgets nothing: a full
bucket stays full (one step of the *new* rate until the next grant), an idle one stays empty. A TAT further ahead
than a full bucket (the rate was raised, or the clock stepped back) counts as a full bucket.

Arithmetic is in whole microseconds, steps rounded up, exactly as in ``lua/gcra.lua``: the two must agree
(``tests/test_limit_store.py`` compares them).
"""

from __future__ import annotations

from dataclasses import dataclass

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """``limit`` per ``period`` seconds, at most ``burst`` of them at once. ``limit`` 0 grants nothing."""

    limit: int
    period: float
    burst: int = 1

    def __post_init__(self) -> None:
        if self.limit < 0 or self.burst < 1 or not 0.001 <= self.period <= 31 * 86_400:
            raise ValueError(f"{self}: limit ≥ 0, burst ≥ 1 and a period of 1 ms to 31 days are allowed")
        if self.burst * self.period > 4e9:  # burst × period in µs must stay exact in Lua's numbers (2**53)
            raise ValueError(f"{self}: burst × period may be at most 4e9 seconds")

    @property
    def period_us(self) -> int:
        return round(self.period * MICROSECONDS)


@dataclass(frozen=True, slots=True)
class Decision:
    """``granted`` ≤ what was asked; ``tat`` is the new state; ``wait`` seconds until one more fits (0 = all fitted)."""

    granted: int
    tat: float
    wait: float


def gcra(tat: float, now: float, n: int, rate: Rate) -> Decision:
    """As many of ``n`` as fit at ``now``. ``tat`` and ``now`` are seconds of one clock; ``tat`` 0 = never used."""
    moment, period = round(now * MICROSECONDS), rate.period_us
    if rate.limit == 0:
        return Decision(0, tat, rate.period if n > 0 else 0.0)
    full = _divided(rate.burst * period, rate.limit)
    backlog = min(max(0, round(tat * MICROSECONDS) - moment), full)
    granted = max(0, min(n, (rate.burst * period - backlog * rate.limit) // period))
    backlog += _divided(granted * period, rate.limit)
    wait = 0 if granted >= n else max(0, _divided(backlog * rate.limit - (rate.burst - 1) * period, rate.limit))
    return Decision(granted, (moment + backlog) / MICROSECONDS if backlog else tat, wait / MICROSECONDS)


def _divided(numerator: int, denominator: int) -> int:
    """Quotient rounded up: an error of rounding may only make a rate slower."""
    return -(-numerator // denominator)
