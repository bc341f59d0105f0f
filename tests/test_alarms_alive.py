"""The alarms of a relay of real processes: ``make accept``'s run in small, and the metrics that rules and dashboard name."""

from __future__ import annotations

import urllib.request

from benchmarks import accept_alarms
from benchmarks.accept_alarms import CASES, world
from benchmarks.harness import scratch
from benchmarks.outcome import Outcome


def test_a_stopped_delivery_rings_and_full_limits_do_not() -> None:
    outcome = accept_alarms.run(["stopped", "full"])
    assert outcome.holds, outcome.checks
