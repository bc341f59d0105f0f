"""Durations (``"1h30m"``) and rates (``"100/min"``) as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from config.schema import Allowed

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})?(s|min|h|d)(?:\s+burst\s+([0-9]{1,9}))?")
_PERIOD = {"s": 1, "min": 60, "h": 3600, "d": 86400}

DURATION_FORMS = "a number of seconds or a duration like 90s, 5m, 1h30m, 5d"
RATE_FORMS = "a rate like 100/s, 100/min, 10000/h, 5/5s, 100/s burst 10"


def seconds(value: object) -> object:
    """``"1h30m"`` → 5400.0; ``"90"`` (as the environment gives it) → 90.0; numbers pass unchanged (seconds already)."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = _PART.findall(text)
    if _NUMBER.fullmatch(text):
        total = float(text)
    elif parts and "".join(number + unit for number, unit in parts) == text:
        total = sum(float(number) * _UNIT[unit] for number, unit in parts)
    else:
        raise ValueError(f"write {DURATION_FORMS}")
    if not math.isfinite(total):
        raise ValueError("longer than any clock")
    return total


Seconds = Annotated[float, BeforeValidator(seconds), Allowed(DURATION_FORMS), Field(ge=0, allow_inf_nan=False)]


def unknown_policy(value: str) -> str:
    """``retry`` · ``never`` · ``once:<duration>``: what follows an end-of-data whose reply was lost.

    The duration comes back in whole seconds: ``once:24h`` → ``once:86400``.
    """
    if value in ("retry", "never"):
        return value
    kind, _, wait = value.partition(":")
    if kind == "once" and wait:
        delay = seconds(wait)
        if isinstance(delay, float) and delay >= 1:
            return f"once:{int(delay)}"
    raise ValueError("allowed: retry, never, once:<duration of at least 1s> (for instance once:24h)")


UnknownPolicy = Annotated[str, AfterValidator(unknown_policy)]


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` in ``period_seconds`` on the average, ``burst`` of them at one moment.

    A bucket of this kind lets at most ``count + burst - 1`` through in any one period.
    """

    count: int
    period_seconds: float
    burst: int = 1

    @classmethod
    def parse(cls, text: str) -> Rate:
        """ValueError with what is allowed; the burst is 1 unless it is written."""
        match = _RATE.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(f"write {RATE_FORMS}")
        count, times, unit, burst = match.groups()
        rate = cls(int(count), float(int(times or 1) * _PERIOD[unit]), int(burst or 1))
        if not rate.count or not rate.period_seconds:
            raise ValueError("count and period are at least 1")
        if not 1 <= rate.burst <= rate.count:
            raise ValueError("burst is at least 1 and at most the count")
        return rate

    def __str__(self) -> str:
        """What :meth:`parse` reads back to the same rate."""
        whole = int(self.period_seconds)
        unit, size = next((u, s) for u, s in reversed(_PERIOD.items()) if whole % s == 0)
        times = "" if whole == size else str(whole // size)
        return f"{self.count}/{times}{unit}" + (f" burst {self.burst}" if self.burst > 1 else "")


def spelled(length: float) -> str:
    """Seconds as people write them: 5400 → ``"1h30m"``; parts of a second as ms."""
    parts, left = [], round(length * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0"
