"""Sites and domains that could not be reached, and until when they are left alone. Memory of one process, bounded."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass

from delivery.outcome import Outcome

AWAY_SECONDS = (60.0, 120.0, 240.0, 480.0, 600.0)  # after the first failure, the second, …; the last repeats
MOST_AWAY = 50_000

Key = tuple[str, str]  # (pool, site), or ("", domain) where there is no route


@dataclass(frozen=True, slots=True)
class Away:
    """How often in a row it could not be reached, until when (Unix ms) it is left alone, and why."""

    times: int
    until_ms: int
    outcome: Outcome


class Absences:
    """Time is passed in as Unix ms. ``steps`` in seconds."""

    def __init__(self, rng: random.Random, steps: tuple[float, ...] = AWAY_SECONDS, most: int = MOST_AWAY) -> None:
        self._rng, self._steps, self._most = rng, steps, most
        self._known: OrderedDict[Key, Away] = OrderedDict()

    def note(self, key: Key, outcome: Outcome, now_ms: int) -> Away:
        """It failed once more."""
        before = self._known.pop(key, None)
        times = before.times + 1 if before else 1
        wait = self._steps[min(times, len(self._steps)) - 1] * self._rng.uniform(0.9, 1.1)
        away = self._known[key] = Away(times, now_ms + int(wait * 1000), outcome)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return away

    def now(self, key: Key, now_ms: int) -> Away | None:
        """The absence that is not over. One that would last longer than any does is from before a step of the clock."""
        away = self._known.get(key)
        longest = self._steps[-1] * 1.1 * 1000
        return away if away is not None and now_ms < away.until_ms <= now_ms + longest else None

    def forgotten(self, key: Key) -> bool:
        """It has been reached since, or nothing was ever noted."""
        return key not in self._known

    def reached(self, key: Key) -> None:
        self._known.pop(key, None)
