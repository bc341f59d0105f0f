"""A Prometheus for the relay of ``relayctl up``: who wants to see alert rules and dashboard at work has only to start it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import config

SCRAPE_SECONDS = 5


def scrape_config(metrics: Mapping[str, str]) -> str:
    """prometheus.yml; ``metrics``: role → address and port of its status port."""
    rules = Path(config.__file__).parent / "prometheus" / "tambo.rules.yml"
    targets = "".join(
        f"      - targets: ['{address}']\n        labels: {{role: {role}}}\n" for role, address in metrics.items()
    )
    return (
        "# Written by `relayctl up` at each start:\n"
        "#   prometheus --config.file=prometheus.yml --storage.tsdb.path=tsdb --web.listen-address=127.0.0.1:9090\n"
        f"global:\n  scrape_interval: {SCRAPE_SECONDS}s\n  evaluation_interval: {SCRAPE_SECONDS}s\n"
        f"rule_files: ['{rules}']\n"
        f"scrape_configs:\n  - job_name: tambo\n    static_configs:\n{targets}"
    )
