"""48 sources, one provider: equal shares, and no limit exceeded at any moment by the next hop's own ledger.

Messages for gmail.test, which plays google with the packaged rules, leave from 127.0.1.1–48. The sandbox's hidden
limits equal the configured ones; in its count a connection holds its slot from accept until 221 or EOF. Rates are
read from the ledger's times: at most count + burst - 1 in any one period (:class:`config.durations.Rate`).

    live      submitted while one process delivers
    two       the same with two delivery processes, which share the limits
    backlog   all of them wait in the queue when two processes start
    paced     a backlog, with message and connection rates low enough to bind

    python -m benchmarks.accept_sources [--messages 10000] [live|two|backlog|paced …]
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.load import Submission, submit
from benchmarks.outcome import Outcome, arguments, show
from config.durations import Rate
from sandbox.control import tell
from sandbox.receipts import Receipts

MESSAGES = 10_000
SOURCES = [f"127.0.1.{n}" for n in range(1, 49)]
SITE = "google"
CONNECTIONS, PER_CONNECTION = 5, 50  # the packaged figures of google, and the sandbox's hidden ones
UNEVEN = 0.10
PACES = ("100/s burst 10", "100/min")  # the packaged message_rate and connection_rate of every provider


@dataclass(frozen=True, slots=True)
class Setting:
    """``paces``: message_rate and connection_rate; ``backlog``: queued before delivery starts."""

    processes: int
    backlog: bool = False
    paces: tuple[str, str] = PACES
    share: float = 1.0  # of the messages asked for


SETTINGS = {
    "live": Setting(1),
    "two": Setting(2),
    "backlog": Setting(2, backlog=True),
    "paced": Setting(2, backlog=True, paces=("6/s burst 3", "3/5s"), share=0.5),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What the ledger says of one run, worst source each."""

    messages: int
    least: int
    most: int
    connections: int  # at once
    per_connection: int
    message_rate: int  # in one period
    connection_rate: int
    violations: int
    sources: int
    message_rate_over_ms: int  # by how much a period must be cut for the message rate to hold in it

    @property
    def uneven(self) -> float:
        """Greatest distance of a source's share from the mean, as a part of the mean."""
        mean = self.messages / len(SOURCES)
        return max(self.most - mean, mean - self.least) / mean


def rules(setting: Setting) -> str:
    """The sandbox's provider rules with the paces of the setting for google."""
    text = (REPOSITORY / "config" / "providers.sandbox.toml").read_text(encoding="utf-8")
    message_rate, connection_rate = setting.paces
    own = f'[providers.google]\nmessage_rate = "{message_rate}"\nconnection_rate = "{connection_rate}"\n'
    assert "[providers.google]\n" in text
    return text.replace("[providers.google]\n", own)


def send(setting: Setting, directory: Path, messages: int) -> tuple[Usage, float]:
    """One run; what was used of each limit, and messages a second from the first submission, or start of delivery."""
    deliveries = [f"delivery:{number}" for number in range(1, setting.processes + 1)]
    others = ["sandbox", "relayd", "maintenance"]
    relay = Relay(directory, roles=[*others, *deliveries], providers=rules(setting))
    with contextlib.closing(relay):
        relay.start_server()
        for role in others if setting.backlog else [*others, *deliveries]:
            relay.start(role)
        started = time.monotonic()
        submit(Submission(messages, "u@gmail.test", octets=1000), f"127.0.0.1:{relay.submission}")
        if setting.backlog:
            started = time.monotonic()
            for role in deliveries:
                relay.start(role, wait=False)
        reached = tell(relay.control, patience=700.0, cmd="wait", messages=messages, seconds=600)
        rate = messages / (time.monotonic() - started)
        if not reached["reached"]:
            raise RuntimeError(f"{reached['messages']} of {messages} messages arrived in ten minutes")
        report = tell(relay.control, cmd="report")
    return usage(setting, report, Receipts(Path(report["ledger"]))), rate


def usage(setting: Setting, report: dict[str, Any], receipts: Receipts) -> Usage:
    """``report``: the sandbox's counters at the end; ``receipts``: the file, complete after its end."""
    served = receipts.by_source(SITE)
    connections = [record for record in receipts.records("connection") if record["site"] == SITE]
    messages = [record for record in receipts.records("message") if record["site"] == SITE]
    peaks = [*report["peaks"][SITE].values(), *(most for (site, _), most in receipts.peaks().items() if site == SITE)]
    message_rate, connection_rate = (Rate.parse(pace) for pace in setting.paces)
    return Usage(
        messages=served.total(),
        least=min(served[source] for source in SOURCES),
        most=max(served.values()),
        connections=max(peaks),
        per_connection=max(Counter(record["connection"] for record in messages).values()),
        message_rate=busiest([(record["source"], record["t"]) for record in messages], message_rate.period_seconds),
        connection_rate=busiest(
            [(record["source"], record["opened"]) for record in connections], connection_rate.period_seconds
        ),
        violations=len(receipts.violations()),
        sources=len(served),
        message_rate_over_ms=over_ms([(record["source"], record["t"]) for record in messages], message_rate),
    )


def busiest(times: Sequence[tuple[str, float]], period: float) -> int:
    """Most events of one source in any half-open span of ``period`` seconds."""
    most, recent = 0, dict[str, deque[float]]()
    for source, at in sorted(times, key=lambda pair: pair[1]):
        window = recent.setdefault(source, deque())
        window.append(at)
        while window[0] <= at - period:
            window.popleft()
        most = max(most, len(window))
    return most


def over_ms(times: Sequence[tuple[str, float]], rate: Rate) -> int:
    """0 when at most count + burst - 1 fall in any period; else the milliseconds by which the next hop saw the limit
    broken. A few tens are the time that messages take from grant to final dot, which is not the same for each."""
    by_source: dict[str, list[float]] = {}
    for source, at in sorted(times, key=lambda pair: pair[1]):
        by_source.setdefault(source, []).append(at)
    allowed = rate.count + rate.burst - 1
    spans = [late - early for ats in by_source.values() for early, late in zip(ats, ats[allowed:], strict=False)]
    return max(0, math.ceil(1000 * (rate.period_seconds - min(spans, default=rate.period_seconds))))


def judge(outcome: Outcome, name: str, setting: Setting, messages: int, used: Usage) -> None:
    message_rate, connection_rate = (Rate.parse(pace) for pace in setting.paces)
    outcome.check(f"{name}: received once each", used.messages == messages, f"{used.messages:,} of {messages:,}")
    shares = f"{used.least}–{used.most}, {100 * used.uneven:.1f} %"
    outcome.check(f"{name}: each share within 10 % of the mean", used.uneven <= UNEVEN, shares)
    outcome.check(f"{name}: nothing in the sandbox's book of violations", not used.violations, used.violations)
    for what, seen, most in (
        ("connections at once", used.connections, CONNECTIONS),
        ("messages per connection", used.per_connection, PER_CONNECTION),
        (f"message rate {message_rate}", used.message_rate, message_rate.count + message_rate.burst - 1),
        (f"connection rate {connection_rate}", used.connection_rate, connection_rate.count + connection_rate.burst - 1),
    ):
        outcome.check(f"{name}: {what}, per source", seen <= most, f"{seen}, allowed {most}")


def run(messages: int, names: Sequence[str] = tuple(SETTINGS)) -> Outcome:
    outcome = Outcome("sources", full=messages >= MESSAGES and set(names) == set(SETTINGS))
    rows = []
    for name in names:
        setting = SETTINGS[name]
        count = round(messages * setting.share)
        with scratch("sources") as directory:
            used, rate = send(setting, directory, count)
        judge(outcome, name, setting, count, used)
        outcome.figures[name] = {
            **asdict(setting),
            **asdict(used),
            "uneven": round(used.uneven, 4),
            "rate": round(rate),
        }
        rows.append(
            {
                "run": name,
                "msg/s": round(rate),
                "share": f"{used.least}–{used.most}",
                "off": f"{100 * used.uneven:.1f} %",
                "open": used.connections,
                "each": used.per_connection,
                "paces": f"{used.message_rate} {used.connection_rate}",
                "over ms": used.message_rate_over_ms,
                "broken": used.violations,
            }
        )
    show("worst source of each run", rows)
    return outcome


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("names", nargs="*", choices=[[], *SETTINGS], metavar="run", help="all without")
    options = parser.parse_args()
    return run(options.messages, options.names or tuple(SETTINGS)).close()


if __name__ == "__main__":
    sys.exit(main())
