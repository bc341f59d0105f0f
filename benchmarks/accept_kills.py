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

import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.books import Books, Load, await_that, read
from benchmarks.harness import Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.submit import Client
from sandbox.control import tell

MESSAGES, ROUNDS = 2000, 12
VICTIMS = ("relayd", "delivery", "server")
ACCOUNTS = {"carga": "127.0.0.1", "nunca": "127.0.7.1"}
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
    load = Load(client, messages)
    await_that(lambda: len(client.accepted) >= messages * rng.uniform(0.1, 0.9) or load.done, 120)
    time.sleep(rng.uniform(0, 0.1))
    found.sessions = tell(world.control, cmd="report")["open"]
    window = kill(world, victim, rng.choice([0.0, rng.uniform(0, 1), LEASE_SECONDS + 1.5]))
    found.down = time.time() - window.died
    load.wait()
    found.drain = await_that(lambda: world.queued() == 0, DRAIN_SECONDS)
    compare(found, client, read(world, client, started), window)
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


def compare(found: Round, client: Client, books: Books, window: Window) -> None:
    open_, twice = books.open_at(window.died, window.until), books.twice
    found.accepted, found.recipients = len(client.accepted), len(books.promised)
    found.open_at_kill = len(open_)
    found.lost = len(books.lost)
    found.duplicates = sum(len(books.receipts[pair]) - 1 for pair in twice)
    found.outside = len(twice - open_)
    found.never_duplicates = sum(books.promised[pair] == "nunca" for pair in twice)
    found.unknown = len(books.unknown)
    found.unknown_received = len(books.unknown & books.receipts.keys())
    found.unaccounted = len(books.unaccounted)
    found.late = books.kinds["late"]
    received = {message_id for message_id, _ in books.receipts}
    found.refused, found.refused_received = len(client.refused), len(received & client.refused.keys())
    found.unanswered, found.unanswered_received = len(client.unanswered), len(received & client.unanswered)
    found.left = books.left


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
    drained = max((one.drain for one in played), default=0.0)
    all_ = all(one.drain >= 0 for one in played)
    outcome.check("the queue was empty again each time", all_, f"{drained:.0f} s after the last 250 at most")
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
