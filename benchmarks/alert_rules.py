"""The alert rules, and which metrics an expression names. No reader of YAML: the file is written plainly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import REPOSITORY

RULES = REPOSITORY / "config" / "prometheus" / "tambo.rules.yml"
_RULE = re.compile(
    r"^      - alert: (?P<alert>\w+)\n        expr: (?:\|\n(?P<block>(?: {10}.*\n)+)|(?P<line>.+)\n)(?P<rest>(?: {8}.*\n)+)",
    re.M,
)
_WORDS = frozenset(
    [
        "max",
        "min",
        "sum",
        "count",
        "rate",
        "increase",
        "changes",
        "absent",
        "by",
        "without",
        "or",
        "and",
        "unless",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "scalar",
        "vector",
        "time",
        "bool",
        "histogram_quantile",
        "topk",
        "clamp_min",
        "sort_desc",
        "label_replace",
        "irate",
        "deriv",
        "avg",
        "delta",
        "offset",
        "le",
    ]
)


@dataclass(frozen=True, slots=True)
class AlertRule:
    alert: str
    expr: str
    severity: str
    runbook: str


def rules(path: Path = RULES) -> list[AlertRule]:
    text = path.read_text()
    found = []
    for match in _RULE.finditer(text):
        severity = re.search(r"severity: (\w+)", match["rest"])
        runbook = re.search(r"runbook: (\S+)", match["rest"])
        assert severity and runbook, match["alert"]
        found.append(AlertRule(match["alert"], match["block"] or match["line"], severity[1], runbook[1]))
    assert len(found) == text.count("- alert:"), "a rule is not written as this reader expects"
    return found


def metrics_of(expression: str) -> set[str]:
    """Names of time series in a PromQL expression."""
    bare = re.sub(r'"[^"]*"|\'[^\']*\'', "", expression)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]|\$\w+", "", bare)
    return {word for word in re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b", bare) if word not in _WORDS}
