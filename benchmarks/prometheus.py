"""Debian's Prometheus over the processes of a relay: scrapes, evaluates the alert rules, answers queries."""

from __future__ import annotations

import math
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from benchmarks.alert_rules import RULES
from benchmarks.harness import TOOLS, Process, free_port


class Prometheus:
    """``with Prometheus(directory, {"relayd": 9125}) as it:``; role → port of each process."""

    def __init__(self, directory: Path, ports: Mapping[str, int], scrape_seconds: int = 1) -> None:
        self.port = free_port()
        path = directory / "prometheus.yml"
        targets = "".join(
            f"      - targets: ['127.0.0.1:{port}']\n        labels: {{role: {role.partition(':')[0]}}}\n"
            for role, port in ports.items()
        )
        path.write_text(
            f"global:\n  scrape_interval: {scrape_seconds}s\n  evaluation_interval: {scrape_seconds}s\n"
            f"rule_files:\n  - {RULES}\n"
            f"scrape_configs:\n  - job_name: tambo\n    static_configs:\n{targets}"
        )
        command = [
            str(TOOLS / "prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self._process = Process("prometheus", command, directory / "prometheus.log")

    def __enter__(self) -> Prometheus:
        self._process.start()
        deadline = time.monotonic() + 60
        while not self._ready():
            if not self._process.running or time.monotonic() > deadline:
                raise RuntimeError(self._process.log.read_text()[-3000:])
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.running:
            self._process.stop(60)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """``data`` of the answer; urllib's HTTPError for an expression that does not parse."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=30) as answer:
            return orjson.loads(answer.read())["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Series → value now; NaN, a quantile of nothing, is left out."""
        found = {}
        for row in self.ask("query", query=expression)["result"]:
            value = float(row["value"][1])
            if not math.isnan(value):
                found[orjson.dumps(row["metric"]).decode()] = value
        return found

    def families(self) -> set[str]:
        """Names that processes export, also those without a series yet; of a histogram those of its series."""
        found = {"up"}
        for name, kinds in self.ask("metadata").items():
            found |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"} if kinds[0]["type"] == "histogram" else {name}
        return found

    def firing(self) -> set[str]:
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}

    def pending_or_firing(self) -> set[str]:
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"]}

    def sick_rules(self) -> dict[str, str]:
        """Rules whose evaluation failed, and why."""
        groups = self.ask("rules")["groups"]
        return {rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")}
