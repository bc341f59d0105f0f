"""An hour's step of the wall clock, seen by the queue server and all roles at once (libfaketime), under load.

What waits at that moment: items in a worker's hands, items due now behind them, items due in ten minutes, items of an
account whose mail expires in half an hour, and a suspended destination. The next hops keep the true time.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.books import Books, Load, await_that, read
from benchmarks.harness import TOOLS, Process, Relay
from benchmarks.outcome import Outcome
from benchmarks.submit import Client
from sandbox.control import tell

LEASE_SECONDS = 6.0
SETTINGS = {
    "queue": {"lease_seconds": LEASE_SECONDS},
    "delivery": {"retry": {"steps_seconds": [600]}, "dsn_window_seconds": 1, "max_in_flight": 100},
}
PROVIDERS = (
    '[default]\nconnections = 10\nmessages_per_connection = 100\ntls = "opportunistic"\n'  # as gob.test wants it
)
ACCOUNTS = [
    {"name": "carga", "networks": ["127.0.0.0/24"]},
    {"name": "nunca", "networks": ["127.0.7.0/24"], "unknown": "never"},
    {"name": "corta", "networks": ["127.0.8.0/24"], "expire_seconds": 1800},
]
WORLD = """\
behaviours.lento.steps.end_of_data.delay_seconds = 1
[[domains]]
name = "lento.test"
mx = ["mx.lento.test"]
behaviour = "lento"
[[domains]]
name = "espera.test"
mx = ["mx.espera.test"]
behaviour = "defer"
"""
DOMAINS = ["lento.test", "gob.test", "a.many.test", "b.many.test"]


def library() -> Path | None:
    """libfaketime, of ``make tools`` or the host's."""
    folders = (TOOLS.parent / "root" / "usr" / "lib", Path("/usr/lib"))
    return next((path for folder in folders for path in sorted(folder.glob("*/faketime/libfaketime.so.1"))), None)


class Clock:
    """The wall clock of the processes that were given it; the monotonic clock stays the machine's."""

    def __init__(self, directory: Path, library: Path) -> None:
        self._file = directory / "clock"
        self.set(0)
        self._environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def give(self, process: Process) -> None:
        process.environment = {**process.environment, **self._environment}

    def set(self, seconds: int) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{seconds:+d}\n")
        part.rename(self._file)


def step(outcome: Outcome, directory: Path, name: str, seconds: int, messages: int = 2000) -> None:
    """Forward or back by ``seconds``; after what happens in half a minute the clock is set right again."""
    found = library()
    if found is None:
        raise RuntimeError("no libfaketime here: run make tools")
    directory.mkdir(parents=True, exist_ok=True)
    clock = Clock(directory, found)
    relay = Relay(directory, settings=_settings(directory), providers=PROVIDERS, accounts=ACCOUNTS, scenario=WORLD)
    for process in (relay.server, *(p for role, p in relay.processes.items() if role != "sandbox")):
        clock.give(process)
    with relay:
        began = time.time()
        waiting = Client(
            relay.submission, directory / "waiting.jsonl", _own("carga", "corta"), ["espera.test"], seed=71
        )
        Load(waiting, 20).wait()
        unreachable = Client(relay.submission, directory / "dead.jsonl", _own("carga"), ["dead.test"], seed=72)
        Load(unreachable, 3).wait()
        await_that(lambda: relay.command("HLEN", "{q0}:sus") == b":1\r\n", 10)
        client = Client(relay.submission, directory / "client.jsonl", _own("carga", "nunca"), DOMAINS, seed=73)
        load = Load(client, messages // 2)
        load.wait()
        await_that(lambda: tell(relay.control, cmd="report")["messages"] >= messages // 10, 60)
        events_before = int(relay.command("XLEN", "events:{q0}")[1:])
        stepped, in_queue, before = time.time(), relay.queued(), len(client.accepted)
        tell(relay.control, cmd="behaviour", domain="espera.test", set="accept")
        clock.set(seconds)
        Load(client, messages // 2).wait()
        later = len(unreachable.accepted)  # mail that has a time of its own; a step forward brings espera.test's
        rest = later + (len(waiting.accepted) if seconds < 0 else 0)
        stalled = _still(relay, rest)
        after = time.time()
        left = relay.queued() - rest
        clock.set(0 if seconds < 0 else seconds)
        await_that(lambda: relay.queued() <= rest, 120)
        drain = time.time() - after
        clock.set(max(seconds, 0) + 900)
        await_that(lambda: relay.queued() <= later, 60)
        lost_leases = sum(v for n, v in relay.metrics("delivery").items() if "leases_lost_total" in n)
        books, other = read(relay, client, began), read(relay, waiting, began)
        report = tell(relay.control, cmd="report")
    old = [a.message_id for a in list(client.accepted.values())[:before]]
    open_ = _open(books, events_before, client, stepped + 0.2)
    # Until it hears that its lease is gone a worker goes on, a quarter of the lease at most.
    doubtful = _open(books, events_before, client, stepped + LEASE_SECONDS / 4 + 1.0)
    figures = {
        "queued_at_step": in_queue,
        "leases_lost": lost_leases,
        "dots_open_at_step": len(open_),
        "duplicates": len(books.twice),
        "unknown": len(books.unknown),
        "worst_delay_old_seconds": _worst(books, client, set(old), before=True),
        "worst_delay_new_seconds": _worst(books, client, set(old), before=False),
        "still_seconds": round(stalled, 1),
        "still_queued": left,
        "drain_after_clock_is_right_seconds": round(drain, 1),
        "expired": other.kinds["expired"],
        "retries_due_in_600_s_made_after_seconds": round(_first(other) - stepped, 1),
        "limit_violations": report["violation_counts"],
    }
    outcome.figures[name] = figures
    _judge(outcome, name, books, other, figures, doubtful, forward=seconds > 0)


def _judge(
    outcome: Outcome,
    name: str,
    books: Books,
    other: Books,
    figures: dict[str, object],
    open_: set[tuple[str, str]],
    *,
    forward: bool,
) -> None:
    outcome.check(
        f"{name}: nothing lost",
        not books.lost and not other.lost,
        f"{len(books.promised) + len(other.promised)} recipients",
    )
    outcome.check(
        f"{name}: one final event each",
        not books.unaccounted and not other.unaccounted,
        f"{len(books.unaccounted)}, {len(other.unaccounted)} not",
    )
    outcome.check(
        f"{name}: twice only where the dot was out", books.twice <= open_, f"{len(books.twice)} of {len(open_)}"
    )
    never = sum(books.promised[pair] == "nunca" for pair in books.twice)
    outcome.check(f"{name}: never twice: no duplicate", not never, never)
    new = figures["worst_delay_new_seconds"]
    outcome.check(
        f"{name}: mail accepted after the step is not held up", isinstance(new, float) and new < 30, f"{new} s at worst"
    )
    if forward:
        outcome.check(
            f"{name}: no stall",
            figures["still_queued"] == 0,
            f"{figures['still_seconds']} s until all was delivered",
        )


def _own(*accounts: str) -> dict[str, str]:
    addresses = {"carga": "127.0.0.1", "nunca": "127.0.7.1", "corta": "127.0.8.1"}
    return {account: addresses[account] for account in accounts}


def _settings(directory: Path) -> dict[str, dict[str, object]]:
    return {section: dict(values) for section, values in SETTINGS.items()} | {
        "queue": {"url": f"unix://{directory}/s", "lease_seconds": LEASE_SECONDS}
    }


def _still(relay: Relay, rest: int) -> float:
    """Seconds until nothing has moved for ten, or only ``rest`` messages are left."""
    started = moved = time.monotonic()
    size = relay.queued()
    while size > rest and time.monotonic() - moved < 10:
        time.sleep(0.05)
        before, size = size, relay.queued()
        if size != before:
            moved = time.monotonic()
    return moved - started


def _open(books: Books, events_before: int, client: Client, until: float) -> set[tuple[str, str]]:
    """Received by then and not settled when the clock stepped, by the order of the events: their times mean little."""
    names = {accepted.queue_id: accepted.message_id for accepted in client.accepted.values()}
    said = [event for _, event in books.events[:events_before]]
    settled = {(names.get(event.id, ""), event.recipient) for event in said if event.kind in ("delivered", "unknown")}
    return {pair for pair in books.promised if books.receipts.get(pair, [until + 1])[0] <= until} - settled


def _worst(books: Books, client: Client, old: set[str], *, before: bool) -> float:
    """Seconds from the 250 to the receipt of the slowest message accepted before the step, or after it."""
    delays = [
        at[0] - client.accepted[pair[0]].at
        for pair in books.promised
        if (at := books.receipts.get(pair)) and (pair[0] in old) is before
    ]
    return round(max(delays, default=0.0), 1)


def _first(books: Books) -> float:
    return min((at[0] for pair, at in books.receipts.items() if pair in books.promised), default=float("nan"))
