"""Alarms and dashboard on a relay of real processes: the acceptance runs in small, and that their checks can fail."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks import accept_alarms, accept_dashboard
from benchmarks.accept_dashboard import DASHBOARD, FAULTS_ONLY, queries, spelled


def test_a_stopped_delivery_rings() -> None:
    outcome = accept_alarms.run(["stopped"])
    assert outcome.holds, outcome.checks


def test_every_panel_shows_what_is_there(tool: Callable[[str], Path]) -> None:
    tool("prometheus")
    outcome = accept_dashboard.run(100, full=False)
    assert outcome.holds, [check for check in outcome.checks if not check.holds]


def test_every_query_of_the_dashboard_parses(tool: Callable[[str], Path], tmp_path: Path) -> None:
    """As recording rules, which promtool reads."""
    assert {query.name for query in queries()} > FAULTS_ONLY
    lines = "".join(f"      - record: q\n        expr: '{query.expression}'\n" for query in queries())
    for text, right in ((lines, True), (f"{lines}      - record: q\n        expr: 'sum(rate(x))'\n", False)):
        path = tmp_path / "queries.yml"
        path.write_text(f"groups:\n  - name: dashboard\n    rules:\n{text}")
        done = subprocess.run(
            [tool("promtool"), "check", "rules", "--lint=none", path], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode == 0) is right, done.stderr.decode()


def test_variables_are_spelled_out() -> None:
    board = {"templating": {"list": [{"name": "provider", "allValue": ".*"}]}}
    assert spelled('rate(a{b=~"$provider"}[$__rate_interval])', board) == 'rate(a{b=~".*"}[20s])'
    assert "$" not in "".join(query.expression for query in queries(DASHBOARD))
