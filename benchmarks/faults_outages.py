"""Nobody answers: no DNS, or all mail hosts of a domain down. Nothing bounces, other mail goes on, then all is there."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from benchmarks.books import Load, await_that, events, read
from benchmarks.harness import Relay
from benchmarks.outcome import Outcome
from benchmarks.submit import Client
from mailqueue.events import Event
from sandbox.control import tell

FRESH = [f"fresh{n}.many.test" for n in range(40)]  # asked for the first time while DNS is away
KNOWN = ["gmail.test", "known.many.test"]
OURS = {"carga": "127.0.0.1"}
# Steps of ten seconds, so that what is seen is the suspension of the destination, not the schedule of an item.
SETTINGS = {"retry": {"steps_seconds": [10]}}


def dns(outcome: Outcome, directory: Path, seconds: float, messages: int = 400) -> None:
    """Half of the time SERVFAIL, half silence. Known domains are delivered on what DNS said last."""
    with Relay(directory, settings={"delivery": SETTINGS}) as world:
        began = time.time()
        client = Client(world.submission, directory / "client.jsonl", OURS, KNOWN, seed=51)
        Load(client, 40).wait()
        await_that(lambda: world.queued() == 0, 60)
        tell(world.control, cmd="dns", mode="servfail")
        failed = time.time()
        client.domains = [*KNOWN, *FRESH]
        Load(client, messages).wait()
        await_that(lambda: time.time() > failed + seconds / 2, seconds)
        tell(world.control, cmd="dns", mode="silent")
        await_that(lambda: time.time() > failed + seconds, seconds)
        during = delivered_to(events(world, failed))
        tell(world.control, cmd="dns", mode="normal")
        drain = await_that(lambda: world.queued() == 0, 700)
        books = read(world, client, began)
    waits = [event for _, event in books.events if event.kind == "suspended"]
    deferred = sum(event.kind == "deferred" for _, event in books.events)
    meanwhile = {"known": sum(during[name] for name in KNOWN), "fresh": sum(during[name] for name in FRESH)}
    outcome.figures["dns"] = {
        "outage_seconds": seconds,
        "recipients": len(books.promised),
        "delivered_meanwhile_known": meanwhile["known"],
        "delivered_meanwhile_fresh": meanwhile["fresh"],
        "suspensions": len(waits),
        "destinations_suspended": len({event.destination for event in waits}),
        "deferred": deferred,
        "reasons": sorted({event.reason.partition(": ")[2] or event.reason for event in waits})[:5],
        "seconds_until_empty": round(drain, 1),
    }
    failures = {kind: books.kinds[kind] for kind in ("bounced", "expired") if books.kinds[kind]}
    outcome.check("dns: no bounce", not failures, failures or "none")
    outcome.check(
        "dns: all delivered once it is back",
        drain >= 0 and not books.lost and not books.twice,
        f"{drain:.0f} s after it was back",
    )
    outcome.check("dns: known domains went on meanwhile", meanwhile["known"] > 0, meanwhile)
    suspended = f"{len(waits)} suspensions of {len(FRESH)} destinations, {deferred} items touched"
    outcome.check("dns: destinations waited, not messages", 0 < deferred <= len(waits), suspended)


def down(outcome: Outcome, directory: Path, seconds: float, messages: int = 600) -> None:
    """gob.test refuses connections; gmail.test and others do not."""
    with Relay(directory, settings={"delivery": SETTINGS}) as world:
        began = time.time()
        tell(world.control, cmd="behaviour", domain="gob.test", set="down")
        client = Client(world.submission, directory / "client.jsonl", OURS, ["gob.test"], seed=61)
        others = Client(world.submission, directory / "others.jsonl", OURS, ["gmail.test", "a.many.test"], seed=62)
        Load(client, messages // 2).wait()
        for part in range(6):  # mail keeps coming for the one and the others
            loads = [Load(client, messages // 12), Load(others, messages // 6)]
            for load in loads:
                load.wait()
            await_that(lambda until=began + seconds * (part + 1) / 6: time.time() > until, seconds)  # type: ignore[misc]
        said = events(world, began)
        tell(world.control, cmd="behaviour", domain="gob.test", set="normal")
        attempts = refusals(world)
        drain = await_that(lambda: world.queued() == 0, 1300)
        books, beside = read(world, client, began), read(world, others, began)
    waits = [event for event in said if event.kind == "suspended"]
    delays = [
        beside.receipts[pair][0] - others.accepted[pair[0]].at for pair in beside.promised if pair in beside.receipts
    ]
    deferred = sum(event.kind == "deferred" for event in said)
    outcome.figures["down"] = {
        "outage_seconds": seconds,
        "recipients": len(books.promised),
        "sessions_refused": attempts,
        "suspended_at_seconds": [round(event.at / 1000 - began, 1) for event in waits],
        "suspended_for_seconds": [round((event.next_at - event.at) / 1000, 1) for event in waits],
        "items_touched": deferred,
        "others_delivered": len(beside.promised) - len(beside.lost),
        "others_worst_delay_seconds": round(max(delays), 2),
        "seconds_until_empty": round(drain, 1),
    }
    failures = {kind: books.kinds[kind] for kind in ("bounced", "expired") if books.kinds[kind]}
    outcome.check("down: no bounce", not failures, failures or "none")
    outcome.check(
        "down: all delivered once it is back",
        drain >= 0 and not books.lost and not books.twice,
        f"{drain:.0f} s after it was back",
    )
    outcome.check(
        "down: other destinations unaffected",
        not beside.lost and max(delays) < 10,
        f"{len(delays)} delivered, {max(delays):.1f} s at worst",
    )
    knocked = f"{attempts:.0f} sessions tried, {deferred} items touched of {len(books.promised)}"
    outcome.check(
        "down: suspended, not hammered", 0 < attempts <= 2 * len(waits) + 2 <= 2 * (3 + seconds / 60), knocked
    )


def delivered_to(said: list[Event]) -> Counter[str]:
    return Counter(event.destination for event in said if event.kind == "delivered")


def refusals(world: Relay) -> float:
    """Sessions that no mail host let in, by delivery's own counter."""
    counters = world.metrics("delivery")
    return sum(value for name, value in counters.items() if name.startswith("egress_source_connection_failures_total{"))
