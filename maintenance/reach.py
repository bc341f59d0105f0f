"""Whether anybody out there answers: a network or DNS that is gone looks like many sites that cannot be reached.

Delivery suspends what it cannot reach, so that nothing is due and the no-progress alarm has nothing to say; this one
does. Judged from the events alone. Old mail for dead hosts, which fails now and then by itself, is no outage.
"""

from __future__ import annotations

from config.routes import PREFIX
from mailqueue.events import SOURCES_REST
from maintenance.progress import SETTLED, Finding
from maintenance.tail import Said

DESTINATIONS = 3  # that failed at the first attempt, or one provider that failed at any
FORGOTTEN_SECONDS = 1500.0  # no attempt for longer than the longest suspension, twice


class Reach:
    def __init__(self) -> None:
        self._failed: dict[str, str] = {}  # destination → why
        self._provider = ""
        self._since = self._last = 0
        self._began = 0
        self._seen = False

    def note(self, said: Said) -> None:
        event = said.event
        if event.kind not in SETTLED:
            return
        self._seen = True
        answered = event.diagnostic_code.startswith("smtp;") or event.reason == SOURCES_REST
        if event.kind != "deferred" or answered:
            self._failed.clear()
            self._provider, self._since = "", 0
            return
        if event.provider.startswith(PREFIX):  # a smarthost, which has an alarm of its own
            return
        if event.provider not in ("", "default"):
            self._provider = event.provider
        elif event.attempt > 1 and event.destination not in self._failed:
            return
        self._since = self._since or said.at
        self._last = said.at
        if len(self._failed) < 1000:
            self._failed[event.destination] = event.diagnostic_code.removeprefix("x-tambo; ")

    def judge(self, now: int, still: float) -> Finding:
        """``still`` seconds of failures, and nobody who answered. A process that has seen no result yet cannot say."""
        self._began = self._began or now
        if not self._seen and now - self._began <= 1000 * FORGOTTEN_SECONDS:
            return Finding(None)
        if not self._since or now - self._last > 1000 * FORGOTTEN_SECONDS:
            return Finding(False)
        if not self._provider and len(self._failed) < DESTINATIONS:
            return Finding(False)
        if now - self._since < 1000 * still:
            return Finding(None)
        destination, why = next(iter(self._failed.items()))
        whom = f"{destination} and {len(self._failed) - 1} more" if len(self._failed) > 1 else destination
        return Finding(True, f"no next hop has answered: {whom}: {why}", len(self._failed))
