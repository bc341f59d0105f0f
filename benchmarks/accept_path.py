"""Every message accepted is received, once; and the rate beside Postfix.

``smtp-source -s 20 -m 20000 -l 10240 -N`` into relayd, Postfix's smtp-sink as the MX of the recipients' domain. What was
accepted (relayd's log, one line per 250; smtp-source itself, whose recipients are numbered) and what smtp-sink has on
disk must be the same multisets. In the same run, in turns, a private Postfix gets the same load for the same sink:
it stores synced to disk as relayd does and signs nothing either.

    python -m benchmarks.accept_path [--messages 20000] [--rounds 2] [--alone]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks import postfix
from benchmarks.harness import Relay, free_port, scratch
from benchmarks.load import Received, Sink, Submission, numbered, submit
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.postfix import Postfix

MESSAGES = 20_000
MX = "127.0.2.250"
DOMAIN = "sink.test"
SCENARIO = f"""\
[[domains]]
name = "{DOMAIN}"
mx = ["mx.{DOMAIN}"]
[[hosts]]
name = "mx.{DOMAIN}"
address = "{MX}"
listen = false
"""


@dataclass(frozen=True, slots=True)
class Rates:
    """One round. ``accepted``: messages a second until the last 250; ``delivered``: until the sink had the last one,
    counted from the first submission; ``cpu_ms``: user and system time of all the relay's processes per message."""

    relay: str
    accepted: float
    delivered: float
    cpu_ms: float


def ours(
    directory: Path,
    load: Submission,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    listening: Sequence[str] = ("relayd",),
) -> tuple[Rates, Outcome]:
    """One round through the relay, with what must hold of it; ``listening``: the roles of its relayd processes. What
    arrived stays in ``directory``."""
    found = Outcome("path")
    port = free_port(MX)
    roles = ("sandbox", *listening, "delivery", "maintenance")
    with (
        Sink(directory, MX, port) as sink,
        Relay(directory / "relay", roles=roles, next_hop_port=port, scenario=SCENARIO, settings=settings) as relay,
    ):
        measured = [relay.server, *(relay.processes[role] for role in roles if role != "sandbox")]
        before = sum(process.cpu_seconds() for process in measured)
        started = time.monotonic()
        accepting = submit(load, f"127.0.0.1:{relay.submission}")
        delivering = sink.await_messages(load.messages, load.octets) - started
        _await_empty(relay)
        spent = sum(process.cpu_seconds() for process in measured) - before
        accepted = sum((accepted_ids(relay.processes[role].log) for role in listening), Counter[str]())
        compare(found, load, accepted, list(sink.received()))
    return _rates("tambo", load, accepting, delivering, spent), found


def theirs(
    directory: Path, load: Submission, settings: Mapping[str, str] | None = None
) -> tuple[Rates, dict[str, str]]:
    """One round through Postfix, and its settings."""
    with Sink(directory, MX, free_port(MX)) as sink, Postfix(directory / "postfix", sink.address, settings) as other:
        before = other.cpu_seconds()
        started = time.monotonic()
        accepting = submit(load, f"127.0.0.1:{other.submission}")
        delivering = sink.await_messages(load.messages, load.octets) - started
        other.await_empty()
        spent = other.cpu_seconds() - before
        found = other.settings()
    return _rates("postfix", load, accepting, delivering, spent), found


def _rates(relay: str, load: Submission, accepting: float, delivering: float, spent: float) -> Rates:
    return Rates(relay, load.messages / accepting, load.messages / delivering, 1000 * spent / load.messages)


def _await_empty(relay: Relay, seconds: float = 120.0) -> None:
    """Until nothing is left that could arrive a second time."""
    deadline = time.monotonic() + seconds
    while (left := relay.queued()) != 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{left} messages are still queued")
        time.sleep(0.05)


def accepted_ids(log: Path) -> Counter[str]:
    """Queue ids that relayd said 250 for, from its log: a line for each is written just before."""
    records = (orjson.loads(line) for line in log.read_bytes().splitlines() if b'"received"' in line)
    return Counter(record["id"] for record in records if record["event"] == "received")


def compare(found: Outcome, load: Submission, accepted: Counter[str], received: list[Received]) -> None:
    ids = Counter(one.queue_id for one in received)
    recipients = Counter(recipient for one in received for recipient in one.recipients)
    message_ids = Counter(one.message_id for one in received)
    wanted = numbered(load)
    same = accepted == ids and accepted.total() == load.messages
    found.check("queue ids in relayd's 250s = those in what the sink has", same, differing(accepted, ids))
    found.check(
        "recipients smtp-source got 250 for = those the sink has", wanted == recipients, differing(wanted, recipients)
    )
    once = len(message_ids) == load.messages == message_ids.total() and "" not in message_ids
    found.check("each Message-ID received once", once, f"{len(message_ids):,} of {message_ids.total():,} distinct")
    shortest = min((one.octets for one in received), default=0)
    found.check("no message cut short", shortest >= load.octets, f"shortest {shortest:,} octets")


def differing(accepted: Counter[str], received: Counter[str]) -> str:
    lost, twice = accepted - received, received - accepted
    return (
        f"{accepted.total():,} accepted, {received.total():,} received, {lost.total()} lost, {twice.total()} too many"
    )


def run(messages: int, rounds: int, *, alone: bool) -> Outcome:
    load = Submission(messages, f"u@{DOMAIN}")
    outcome = Outcome("path", full=messages >= MESSAGES and not alone)
    seen: list[Rates] = []
    settings: dict[str, str] = {}
    for number in range(1, rounds + 1):
        with scratch("path") as directory:
            rates, found = ours(directory, load)
        seen.append(rates)
        for check in found.checks:
            outcome.check(f"round {number}: {check.claim}", check.holds, check.seen)
        if not alone:
            with scratch("postfix") as directory:
                rates, settings = theirs(directory, load)
            seen.append(rates)
    figures: dict[str, Any] = {"load": asdict(load), "rounds": [asdict(rates) for rates in seen]}
    if not alone:
        figures |= {"ratios": ratios(seen), "postfix_settings": settings}
        ratio = figures["ratios"]["delivered"]
        outcome.check("end-to-end rate at least Postfix's (medians)", ratio >= 1.0, f"ratio {ratio:.2f}")
    outcome.figures = figures
    show("messages a second, CPU ms a message", figures["rounds"])
    return outcome


def ratios(seen: list[Rates]) -> dict[str, float]:
    """Ours over Postfix's, of medians."""
    of = {name: [rates for rates in seen if rates.relay == name] for name in ("tambo", "postfix")}
    return {
        figure: round(
            median(getattr(rates, figure) for rates in of["tambo"])
            / median(getattr(rates, figure) for rates in of["postfix"]),
            3,
        )
        for figure in ("accepted", "delivered", "cpu_ms")
    }


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--rounds", type=int, default=2, help="of each relay, in turns")
    parser.add_argument("--alone", action="store_true", help="without Postfix beside it")
    options = parser.parse_args()
    hindrance = "" if options.alone else postfix.hindrance()
    if hindrance:
        print(f"without the comparison: {hindrance}")
    return run(options.messages, options.rounds, alone=options.alone or bool(hindrance)).close()


if __name__ == "__main__":
    sys.exit(main())
