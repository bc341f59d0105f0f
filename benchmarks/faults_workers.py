"""Delivery processes that are stopped past their lease, or die each time they touch a certain message."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benchmarks.books import Load, await_that, events, read
from benchmarks.harness import Relay
from benchmarks.outcome import Outcome
from benchmarks.submit import Client
from mailqueue import keys
from sandbox.control import tell

LEASE_SECONDS = 3
ACCOUNTS = [
    {"name": "carga", "networks": ["127.0.0.0/24"]},
    {"name": "nunca", "networks": ["127.0.7.0/24"], "unknown": "never"},
]
SUBMITTERS = {"carga": "127.0.0.1", "nunca": "127.0.7.1"}
# vacila takes a second to say 354, lento to say 250 to the final dot; trampa never answers RCPT.
WORLD = """\
behaviours.vacila.steps.data.delay_seconds = 1
behaviours.lento.steps.end_of_data.delay_seconds = 1
behaviours.trampa.steps.rcpt.delay_seconds = 3600
""" + "".join(
    f'[[domains]]\nname = "{kind}{n}.test"\nmx = ["mx.{kind}{n}.test"]\nbehaviour = "{kind}"\n'
    for kind in ("vacila", "lento")
    for n in range(3)
)
DOMAINS = [f"{kind}{n}.test" for kind in ("vacila", "lento") for n in range(3)]


def stopped(outcome: Outcome, directory: Path, messages: int = 600) -> None:
    """SIGSTOP to one of two delivery processes amid its transactions, SIGCONT after its items were given to others."""
    roles = ["sandbox", "relayd", "maintenance", "delivery:1", "delivery:2"]
    settings = {"queue": {"url": f"unix://{directory}/s", "lease_seconds": LEASE_SECONDS}}
    with Relay(directory, roles=roles, settings=settings, accounts=ACCOUNTS, scenario=WORLD) as relay:
        client = Client(relay.submission, directory / "client.jsonl", SUBMITTERS, DOMAINS, seed=41)
        began = time.time()
        load = Load(client, messages)
        await_that(lambda: tell(relay.control, cmd="report")["messages"] >= messages // 10, 60)
        victim = relay.processes["delivery:1"]
        victim.signal(signal.SIGSTOP)
        stopped_at = time.time()
        time.sleep(LEASE_SECONDS + 4)
        continued_at = time.time()
        victim.signal(signal.SIGCONT)
        load.wait()
        drain = await_that(lambda: relay.queued() == 0, 120)
        books = read(relay, client, began)
        returned = relay.metrics("maintenance").get("tambo_items_reaped_total", 0.0)
        lost_leases = sum(value for name, value in relay.metrics("delivery:1").items() if "leases_lost_total" in name)
    open_ = books.open_at(stopped_at, stopped_at + 0.2)  # written before the stop, read by the next hop a little later
    late_dots = sum(any(t > continued_at for t in books.receipts[p][1:]) for p in books.twice - open_)
    outcome.figures["stopped"] = {
        "messages": len(client.accepted),
        "stopped_seconds": round(continued_at - stopped_at, 2),
        "items_given_back": returned,
        "leases_lost": lost_leases,
        "dots_open_at_stop": len(open_),
        "duplicates": len(books.twice),
        "duplicates_elsewhere": len(books.twice - open_),
        "second_dots_after_continuing": late_dots,
        "late_events": books.kinds["late"],
        "unknown": len(books.unknown),
        "drain_seconds": round(drain, 1),
    }
    held = f"{returned:.0f} items given to others, {books.kinds['late']} late"
    outcome.check("stopped: its items were in its hands, its lease was lost", returned > 0 and lost_leases > 0, held)
    outcome.check(
        "stopped: nothing lost", not books.lost and drain >= 0, f"{len(books.lost)} lost, {drain:.0f} s to empty"
    )
    twice = f"{len(books.twice)} twice of {len(open_)} with the dot out at the stop"
    outcome.check("stopped: twice only where the dot was out before the stop", books.twice <= open_, twice)
    blamed = [event.reason for _, event in books.events if event.kind == "suspended"]
    outcome.check("stopped: no site blamed for it", not blamed, blamed[:2] or "none suspended")
    never = sum(books.promised[pair] == "nunca" for pair in books.twice)
    outcome.check("stopped: never twice: no duplicate", not never, never)
    outcome.check(
        "stopped: one final event each, nothing left", not books.unaccounted and not books.left, books.left[:2]
    )


def poison(outcome: Outcome, directory: Path, messages: int = 300, after: float = 6.0) -> None:
    """SIGKILL to delivery five times while one item is in its hands; other mail comes and goes meanwhile.

    ``after``: seconds from the claim to the death. What else is in its hands at each of the five deaths shares the
    item's fate: with 6 s that is nothing, for a session is handed four messages at a time and the slowest next hop takes a
    second for each.
    """
    settings = {"queue": {"url": f"unix://{directory}/s", "lease_seconds": LEASE_SECONDS}}
    with Relay(directory, settings=settings, accounts=ACCOUNTS, scenario=WORLD) as relay:
        began = time.time()
        bad = Client(relay.submission, directory / "bad.jsonl", {"carga": "127.0.0.1"}, ["gob.test"], sessions=1)
        bad.local_part = "trampa+"
        Load(bad, 1).wait()
        good = Client(relay.submission, directory / "good.jsonl", SUBMITTERS, ["gob.test", *DOMAINS[3:]], seed=43)
        (accepted,) = bad.accepted.values()
        item = keys.item(accepted.queue_id, 0)
        rounds: list[float] = []
        dead: set[bytes] = set()

        def claimed() -> bool:
            return bool(holders(relay, item) - dead)

        for _ in range(5):
            load = Load(good, messages // 5)
            rounds.append(await_that(claimed, 60))
            dead |= holders(relay, item)
            time.sleep(after)
            relay.processes["delivery"].kill()
            relay.start("delivery")
            load.wait()
        held = await_that(lambda: relay.command("HEXISTS", "{q0}:hold", item) == b":1\r\n", 30)
        drain = await_that(lambda: relay.queued() <= holding(relay), 30)
        said = [event for event in events(relay, began) if event.kind == "held"]
        books = read(relay, good, began)
        again = bool(holders(relay, item))
    outcome.figures["poison"] = {
        "deaths": len(rounds),
        "seconds_to_each_claim": [round(seconds, 1) for seconds in rounds],
        "held_after_seconds": round(held, 1),
        "reason": said[0].reason if said else "",
        "others_held": len(said) - 1,
        "other_messages": len(good.accepted),
        "other_duplicates": len(books.twice),
        "drain_seconds": round(drain, 1),
    }
    which = [event.id == accepted.queue_id for event in said]
    outcome.check("poison: held after five deaths, with one event", which == [True], said[0].reason if said else "none")
    outcome.check("poison: not claimed again", held >= 0 and not again, f"{held:.1f} s after the fifth death")
    outcome.check(
        "poison: other mail delivered",
        not books.lost and drain >= 0 and not books.unaccounted,
        f"{len(good.accepted)} messages, {len(books.lost)} lost",
    )


def holders(relay: Relay, item: bytes) -> set[bytes]:
    """The workers' leases under which the item is claimed, dead ones included until they are buried."""
    epochs = [word for word in relay.command("HKEYS", "{q0}:workers").split(b"\r\n") if word.isdigit()]
    return {epoch for epoch in epochs if relay.command("HEXISTS", b"{q0}:w:" + epoch, item) == b":1\r\n"}


def holding(relay: Relay) -> int:
    """Items on hold."""
    return int(relay.command("HLEN", "{q0}:hold")[1:].split(b"\r\n")[0])
