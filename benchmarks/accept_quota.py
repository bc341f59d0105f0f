"""Quotas under SIGKILL: relayd, delivery and the queue server in turn, while recipients move between two accounts.

*madre* and its child *hija* submit at once over several shards. All the time an operator transfers recipients between
them at random, now and then all that hija has, so that its mail is refused for a while. Credit comes through the real
``relayctl``, each round. After a round the queue is empty, and each account must reconcile: what was credited is what
is left, in transit, lapsed or used, and what was used is what the events say. The same is asked in the midst of it.

    python -m benchmarks.accept_quota [--messages 2000] [--rounds 10] [--seed 1]
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.accept_kills import DOMAINS, LEASE_SECONDS, PUT_SECONDS, SCENARIO, VICTIMS, kill
from benchmarks.books import Load, await_that, read
from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.submit import Client
from config.settings import QueueSettings
from mailqueue.errors import QueueDown
from mailqueue.queue import Queue
from mailqueue.quota import Grant, Short, new_token
from mailqueue.statement import reconcile

MESSAGES, ROUNDS, SHARDS = 2000, 10, 3
ACCOUNTS = {"madre": "127.0.0.1", "hija": "127.0.7.1"}
RECIPIENTS = 1.4  # a message, as the client makes them
DRAIN_SECONDS = 240.0
ALLOTMENT = 100  # many refills, so that kills fall into them


@dataclass(slots=True)
class Round:
    victim: str
    accepted: int = 0  # messages with a 250
    recipients: int = 0  # of those
    exhausted: int = 0  # 550 quota exhausted
    transfers: int = 0
    short: int = 0  # transfers refused, for there was too little
    midway: int = 0  # reconciled while mail went in
    midway_wrong: int = 0
    used: int = 0  # since the run began, both accounts
    refunded: int = 0  # events: recipients that came back
    difference: int = 0  # sum of what does not reconcile
    by_events: int = 0  # used minus what the events say
    by_hand: int = 0  # sums of the ledger minus what the operator did
    lost: int = 0
    drain: float = 0.0
    books: list[dict[str, Any]] = field(default_factory=list)


class Operator:
    """Transfers in a thread of its own; what it was told was done is in ``sums``."""

    def __init__(self, world: Relay, seed: int, sums: Counter[str], found: Round) -> None:
        self._world, self._rng = world, random.Random(seed)
        self._sums, self._found = sums, found
        self._over = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(120)
        if self._trouble is not None:
            raise self._trouble

    def _run(self) -> None:
        try:
            uvloop.run(self._work())
        except BaseException as error:
            self._trouble = error

    async def _work(self) -> None:
        queue = await _opened(self._world)
        try:
            while not self._over.is_set():
                giver, taker = self._rng.sample(sorted(ACCOUNTS), 2)
                amount = self._rng.randint(1, 300)
                if giver == "hija" and self._rng.random() < 0.5:
                    amount = await self._all_of(queue, giver) or 1
                await self._transfer(queue, giver, taker, amount)
                if self._rng.random() < 0.1:
                    await self._reconcile(queue)
                await asyncio.sleep(self._rng.uniform(0, 0.05))
        finally:
            await queue.close()

    async def _all_of(self, queue: Queue, name: str) -> int:
        """Nearly: mail goes on meanwhile."""
        figures = await _patient(lambda: reconcile(queue.ledger, [name]))
        return int(0.95 * (figures[0].balance + figures[0].left))

    async def _transfer(self, queue: Queue, giver: str, taker: str, amount: int) -> None:
        token = new_token()
        try:
            await _patient(
                lambda: queue.ledger.transfer(Grant(giver), Grant(taker), amount, token, origin="cli", who="accept")
            )
        except Short:
            self._found.short += 1
        else:
            self._found.transfers += 1
            self._sums[giver] -= amount
            self._sums[taker] += amount

    async def _reconcile(self, queue: Queue) -> None:
        figures = await _patient(lambda: reconcile(queue.ledger, list(ACCOUNTS)))
        self._found.midway += 1
        self._found.midway_wrong += not all(one.agrees for one in figures)


async def _opened(world: Relay) -> Queue:
    return await Queue.open(QueueSettings(url=world.url, shards=SHARDS), "accept", patience=60)


async def _patient(verb: Callable[[], Awaitable[Any]]) -> Any:
    """Until the server answers, over its restart."""
    while True:
        try:
            return await verb()
        except QueueDown:
            await asyncio.sleep(0.05)


def relay(directory: Path) -> Relay:
    queue = {"url": f"unix://{directory}/s", "shards": SHARDS}
    return Relay(
        directory,
        settings={
            "queue": {**queue, "lease_seconds": LEASE_SECONDS, "put_deadline_seconds": PUT_SECONDS},
            "quota": {"allotment": ALLOTMENT},
        },
        accounts=[
            {"name": "madre", "networks": ["127.0.0.0/24"], "quota": "bag"},
            {"name": "hija", "networks": ["127.0.7.0/24"], "quota": "bag", "parent": "madre"},
        ],
        scenario=SCENARIO,
    )


def relayctl(world: Relay, *words: str) -> str:
    command = [sys.executable, "-m", "relayctl.main", *words, "--config", str(world.config)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    if ran.returncode:
        raise RuntimeError(f"relayctl {' '.join(words)}: {ran.stdout}{ran.stderr}")
    return ran.stdout


def play(world: Relay, victim: str, messages: int, seed: int, sums: Counter[str]) -> Round:
    """One round: credit, load and transfers, kill, restart, drain; then the books."""
    rng, found, started = random.Random(seed), Round(victim), time.time()
    amount = int(1.3 * RECIPIENTS * messages)
    relayctl(world, "account", "credit", "madre", str(amount), "--reason", f"round {seed}")
    sums["madre"] += amount
    client = Client(world.submission, world.directory / f"ledger-{seed}.jsonl", ACCOUNTS, DOMAINS, seed=seed)
    operator = Operator(world, seed, sums, found)
    load = Load(client, messages)
    await_that(lambda: len(client.accepted) >= messages * rng.uniform(0.1, 0.9) or load.done, 120)
    kill(world, victim, rng.choice([0.0, rng.uniform(0, 1), LEASE_SECONDS + 1.5]))
    load.wait()
    operator.stop()
    found.drain = await_that(lambda: world.queued() == 0, DRAIN_SECONDS)
    books = read(world, client, started)
    found.lost = len(books.lost)
    found.refunded = sum(event.refunded for _, event in books.events)
    found.accepted = len(client.accepted)
    found.recipients = sum(len(one.recipients) for one in client.accepted.values())
    found.exhausted = sum("quota exhausted" in reply for reply in client.refused.values())
    compare(world, found, sums)
    return found


def compare(world: Relay, found: Round, sums: Counter[str]) -> None:
    found.books = orjson.loads(relayctl(world, "quota", "reconcile", "--json"))
    for book in found.books:
        found.used += book["used"]
        found.difference += abs(book["difference"])
        found.by_events += abs(book["used"] - (book["events"] if book["events"] is not None else -1))
        found.by_hand += abs(book["credited"] - book["lapsed"] - sums[book["account"]])


def run(messages: int, rounds: int, seed: int, directory: Path) -> Outcome:
    outcome = Outcome("quota", full=messages >= MESSAGES and rounds >= ROUNDS)
    victims = [victim for _ in range(-(-rounds // len(VICTIMS))) for victim in VICTIMS][:rounds]
    random.Random(seed).shuffle(victims)
    played: list[Round] = []
    sums: Counter[str] = Counter()
    with relay(directory) as world:
        for number, victim in enumerate(victims):
            played.append(play(world, victim, messages, seed * 1000 + number, sums))
            print(f"round {number + 1}: {row(played[-1])}", flush=True)
    judge(outcome, played)
    return outcome


def row(one: Round) -> dict[str, Any]:
    return {
        "killed": one.victim,
        "accepted": one.accepted,
        "recipients": one.recipients,
        "550": one.exhausted,
        "transfers": f"{one.transfers} ({one.short} short)",
        "midway": f"{one.midway} ({one.midway_wrong} wrong)",
        "used": one.used,
        "came back": one.refunded,
        "difference": one.difference,
        "events": one.by_events,
        "by hand": one.by_hand,
        "drain s": one.drain,
    }


def judge(outcome: Outcome, played: list[Round]) -> None:
    show("quota rounds", [row(one) for one in played])
    outcome.figures["rounds"] = [asdict(one) for one in played]

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in played)

    accounts = len(ACCOUNTS)
    both = all(len(one.books) == accounts for one in played)
    outcome.check("credited = left + in transit + lapsed + used", both and not total("difference"), total("difference"))
    outcome.check("used is what the events say", total("by_events") == 0, f"{played[-1].used} used")
    outcome.check("entries are what the operator did", total("by_hand") == 0, f"{total('transfers')} transfers")
    midway = f"{total('midway')} times, {total('midway_wrong')} wrong"
    outcome.check("it reconciles while mail goes in", total("midway") > 0 and not total("midway_wrong"), midway)
    paid = all(one.used >= sum(p.recipients for p in played[: i + 1]) for i, one in enumerate(played))
    outcome.check("every 250 was paid for", paid, f"{total('recipients')} recipients")
    outcome.check("an account ran empty", total("exhausted") > 0, f"{total('exhausted')} × 550")
    outcome.check("nothing was lost", total("lost") == 0, total("lost"))
    outcome.check("the queue was empty again each time", all(one.drain >= 0 for one in played))


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with scratch("quota") as directory:
        return run(options.messages, options.rounds, options.seed, directory).close()


if __name__ == "__main__":
    sys.exit(main())
