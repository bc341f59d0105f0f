"""The bounce processor of examples/ killed 20 times amid a real run: nothing lost, nothing counted twice in its table.

Mail for good, unknown, full and deferring recipients goes through a whole relay with two shards. All the while the
example reads the events for its group and keeps its table, in SQLite and then (``--postgres``) in PostgreSQL. It is
killed (kill -9) at random moments and started again at once; in between the queue server is killed and started, and
the processor stays away until the stream has been trimmed behind it, so that it must go on in the archive.

Afterwards its table must be, address by address, what all events say that archive and stream hold, and what the next
hops' own ledger says was delivered.

    python -m benchmarks.accept_consumer [--messages 9000] [--kills 20] [--seed 1] [--databases sqlite postgres]
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.books import Load, await_that
from benchmarks.harness import REPOSITORY, Process, Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.postgres import Postgres
from benchmarks.submit import Client
from config.settings import QueueSettings
from examples.bounce_processor import COUNTERS, KINDS, meaning
from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.trimming import trimmed_to
from sandbox.control import tell
from sandbox.receipts import Receipts
from streams import ids
from streams.archive import Archive
from streams.groups import Groups
from streams.lag import lags
from streams.merged import replay

MESSAGES, KILLS, SHARDS, EVENTS = 9000, 20, 2, 20_000
GROUP = "bounces"
LEASE_SECONDS = 1.0
DOMAINS = ("gmail.test", "gob.test", "outlook.test", *(f"d{n}.many.test" for n in range(8)))
MANNERS = ("", "", "", "unknown+", "disabled+", "full+", "full-permanent+", "defer+", "reject+", "storm+")
DRAIN_SECONDS = 300.0

Table = Mapping[str, Sequence[int]]  # address → delivered, hard, soft, other


class Clientele(Client):
    """The same few addresses again and again, each treated in its own way."""

    def _recipients(self, number: int, rng: random.Random) -> tuple[str, ...]:
        count = 3 if number % 5 == 0 else 1
        found = {f"{rng.choice(MANNERS)}u{rng.randrange(60)}@{rng.choice(DOMAINS)}" for _ in range(count)}
        return tuple(sorted(found))


@dataclass(slots=True)
class Run:
    """What happened on the way. ``waiting``: events that the processor had not acknowledged, at each kill."""

    kills: int = 0
    waiting: list[int] = field(default_factory=list)
    behind: bool = False  # the stream was trimmed behind the group's position
    caught_up: float = -1.0
    events: Counter[str] = field(default_factory=Counter)


def relay(directory: Path, expire_seconds: int = 12) -> Relay:
    return Relay(
        directory,
        settings={
            "queue": {"url": f"unix://{directory}/s", "shards": SHARDS},
            "archive": {"directory": str(directory / "archive"), "keep_in_stream": 1000},
            "delivery": {
                "retry": {"steps_seconds": [1, 2, 4], "expire_seconds": expire_seconds, "delay_notice_seconds": 0}
            },
        },
    )


class Processor:
    """The example as a process, on one database."""

    def __init__(self, world: Relay, database: str) -> None:
        command = [sys.executable, str(REPOSITORY / "examples" / "bounce_processor.py"), "--config", str(world.config)]
        command += ["--database", database, "--lease", str(LEASE_SECONDS), "--batch", "10", "--group", GROUP]
        environment = {"PYTHONPATH": str(REPOSITORY)}
        self.process = Process("processor", command, world.directory / "processor.log", environment)

    def start(self) -> None:
        self.process.start()

    def kill(self) -> None:
        if not self.process.running:
            raise RuntimeError("the processor ended by itself:\n" + self.process.log.read_text()[-2000:])
        self.process.kill()


def play(world: Relay, database: str, messages: int, kills: int, seed: int, *, archive: bool = True) -> Run:
    rng, found = random.Random(seed), Run()
    client = Clientele(world.submission, world.directory / "ledger.jsonl", {"carga": "127.0.0.1"}, DOMAINS, seed=seed)
    processor = Processor(world, database)
    processor.start()
    await_that(lambda: _ask(world, _known), 30)
    load = Load(client, messages)
    try:
        for number in range(kills):
            time.sleep(rng.uniform(0.1, 3.0))
            found.waiting.append(_ask(world, _waiting))
            processor.kill()
            found.kills += 1
            if number == kills // 3:
                _restart_server(world)
            if number == kills * 2 // 3 and archive:
                load.wait()
                load = Load(client, messages // 3)  # enough that the stream is trimmed, however fast the machine
                found.behind = await_that(lambda: _ask(world, _trimmed_behind), 90) >= 0
            processor.start()
        load.wait()
        await_that(lambda: world.queued() == 0, DRAIN_SECONDS)
        found.caught_up = await_that(lambda: _ask(world, _waiting) == 0, DRAIN_SECONDS)
    finally:
        if processor.process.running:
            processor.process.kill()
    return found


def _restart_server(world: Relay) -> None:
    world.server.kill()
    time.sleep(0.3)
    world.start_server()


# ── looking ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ask(world: Relay, question: Any) -> Any:
    async def session() -> Any:
        queue = await Queue.open(QueueSettings(url=world.url, shards=SHARDS), "accept", patience=30)
        try:
            return await question(queue)
        finally:
            await queue.close()

    return asyncio.run(session())


async def _known(queue: Queue) -> bool:
    return await Groups(queue.shards[0]).get(GROUP) is not None


async def _waiting(queue: Queue) -> int:
    groups = await Groups(queue.shards[0]).all()
    return (await lags(queue.shards, groups, int(time.time() * 1000)))[GROUP].events


async def _trimmed_behind(queue: Queue) -> bool:
    """In some shard what the group must read next is in the archive only."""
    group = await Groups(queue.shards[0]).get(GROUP)
    assert group is not None
    return any(
        [
            ids.parse(await trimmed_to(shard)) > ids.parse(group.positions[shard.number])
            for shard in queue.shards
        ]
    )  # fmt: skip


def read_events(world: Relay) -> list[Event]:
    """All there have been, from archive and stream, without any group."""

    async def all_of(queue: Queue) -> list[Event]:
        archive = Archive(world.directory / "archive")
        return [Event.from_json(one.data) async for one in replay(queue.shards, archive, end=True)]

    found: list[Event] = _ask(world, all_of)
    return found


def expected(events: Sequence[Event]) -> dict[str, list[int]]:
    """What the table must be."""
    table: dict[str, list[int]] = {}
    for event in events:
        if event.kind in KINDS:
            counts = table.setdefault(event.recipient.lower(), [0] * len(COUNTERS))
            counts[COUNTERS.index(meaning(event))] += 1
    return table


def received(world: Relay) -> Counter[str]:
    """Address → messages that its host has taken."""
    tell(world.control, cmd="flush")
    records = Receipts(world.directory / "sandbox" / "ledger.jsonl").records("message")
    return Counter(recipient.lower() for record in records for recipient in record["to"])


def table_of(database: str) -> dict[str, list[int]]:
    statement = f"SELECT address, {', '.join(COUNTERS)} FROM addresses"
    if database.startswith("postgresql://"):
        return {row[0]: list(row[1:]) for row in Postgres.query(database, statement)}
    connection = sqlite3.connect(database)
    try:
        return {row[0]: list(row[1:]) for row in connection.execute(statement)}
    finally:
        connection.close()


def difference(table: Table, wanted: Table) -> tuple[int, int]:
    """Events that the table lacks, and those that it has too many of."""
    lost = twice = 0
    for address in table.keys() | wanted.keys():
        nothing = [0] * len(COUNTERS)
        for had, should in zip(table.get(address, nothing), wanted.get(address, nothing), strict=True):
            lost += max(should - had, 0)
            twice += max(had - should, 0)
    return lost, twice


# ── judging ────────────────────────────────────────────────────────────────────────────────────────────────────────


def judge(outcome: Outcome, kind: str, world: Relay, run_: Run, table: Table, kills: int) -> list[Event]:
    events = read_events(world)
    run_.events = Counter(event.kind for event in events)
    wanted = expected(events)
    lost, twice = difference(table, wanted)
    counted = sum(map(sum, table.values()))
    outcome.check(f"{kind}: no event lost", lost == 0, f"{lost} of {sum(map(sum, wanted.values())):,}")
    outcome.check(f"{kind}: no event counted twice", twice == 0, f"{twice} of {counted:,}")
    hops, delivered = received(world), COUNTERS.index("delivered")
    wrong = [name for name in hops.keys() | table.keys() if table.get(name, [0])[delivered] != hops[name]]
    outcome.check(f"{kind}: delivered is what the next hops have", not wrong, wrong[:3] or f"{hops.total():,}")
    each = [sum(row[n] for row in table.values()) for n in range(len(COUNTERS))]
    outcome.check(f"{kind}: each counter counted", all(each), dict(zip(COUNTERS, each, strict=True)))
    outcome.check(f"{kind}: killed so many times", run_.kills == kills, run_.kills)
    busy = sum(count > 0 for count in run_.waiting)
    outcome.check(f"{kind}: most kills came amid its work", busy * 2 > kills, f"{busy} of {kills}")
    outcome.check(f"{kind}: it went on in the archive", run_.behind, "the stream was trimmed behind it")
    outcome.check(f"{kind}: it caught up", run_.caught_up >= 0, f"{run_.caught_up:.0f} s after the last result")
    total = sum(run_.events.values())
    if outcome.full:
        outcome.check(f"{kind}: events", total >= EVENTS, f"{total:,}")
    outcome.figures[kind] = {
        "events": dict(run_.events),
        "table": dict(zip(COUNTERS, each, strict=True)),
        "addresses": len(table),
        "waiting at the kills": run_.waiting,
        "lost": lost,
        "twice": twice,
    }
    show(f"{kind}: events", [{"kind": name, "events": count} for name, count in run_.events.most_common()])
    return events


def run(messages: int, kills: int, seed: int, databases: Sequence[str], directory: Path) -> tuple[Outcome, list[Event]]:
    outcome = Outcome("consumer", full=messages >= MESSAGES and kills >= KILLS and len(databases) > 1)
    events: list[Event] = []
    for number, kind in enumerate(databases):
        with ExitStack() as stack:
            own = directory / kind
            world = stack.enter_context(relay(own))
            database = str(own / "bounces.sqlite")
            if kind == "postgres":
                database = stack.enter_context(Postgres(own / "postgres")).url
            found = play(world, database, messages, kills, seed + number)
            events += judge(outcome, kind, world, found, table_of(database), kills)
    return outcome, events


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    options = parser.parse_args()
    with scratch("consumer") as directory:
        outcome, _ = run(options.messages, options.kills, options.seed, options.databases, directory)
    return outcome.close()


if __name__ == "__main__":
    sys.exit(main())
