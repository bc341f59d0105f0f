"""Every alert rule fires when it must and is silent when it must be, as promtool evaluates it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.alert_rules import RULES, metrics_of, rules
from relayctl.scrape import scrape_config

MINUTES = 40  # of every series: (value before, value after minute 10)
Series = dict[str, str]
JOB = {"job": "tambo"}


@dataclass(frozen=True, slots=True)
class Case:
    """``series`` → values; ``labels`` of the alert that must fire at minute 39, None = none may."""

    alert: str
    severity: str
    series: Series
    labels: dict[str, str] | None


def alarm(name: str, values: str) -> Series:
    return {f'tambo_alarm{{job="tambo",role="maintenance",instance="{one}",name="{name}"}}': values for one in "ab"}


def from_alarm(alert: str, severity: str, name: str, by: str = "job") -> list[Case]:
    """Fires while the alarm is on, not when it is off again, and not for another."""
    labels = JOB if by == "job" else {"name": name}
    on, over = f"0x9 1x{MINUTES}", "0x5 1x30 0x10"
    return [
        Case(alert, severity, alarm(name, on), labels),
        Case(alert, severity, alarm(name, over), None),
        Case(alert, severity, alarm("another", on), None),
    ]


def refused(count: int, of: int = 4) -> Series:
    """So many of the sources were refused at minute 35 or later."""
    series = {
        f'tambo_source_refused_seconds{{role="delivery",instance="{one}",provider="google",source="127.0.1.{n}"}}': "2100x40"
        for one in "ab"
        for n in range(count)
    }
    series['tambo_source_refused_seconds{role="delivery",provider="yahoo",source="127.0.1.1"}'] = "60x40"
    series['tambo_source_refused_seconds{role="delivery",provider="default",source="127.0.1.1"}'] = "2100x40"
    series |= dict.fromkeys(results(1, 0), "0x40")
    return series | {f'tambo_sources{{role="delivery",instance="{one}",pool="default"}}': f"{of}x40" for one in "ab"}


def results(delivered: int, deferred: int) -> Series:
    name = "total_messages_%s_by_provider_and_source_total"
    labels = 'provider="google",source="127.0.1.1",role="delivery"'
    series = {f"{name % 'transfail'}{{{labels}}}": f"0+{deferred}x40"}
    return series | ({f"{name % 'delivered'}{{{labels}}}": f"0+{delivered}x40"} if delivered else {})


def one(name: str, value: str, **labels: str) -> Series:
    return {
        f"{name}{{{','.join(f'{key}={value!r}'.replace(chr(39), chr(34)) for key, value in labels.items())}}}": value
    }


def rejections(reason: str, each_minute: int) -> Series:
    return one("smtp_server_rejections", f"0+{each_minute}x40", service="esmtp_listener", reason=reason)


PAGE, TICKET = "page", "ticket"
DAY = 86_400
CASES: list[Case] = [
    *from_alarm("TamboNoProgress", PAGE, "no-progress"),
    *from_alarm("TamboNobodyAnswers", PAGE, "unreachable"),
    *from_alarm("TamboNoDeliveryWorker", PAGE, "no-workers"),
    Case("TamboMailLate", PAGE, one("tambo_oldest_due_seconds", "0+60x40", **{"class": "transactional"}), {"class": "transactional"}),
    Case("TamboMailLate", PAGE, one("tambo_oldest_due_seconds", "800x40", **{"class": "transactional"}), None),
    Case("TamboMailLate", PAGE, one("tambo_oldest_due_seconds", "14000x40", **{"class": "bulk"}), None),
    Case("TamboMailLate", TICKET, one("tambo_oldest_due_seconds", "15000x40", **{"class": "bulk"}), {"class": "bulk"}),
    Case("TamboMailLate", TICKET, one("tambo_oldest_due_seconds", "0+60x40", **{"class": "bulk"}), None),
    *from_alarm("TamboRouteSuspended", PAGE, "route-suspended:formal", "name"),
    *from_alarm("TamboPoisonHeld", TICKET, "poison-held"),
    *from_alarm("TamboQueueAway", PAGE, "queue-away"),
    Case("TamboQueueFull", PAGE, one("tambo_queue_full", "0x9 1x40", mark="memory"), {"mark": "memory"}),
    Case("TamboQueueFull", PAGE, one("tambo_queue_full", "0x40", mark="memory"), None),
    Case(
        "TamboQueueNearlyFull",
        TICKET,
        one("tambo_queue_memory_used_bytes", "85x40", i="a") | one("tambo_queue_memory_mark_bytes", "100x40", i="a"),
        {},
    ),
    Case(
        "TamboQueueNearlyFull",
        TICKET,
        one("tambo_queue_disk_free_bytes", "190x40", i="a") | one("tambo_queue_disk_mark_bytes", "100x40", i="a"),
        {},
    ),
    Case(
        "TamboQueueNearlyFull",
        TICKET,
        one("tambo_queue_memory_used_bytes", "75x40", i="a")
        | one("tambo_queue_memory_mark_bytes", "100x40", i="a")
        | one("tambo_queue_disk_free_bytes", "210x40", i="a")
        | one("tambo_queue_disk_mark_bytes", "100x40", i="a"),
        None,
    ),
    Case("TamboMailRefused", PAGE, rejections("queue_down", 12), {"reason": "queue_down"}),
    Case("TamboMailRefused", PAGE, rejections("queue_down", 3) | rejections("syntax", 99), None),
    Case("TamboIntakeStopped", TICKET, alarm("intake-stopped", "1x40"), None),
    Case("TamboIntakeStopped", TICKET, alarm("intake-stopped", "1x70"), JOB),
    Case("TamboProcessDown", PAGE, one("up", "1x9 0x40", job="tambo", role="delivery", instance="d:1"), {**JOB, "role": "delivery", "instance": "d:1"}),
    Case("TamboProcessDown", PAGE, one("up", "1x40", job="tambo", role="delivery") | one("up", "0x40", job="other"), None),
    Case("TamboNoMaintenance", PAGE, one("up", "1x40", job="tambo", role="delivery"), {}),
    Case("TamboNoMaintenance", PAGE, one("up", "0x40", job="tambo", role="maintenance"), {}),
    Case("TamboNoMaintenance", PAGE, one("up", "1x40", job="tambo", role="maintenance"), None),
    Case("TamboProcessRestarts", TICKET, one("process_start_time_seconds", "100+100x40", **JOB), JOB),
    Case("TamboProcessRestarts", TICKET, one("process_start_time_seconds", "100x30 200x40", **JOB), None),
    *from_alarm("TamboConfigDiffers", TICKET, "config-differs"),
    *from_alarm("TamboStepFailed", TICKET, "step-failed:reap@mx1", "name"),
    *from_alarm("TamboClock", TICKET, "clock@mx1", "name"),
    Case("TamboSourcesRefused", TICKET, refused(1), {"provider": "google"}),
    Case("TamboSourcesRefused", TICKET, refused(0), None),
    Case("TamboSourcesRefused", PAGE, refused(2), {"provider": "google"}),
    Case("TamboSourcesRefused", PAGE, refused(1), None),
    Case("TamboSourcesRefused", TICKET, results(10, 30), {"provider": "google"}),
    Case("TamboSourcesRefused", TICKET, results(0, 30), {"provider": "google"}),
    Case("TamboSourcesRefused", TICKET, results(30, 10), None),
    Case("TamboDeferralsHigh", TICKET, results(10, 30), {"provider": "google"}),
    Case("TamboDeferralsHigh", TICKET, results(0, 30), {"provider": "google"}),
    Case("TamboDeferralsHigh", TICKET, results(30, 10), None),
    Case("TamboDeferralsHigh", TICKET, results(0, 1), None),
    *from_alarm("TamboBouncesHigh", TICKET, "bounces:rrhh/march", "name"),
    Case("TamboMailNotSigned", TICKET, one("total_messages_flagged", "0+1x40", warning="unsigned"), {}),
    Case("TamboMailNotSigned", TICKET, rejections("unsigned", 1), {}),
    Case("TamboMailNotSigned", TICKET, one("total_messages_flagged", "0+1x40", warning="else") | rejections("unsigned", 0), None),
    *from_alarm("TamboArchive", PAGE, "archive"),
    *from_alarm("TamboStreamLag", TICKET, "stream-lag:bounces", "name"),
    Case("TamboCertificateExpires", TICKET, one("tambo_certificate_expiry_seconds", f"{13 * DAY}x40", listener="public"), {"listener": "public"}),
    Case("TamboCertificateExpires", TICKET, one("tambo_certificate_expiry_seconds", f"{15 * DAY}x40", listener="public"), None),
    Case("TamboCertificateExpires", PAGE, one("tambo_certificate_expiry_seconds", f"{1 * DAY}x40", listener="public"), {"listener": "public"}),
    Case("TamboCertificateExpires", PAGE, one("tambo_certificate_expiry_seconds", f"{13 * DAY}x40", listener="public"), None),
    Case("TamboAuthStorm", TICKET, rejections("auth", 40) | rejections("auth_refused", 30), {}),
    Case("TamboAuthStorm", TICKET, rejections("auth", 50), None),
    *from_alarm("TamboQuotaLow", TICKET, "quota-low:rrhh", "name"),
]  # fmt: skip


def metrics(case: Case) -> set[str]:
    """What it may not share with others: whole series of the alarms, else every series of a metric."""
    return {name if name.startswith("tambo_alarm") else name.partition("{")[0] for name in case.series}


def packed(cases: list[Case]) -> list[list[Case]]:
    """Few tests for many cases: those that have nothing in common are evaluated together."""
    packs: list[list[Case]] = []
    for case in cases:
        for pack in packs:
            if not any(metrics(case) & metrics(one) or case.alert == one.alert for one in pack):
                pack.append(case)
                break
        else:
            packs.append([case])
    return packs


def unit(pack: list[Case]) -> dict[str, Any]:
    """As promtool wants it."""
    series = {name: values for case in pack for name, values in case.series.items()}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [asked(case) for case in pack],
    }


def asked(case: Case) -> dict[str, Any]:
    """An alert that fires is a series of its own, ALERTS."""
    last = 69 if any("x70" in values for values in case.series.values()) else 39
    labels = {"alertname": case.alert, "alertstate": "firing", "severity": case.severity, **(case.labels or {})}
    spelled = ",".join(f'{key}="{value}"' for key, value in labels.items())
    wanted = [] if case.labels is None else [{"labels": f"ALERTS{{{spelled}}}", "value": 1}]
    expr = f'ALERTS{{alertname="{case.alert}",alertstate="firing",severity="{case.severity}"}}'
    return {"expr": expr, "eval_time": f"{last}m", "exp_samples": wanted}


def test_which_metrics_an_expression_names() -> None:
    assert metrics_of('max by (name) (tambo_alarm{name=~"rate|up:.+"}) == 1 or 2 * rate(a_total{b="c"}[5m])') == {
        "tambo_alarm",
        "a_total",
    }
    assert metrics_of("sum(up) / on (job) group_left (role) scalar(x_bucket) > time() - 5") == {"up", "x_bucket"}


def test_the_rules_are_valid(tool: Callable[[str], Path]) -> None:
    for command in (("rules", RULES), ("config", RULES.parent / "prometheus.yml")):
        done = subprocess.run(
            [tool("promtool"), "check", *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_up_writes_for_prometheus_is_valid(tool: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(scrape_config({"relayd": "127.0.0.1:20000", "maintenance": "127.0.0.1:20001"}))
    done = subprocess.run(
        [tool("promtool"), "check", "config", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Checking {RULES}" in done.stdout


def promtool(tool: Callable[[str], Path], directory: Path, cases: list[Case]) -> subprocess.CompletedProcess[str]:
    """YAML reads JSON."""
    path = directory / "rules.test.yml"
    tree = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [unit(pack) for pack in packed(cases)]}
    path.write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2))
    command = [tool("promtool"), "test", "rules", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_rule_fires_when_it_must_and_only_then(tool: Callable[[str], Path], tmp_path: Path) -> None:
    done = promtool(tool, tmp_path, CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    written = {(rule.alert, rule.severity) for rule in rules()}
    for fires in (True, False):
        assert {(case.alert, case.severity) for case in CASES if (case.labels is not None) is fires} == written


def test_a_wrong_case_is_found_out(tool: Callable[[str], Path], tmp_path: Path) -> None:
    wrong = Case("TamboNoProgress", PAGE, alarm("no-progress", "0x40"), JOB)
    assert promtool(tool, tmp_path, [wrong]).returncode != 0
