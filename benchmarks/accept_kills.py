"""SIGKILL to relayd, delivery and the queue server in turn, under load: nothing lost, duplicates bounded, never twice.

Two accounts submit at once: *carga*, whose outcome-unknown policy is to retry, and *nunca*, which says never twice. A
round kills one process at a random moment, starts it again after a random time (longer than the lease now and then),
waits until all is accepted and the queue is empty, and compares three books: the client's ledger of 250s, the
sandbox's ledger of receipts, and the events.

A duplicate is allowed where the final dot was out before the process died and the settlement came after: those are
counted ("open at the kill"), and each duplicate must be one of them.

    python -m benchmarks.accept_kills [--messages 2000] [--rounds 12] [--seed 1]
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness import Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.submit import Accepted, Client
from config.settings import QueueSettings
from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from sandbox.control import tell
from sandbox.ledger import Receipts
from tests.queue_kit import check_index, is_empty, places

MESSAGES, ROUNDS = 2000, 12
VICTIMS = ("relayd", "delivery", "server")
ACCOUNTS = {"carga": "127.0.0.1", "nunca": "127.0.7.1"}
FINAL = ("delivered", "unknown", "bounced", "expired", "removed")
LEASE_SECONDS, PUT_SECONDS = 3, 2
DOMAINS = ("gmail.test", "gob.test", "lento.test", *(f"d{n}.many.test" for n in range(12)))
DRAIN_SECONDS = 240.0
# A next hop that thinks before it says 250: so that there are sessions behind the final dot at any moment.
SCENARIO = """\
[behaviours.lento.steps.end_of_data]
delay_seconds = 0.3
[[domains]]
name = "lento.test"
mx = ["mx.lento.test"]
behaviour = "lento"
"""

Pair = tuple[str, str]  # Message-ID, recipient


@dataclass(slots=True)
class Round:
    """What one round came to; seconds, and counts of recipients."""

    victim: str
    accepted: int = 0  # messages with a 250
    recipients: int = 0
    down: float = 0.0  # from the kill to ready again
    drain: float = 0.0  # from the last 250 to an empty queue
    sessions: int = 0  # open at the next hops just before the kill
    open_at_kill: int = 0  # received, and not settled when the process died
    lost: int = 0
    duplicates: int = 0
    outside: int = 0  # duplicates that were not open at the kill
    never_duplicates: int = 0
    unknown: int = 0  # events of the account that says never twice
    unknown_received: int = 0  # of those: the next hop has the message
    unaccounted: int = 0  # recipients without exactly one final event
    late: int = 0  # events
    refused: int = 0  # messages refused at the final dot
    refused_received: int = 0
    unanswered: int = 0  # messages whose client was left without a reply
    unanswered_received: int = 0
    left: list[str] = field(default_factory=list)  # keys in Redis


@dataclass(frozen=True, slots=True)
class Window:
    """The kill: what was not settled at ``died`` (Unix s) and received until ``until`` may come twice."""

    died: float
    until: float


def relay(directory: Path) -> Relay:
    return Relay(
        directory,
        settings={
            "queue": {
                "url": f"unix://{directory}/s",
                "lease_seconds": LEASE_SECONDS,
                "put_deadline_seconds": PUT_SECONDS,
            }
        },
        accounts=[
            {"name": "carga", "networks": ["127.0.0.0/24"]},
            {"name": "nunca", "networks": ["127.0.7.0/24"], "unknown": "never"},
        ],
        scenario=SCENARIO,
    )


def play(world: Relay, victim: str, messages: int, seed: int) -> Round:
    """One round: load, kill, restart, drain; then the books."""
    rng = random.Random(seed)
    client = Client(world.submission, world.directory / f"ledger-{seed}.jsonl", ACCOUNTS, DOMAINS, seed=seed)
    found, started = Round(victim), time.time()
    load = threading.Thread(target=lambda: uvloop.run(client.run(messages)), daemon=True)
    load.start()
    await_that(lambda: len(client.accepted) >= messages * rng.uniform(0.1, 0.9) or not load.is_alive(), 120)
    time.sleep(rng.uniform(0, 0.1))
    found.sessions = tell(world.control, cmd="report")["open"]
    window = kill(world, victim, rng.choice([0.0, rng.uniform(0, 1), LEASE_SECONDS + 1.5]))
    found.down = time.time() - window.died
    load.join(300)
    if load.is_alive():
        raise RuntimeError(f"{len(client.accepted)} of {messages} messages were accepted in five minutes")
    accepted = time.monotonic()
    await_that(lambda: world.queued() == 0, DRAIN_SECONDS)
    found.drain = time.monotonic() - accepted
    tell(world.control, cmd="flush")
    events, found.left = asyncio.run(look(world.url, started))
    compare(found, client, Receipts(world.directory / "sandbox" / "ledger.jsonl"), events, window)
    return found


def kill(world: Relay, victim: str, pause: float) -> Window:
    process = world.server if victim == "server" else world.processes[victim]
    process.kill()
    died = time.time()
    time.sleep(pause)
    if victim == "server":
        world.start_server()
    else:
        world.start(victim)
    # Without its queue delivery goes on until its lease ends, so what it sends meanwhile counts as well.
    return Window(died, time.time() if victim == "server" else died)


def await_that(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def look(url: str, since: float) -> tuple[list[tuple[float, Event]], list[str]]:
    """Events (with the time the server wrote them) since then, and what is left that should not be."""
    queue = await Queue.open(QueueSettings(url=url), "accept", patience=10)
    try:
        shard = queue.shards[0]
        left = [key.decode() for key in await is_empty(shard)]
        left += [f"{item!r} in {where}" for item, where in (await places(queue.shards)).items()]
        await check_index(shard)
        return await events_since(shard, since), left
    finally:
        await queue.close()


async def events_since(shard: Shard, since: float) -> list[tuple[float, Event]]:
    found: list[tuple[float, Event]] = []
    start = str(int(since * 1000))
    while rows := await shard.command("XRANGE", shard.events, start, "+", "COUNT", 5000):
        for position, fields in rows:
            found.append((int(position.split(b"-")[0]) / 1000, Event.from_json(fields[1])))
        start = f"({rows[-1][0].decode()}"
    return found


def compare(
    found: Round, client: Client, receipts: Receipts, events: list[tuple[float, Event]], window: Window
) -> None:
    received: dict[Pair, list[float]] = {}
    for record in receipts.records("message"):
        for recipient in record["to"]:
            received.setdefault((record["id"], recipient), []).append(record["t"])
    by_queue_id = {accepted.queue_id: accepted for accepted in client.accepted.values()}
    settled, ends, unknown = _fates(by_queue_id, events)
    promised = {(a.message_id, recipient): a for a in client.accepted.values() for recipient in a.recipients}
    found.accepted, found.recipients = len(client.accepted), len(promised)
    times = {pair: received.get(pair, []) for pair in promised}
    open_ = {
        p for p, at in times.items() if at and at[0] <= window.until and settled.get(p, window.died + 1e9) > window.died
    }
    twice = {pair for pair, at in times.items() if len(at) > 1}
    found.open_at_kill = len(open_)
    found.lost = sum(not at and pair not in unknown for pair, at in times.items())
    found.duplicates = sum(len(times[pair]) - 1 for pair in twice)
    found.outside = len(twice - open_)
    found.never_duplicates = sum(promised[pair].account == "nunca" for pair in twice)
    found.unknown = len(unknown)
    found.unknown_received = sum(bool(times[pair]) for pair in unknown if pair in times)
    found.unaccounted = sum(ends[pair] != 1 for pair in promised)
    found.late = sum(event.kind == "late" for _, event in events)
    got = {message_id for message_id, _ in received}
    found.refused, found.refused_received = len(client.refused), len(got & client.refused.keys())
    found.unanswered, found.unanswered_received = len(client.unanswered), len(got & client.unanswered)


def _fates(
    by_queue_id: dict[str, Accepted], events: list[tuple[float, Event]]
) -> tuple[dict[Pair, float], Counter[Pair], set[Pair]]:
    """When each recipient was first settled, how many final events it has, and those that ended as unknown."""
    settled: dict[Pair, float] = {}
    ends: Counter[Pair] = Counter()
    unknown: set[Pair] = set()
    for at, event in events:
        accepted = by_queue_id.get(event.id)
        if accepted is None or event.kind not in (*FINAL, "late"):
            continue
        pair = (accepted.message_id, event.recipient)
        settled.setdefault(pair, at)
        if event.kind in FINAL and not event.next_at:
            ends[pair] += 1
        if event.kind == "unknown" and not event.next_at:
            unknown.add(pair)
    return settled, ends, unknown


def run(messages: int, rounds: int, seed: int, directory: Path) -> Outcome:
    outcome = Outcome("kills", full=messages >= MESSAGES and rounds >= ROUNDS)
    victims = [victim for _ in range(-(-rounds // len(VICTIMS))) for victim in VICTIMS][:rounds]
    random.Random(seed).shuffle(victims)
    played: list[Round] = []
    with relay(directory) as world:
        for number, victim in enumerate(victims):
            played.append(play(world, victim, messages, seed * 1000 + number))
            print(f"round {number + 1}: {victim} {row(played[-1])}", flush=True)
    judge(outcome, played)
    return outcome


def row(one: Round) -> dict[str, Any]:
    return {
        "killed": one.victim,
        "accepted": one.accepted,
        "down s": one.down,
        "drain s": one.drain,
        "sessions": one.sessions,
        "open": one.open_at_kill,
        "lost": one.lost,
        "twice": one.duplicates,
        "never twice": one.never_duplicates,
        "unknown": f"{one.unknown} ({one.unknown_received} there)",
        "late": one.late,
        "no reply": f"{one.unanswered} ({one.unanswered_received} there)",
        "4xx": f"{one.refused} ({one.refused_received} there)",
    }


def judge(outcome: Outcome, played: list[Round]) -> None:
    show("kill rounds", [row(one) for one in played])
    outcome.figures["rounds"] = [asdict(one) for one in played]

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in played)

    outcome.check("every 250 was received or ended as unknown", total("lost") == 0, f"{total('lost')} lost")
    twice = f"{total('duplicates')}, {total('open_at_kill')} open at the kills"
    bounded = all(one.duplicates <= one.open_at_kill for one in played)
    outcome.check("duplicates ≤ final dots sent and not settled, each round", bounded, twice)
    outcome.check("each duplicate was one of those", total("outside") == 0, f"{total('outside')} outside")
    outcome.check("never twice: no duplicate", total("never_duplicates") == 0, total("never_duplicates"))
    outcome.check("each recipient has one final event", total("unaccounted") == 0, f"{total('unaccounted')} not")
    outcome.check("what was refused did not go out", total("refused_received") == 0, f"{total('refused')} refused")
    left = [key for one in played for key in one.left]
    outcome.check("nothing left in Redis after each round", not left, left[:3] or "nothing")


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with scratch("kills") as directory:
        return run(options.messages, options.rounds, options.seed, directory).close()


if __name__ == "__main__":
    sys.exit(main())
