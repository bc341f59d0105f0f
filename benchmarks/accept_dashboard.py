"""The Grafana dashboard shows what is there: every panel's query, on a real Prometheus that scrapes a real relay.

A healthy run first: mail in and out, an archive, a consumer group, TLS. Every query of every panel must give a figure,
but for those named here, which are about faults. Then a run with faults, after which those must, too. The alert rules
are evaluated all along: none may fail, in the healthy run none may fire.

python -m benchmarks.accept_dashboard [--messages 2000]
"""

from __future__ import annotations

import asyncio
import smtplib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.alert_rules import metrics_of, rules
from benchmarks.books import Load, await_that
from benchmarks.harness import REPOSITORY, Relay, free_port, scratch
from benchmarks.outcome import Outcome, arguments
from benchmarks.prometheus import Prometheus
from benchmarks.submit import Client
from config.settings import QueueSettings
from mailqueue.queue import Queue
from relayctl.instance import certify
from streams.groups import Groups

DASHBOARD = REPOSITORY / "config" / "grafana" / "tambo.json"
WINDOW = "20s"  # Grafana's $__rate_interval is at least four scrapes
# What rightly has no figure as long as nothing went wrong; the run with faults must bring it.
FAULTS_ONLY = frozenset(
    {
        *("Recipients settled: deferred", "Recipients settled: bounced", "Recipients settled: unknown"),
        *("Deferred by provider: {{provider}}", "Bounced by provider: {{provider}}"),
        *("Sources refused within ten minutes: {{provider}}", "Sessions that did not open: {{kind}}"),
        *("Refusals by reason: {{reason}}", "Failed authentications: {{reason}}"),
        "A limit made them wait: {{provider}}",
    }
)
PROVIDERS = (
    (REPOSITORY / "config" / "providers.sandbox.toml").read_text()
    + """
[providers.refuser]
domains = ["refuser.test"]
[providers.refuser.samples]
recipients = ["a@refuser.test"]
[providers.lenta]
domains = ["lenta.test"]
message_rate = "1/10s"
[providers.lenta.samples]
recipients = ["a@lenta.test"]
"""
)
# refuser.test blames our address, luego.test defers, nadie.test bounces, corta.test hangs up behind the final dot,
# cerrada.test takes no connection; lenta.test may be sent a message each ten seconds.
SCENARIO = """\
behaviours.rehusa.steps.greeting.reply = "554 5.7.1 Service unavailable; client host blocked using zen.spamhaus.org"
behaviours.luego.steps.rcpt.reply = "451 4.7.1 later"
behaviours.nadie.steps.rcpt.reply = "550 5.1.1 no such user"
behaviours.corta.steps.end_of_data.drop = true
behaviours.cerrada.down = true
""" + "".join(
    f'[[domains]]\nname = "{name}.test"\nmx = ["mx.{name}.test"]\nbehaviour = "{behaviour}"\n'
    for name, behaviour in (
        ("refuser", "rehusa"),
        ("luego", "luego"),
        ("nadie", "nadie"),
        ("corta", "corta"),
        ("cerrada", "cerrada"),
        ("lenta", "accept"),
    )
)
HEALTHY = ("gmail.test", "outlook.test", "yahoo.test", "gob.test", "munilima.gob.pe.test")
FAULTY = ("refuser.test", "luego.test", "nadie.test", "corta.test", "cerrada.test", "lenta.test")


@dataclass(frozen=True, slots=True)
class Query:
    """One of a panel; ``name``: "<panel's title>: <legend>"."""

    name: str
    expression: str


def queries(path: Path = DASHBOARD) -> Iterator[Query]:
    """As Grafana would send them with all variables at "All"."""
    board = orjson.loads(path.read_bytes())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"{panel['title']}: {target['legendFormat']}", spelled(target["expr"], board))


def spelled(expression: str, board: Mapping[str, Any]) -> str:
    for variable in board["templating"]["list"]:
        expression = expression.replace(f"${variable['name']}", str(variable.get("allValue", "")))
    return expression.replace("$__rate_interval", WINDOW)


def without(prometheus: Prometheus, names: set[str] | None = None) -> set[str]:
    """Queries that give no figure; ``names``: of these only."""
    asked = [query for query in queries() if names is None or query.name in names]
    return {query.name for query in asked if not prometheus.query(query.expression)}


class World:
    """The relay, its Prometheus, and a consumer group that nobody reads."""

    def __init__(self, directory: Path) -> None:
        certificate, key = directory / "certificate.pem", directory / "key.pem"
        certify(certificate, key)
        self.tls_port = free_port()
        self.directory = directory
        self.relay = Relay(
            directory, settings=self._settings(directory, certificate, key), providers=PROVIDERS, scenario=SCENARIO
        )

    def _settings(self, directory: Path, certificate: Path, key: Path) -> dict[str, Any]:
        self.plain_port = free_port()
        tls = {"tls": "starttls", "certificate": str(certificate), "key": str(key)}
        listeners = [
            {"name": "load", "address": "127.0.0.1", "port": self.plain_port, "tls": "none"},
            {"name": "public", "address": "127.0.0.1", "port": self.tls_port, **tls},
        ]
        return {
            "relayd": {"listeners": listeners},
            "archive": {"directory": str(directory / "archive")},
            "delivery": {"pools": [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.4"}]}]},
        }

    def submit(self, messages: int, domains: tuple[str, ...], seed: int) -> Client:
        client = Client(
            self.plain_port, self.directory / f"client{seed}.jsonl", {"carga": "127.0.0.1"}, domains, seed=seed
        )
        Load(client, messages).wait()
        return client

    def guess(self, times: int) -> None:
        for _ in range(times):
            with smtplib.SMTP("127.0.0.1", self.tls_port, timeout=30) as client:
                client.starttls()
                try:
                    client.login("nobody", "guess")
                except smtplib.SMTPException:
                    continue

    def make_group(self) -> None:
        async def make() -> None:
            queue = await Queue.open(QueueSettings(url=self.relay.url), "acceptance")
            try:
                await Groups(queue.shards[0]).create("bounces", "acceptance", (), {0: "0-0"})
            finally:
                await queue.close()

        asyncio.run(make())


def run(messages: int, *, full: bool) -> Outcome:
    outcome = Outcome("dashboard", full=full)
    names = {query.name for query in queries()}
    outcome.check(
        "the list of faults names queries of the dashboard", names >= FAULTS_ONLY, sorted(FAULTS_ONLY - names) or "all"
    )
    with scratch("board") as directory:
        world = World(directory)
        with world.relay as relay:
            world.make_group()
            with Prometheus(directory, relay.ports) as prometheus:
                _healthy(world, prometheus, outcome, messages)
                _faulty(world, prometheus, outcome, messages)
                named = [query.expression for query in queries()] + [rule.expr for rule in rules()]
                unknown = {name for text in named for name in metrics_of(text)} - prometheus.families()
                outcome.check("rules and dashboard name metrics that exist", not unknown, unknown or "all of them")
                sick = prometheus.sick_rules()
                outcome.check("every alert rule is evaluated", not sick, sick or "all of them")
        outcome.figures |= {"queries": len(names), "messages": messages}
    return outcome


def _healthy(world: World, prometheus: Prometheus, outcome: Outcome, messages: int) -> None:
    world.submit(messages, HEALTHY, 1)
    await_that(lambda: world.relay.queued() == 0, 120)
    expected = lacking = {query.name for query in queries()} - FAULTS_ONLY
    until = time.monotonic() + 40
    while lacking and time.monotonic() < until:
        world.submit(10, HEALTHY, 3)  # a quantile needs mail within the window
        time.sleep(1)
        lacking = without(prometheus, expected)
    outcome.check("healthy: every query has a figure", not lacking, sorted(lacking) or f"{len(expected)} queries")
    firing = prometheus.firing()
    outcome.check("healthy: no alert fires", not firing, firing or "none")
    empty = prometheus.query("tambo_no_such_metric")
    outcome.check("a metric that is not there gives none", not empty, len(empty))


def _faulty(world: World, prometheus: Prometheus, outcome: Outcome, messages: int) -> None:
    world.submit(max(messages // 10, 30), FAULTY, 2)
    world.guess(3)
    lacking = FAULTS_ONLY
    until = time.monotonic() + 60
    while lacking and time.monotonic() < until:
        time.sleep(0.5)
        lacking = lacking & without(prometheus, set(lacking))
    outcome.check("faults: the others have, too", not lacking, sorted(lacking) or f"{len(FAULTS_ONLY)} queries")
    alerts = {"TamboSourcesRefused"}
    rang = await_that(lambda: alerts <= prometheus.pending_or_firing(), 30)
    outcome.check("faults: a refused source is pending or fires", rang >= 0, sorted(prometheus.pending_or_firing()))


def main() -> int:
    given = arguments(__doc__, 2000).parse_known_args()[0]
    return run(given.messages, full=given.messages >= 2000).close()


if __name__ == "__main__":
    sys.exit(main())
