"""How fast things go in one process: totals, and what was added to them lately. Who asks from outside reads the rates
with :mod:`mailqueue.processes`, so that nothing is counted in the queue and no event is read for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SHORT_SECONDS, LONG_SECONDS = 10.0, 300.0
APART_SECONDS = 1.0  # between two samples
MOST = 1000  # names; further ones are not counted

Name = str | tuple[str, str]


class Paces:
    """``add`` is a dictionary's price; samples are taken by whoever asks, every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._totals: dict[Name, int] = {}
        self._samples: deque[tuple[float, dict[Name, int]]] = deque([(clock(), {})])

    def add(self, name: Name, count: int = 1) -> None:
        if name in self._totals or len(self._totals) < MOST:
            self._totals[name] = self._totals.get(name, 0) + count

    def rates(self) -> dict[Name, tuple[float, float]]:
        """Per second over the last ten seconds and the last five minutes, or since the start."""
        now = self._clock()
        if now - self._samples[-1][0] >= APART_SECONDS:
            self._samples.append((now, dict(self._totals)))
        while len(self._samples) > 1 and self._samples[1][0] <= now - LONG_SECONDS:
            self._samples.popleft()
        short = next(
            sample
            for sample in reversed(self._samples)
            if sample[0] <= now - SHORT_SECONDS or sample is self._samples[0]
        )
        return {name: (self._rate(name, short, now), self._rate(name, self._samples[0], now)) for name in self._totals}

    def _rate(self, name: Name, since: tuple[float, dict[Name, int]], now: float) -> float:
        grown = self._totals[name] - since[1].get(name, 0)
        return round(grown / max(now - since[0], APART_SECONDS), 3)
