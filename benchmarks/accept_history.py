"""What became of a mail or of a recipient, within a second, of a day of a million mails, cold and warm.

A day of a million mails is archived: as batches while it goes on, and packed when it is over. The newest events lie in
the stream of a real queue server only. Look-ups go through all shards by id, by recipient, by recipient and date, for
what is there and for what is not; cold means that no page of the archive is in memory. Every answer is compared with
what was written. Counter-checks: an archive that lacks a batch gives answers that are found to be wrong; without its
indexes the same answers take longer.

    python -m benchmarks.accept_history [--messages 1000000]
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.day import MAILBOXES, Row, mailbox, rows
from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from config.settings import QueueSettings
from mailqueue.queue import Queue
from streams import index, segment
from streams.appender import Appender
from streams.archive import Archive, path_of
from streams.history import history
from streams.indexing import Indexer
from streams.retention import Retention, Terms

MAILS, SAMPLES, RECENT = 1_000_000, 20, 20_000
SECONDS = 1.0  # the line
BATCH = 10_000  # as the archiver writes them
DAY_MS = 86_400_000


@dataclass(slots=True)
class Truth:
    """What was written of the sampled ids and mailboxes, in order. ``wanted``: the numbers of the mails to sample."""

    wanted: frozenset[int]
    ids: dict[str, list[bytes]] = field(default_factory=dict)
    mailboxes: dict[str, list[bytes]] = field(default_factory=dict)
    mails: int = 0
    events: int = 0

    def add(self, row: Row) -> None:
        self.events += 1
        if row.data.startswith(b'{"kind":"received"'):
            if self.mails in self.wanted:
                self.ids[row.id] = []
            self.mails += 1
        if row.id in self.ids:
            self.ids[row.id].append(row.data)
        if row.mailbox in self.mailboxes:
            self.mailboxes[row.mailbox].append(row.data)


def sampled(mails: int, samples: int) -> Truth:
    """Mails of the whole day, the last one among them, and mailboxes."""
    rng = random.Random(7)
    truth = Truth(frozenset(mails * number // samples for number in range(samples)) | {mails - 1})
    while len(truth.mailboxes) < samples:
        truth.mailboxes[mailbox(rng.randrange(MAILBOXES))] = []
    return truth


def write(directory: Path, written: Iterable[Row], truth: Truth, recent: int) -> list[Row]:
    """All but the last ``recent`` events go to the archive; they come back."""
    appender, indexer = Appender(directory), Indexer()
    appender.open()
    held: list[Row] = []
    try:
        for row in written:
            truth.add(row)
            held.append(row)
            if len(held) >= BATCH + recent:
                _append(appender, indexer, held[:BATCH])
                del held[:BATCH]
        if len(held) > recent:
            _append(appender, indexer, held[: len(held) - recent])
    finally:
        appender.close()
    return held[-recent:]


def _append(appender: Appender, indexer: Indexer, batch: Sequence[Row]) -> None:
    for one, _ in appender.append(0, [(row.stream_id, row.data) for row in batch]):
        indexer.catch_up(one.path)


def evict(directory: Path) -> None:
    """No page of the archive stays in memory."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(slots=True)
class Lookups:
    """Seconds of each look-up, by what was asked."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    wrong: int = 0

    def figures(self, what: str) -> dict[str, Any]:
        return {
            "look-up": what,
            "count": len(self.cold),
            "cold median ms": statistics.median(self.cold) * 1000,
            "cold worst ms": max(self.cold) * 1000,
            "warm median ms": statistics.median(self.warm) * 1000,
            "warm worst ms": max(self.warm) * 1000,
            "wrong": self.wrong,
        }


async def look_up(queue: Queue, archive: Archive, truth: Truth, day: int) -> dict[str, Lookups]:
    """``day``: its first millisecond."""
    found = {what: Lookups() for what in ("id", "recipient", "recipient and date", "unknown id", "unknown recipient")}
    for one, asked, expected in _questions(truth, day):
        for seconds in (found[one].cold, found[one].warm):
            if seconds is found[one].cold:
                evict(archive.directory)
            began = time.perf_counter()
            events = await history(queue.shards, archive, **asked)
            seconds.append(time.perf_counter() - began)
            found[one].wrong += [event.to_json() for event in events] != expected
    return found


def _questions(truth: Truth, day: int) -> Iterator[tuple[str, dict[str, Any], list[bytes]]]:
    for message_id, events in truth.ids.items():
        yield "id", {"id": message_id}, events
    for number, (whom, events) in enumerate(truth.mailboxes.items()):
        yield "recipient", {"recipient": whom.upper() if number % 2 else whom}, events
        yield "recipient and date", {"recipient": whom, "since_ms": day, "until_ms": day + DAY_MS * 3 // 2}, events
        yield "unknown recipient", {"recipient": f"nadie.{whom}"}, []
    for message_id in truth.ids:
        yield "unknown id", {"id": message_id[:-3] + "vvv"}, []


def judge(outcome: Outcome, state: str, found: dict[str, Lookups]) -> None:
    for what, lookups in found.items():
        worst = max(lookups.cold + lookups.warm)
        seen = f"worst {worst * 1000:.0f} ms"
        outcome.check(f"{state}: by {what}, each within a second, cold and warm", worst <= SECONDS, seen)
    wrong = sum(lookups.wrong for lookups in found.values())
    asked = sum(len(lookups.cold) + len(lookups.warm) for lookups in found.values())
    outcome.check(f"{state}: every answer is what was written", wrong == 0, f"{wrong} of {asked} wrong")
    table = [lookups.figures(what) for what, lookups in found.items()]
    show(f"{state}: look-ups", table)
    outcome.figures[state] = table


async def counter_checks(outcome: Outcome, queue: Queue, archive: Archive, truth: Truth, day: int) -> None:
    """That a lost batch is seen, and what the indexes are good for."""
    (message_id, _), *_ = list(truth.ids.items())[len(truth.ids) // 2 :]
    began = time.perf_counter()
    with_index = await history(queue.shards, archive, id=message_id)
    indexed = time.perf_counter() - began
    for one in archive.segments():
        index.path_of(one.path).unlink()
    began = time.perf_counter()
    without = await history(queue.shards, archive, id=message_id)
    plain = time.perf_counter() - began
    outcome.check("without an index the answer is the same", without == with_index, f"{len(without)} events")
    outcome.figures["without index ms"], outcome.figures["with index ms"] = plain * 1000, indexed * 1000
    _lose_a_batch(archive)
    found = await history(queue.shards, archive, account="rrhh", since_ms=day, limit=truth.events)
    lost = truth.events - len(found)
    outcome.check("counter-check: an archive that lacks a batch does not pass", lost > 0, f"{lost} events not found")


def _lose_a_batch(archive: Archive) -> None:
    """The middle one of the largest segment."""
    path = max((one.path for one in archive.segments()), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        found = list(segment.batches(file))
        file.seek(found[len(found) // 2].offset)
        file.write(bytes(segment.BATCH_HEAD_BYTES))


def sizes(archive: Archive, events: int) -> dict[str, Any]:
    segments = [one.path.stat().st_size for one in archive.segments()]
    indexes = [index.path_of(one.path).stat().st_size for one in archive.segments()]
    return {
        "segments": len(segments),
        "MB": sum(segments) / 1e6,
        "bytes an event": sum(segments) / events,
        "index MB": sum(indexes) / 1e6,
        "index bytes an event": sum(indexes) / events,
    }


def command_line(relay: Relay, directory: Path, truth: Truth) -> float:
    """Seconds of one ``relayctl history``, its start included."""
    relay.configure({"archive": {"directory": str(directory)}})
    command = [
        sys.executable,
        "-m",
        "relayctl.main",
        "history",
        "--id",
        next(iter(truth.ids)),
        "--config",
        str(relay.config),
    ]
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - began


async def measure(outcome: Outcome, relay: Relay, directory: Path, mails: int, samples: int) -> None:
    yesterday = datetime.combine(date.today() - timedelta(1), datetime.min.time(), UTC)
    begin = int(yesterday.timestamp() * 1000)
    truth = sampled(mails, samples)
    began = time.perf_counter()
    recent = await asyncio.to_thread(write, directory, rows(mails, begin, DAY_MS), truth, min(RECENT, mails // 10))
    outcome.figures["written events/s"] = round(truth.events / (time.perf_counter() - began))
    outcome.figures["events"] = truth.events
    archive = Archive(directory)
    queue = await Queue.open(QueueSettings(url=relay.url), "accept", patience=10)
    try:
        shard = queue.shards[0]
        for row in recent:
            await shard.command("XADD", shard.events, row.stream_id, "e", row.data)
        outcome.figures["day going on, sizes"] = sizes(archive, truth.events)
        judge(outcome, "day going on", await look_up(queue, archive, truth, begin))
        began = time.perf_counter()
        await asyncio.to_thread(_pack, archive)
        outcome.figures["packing seconds"] = round(time.perf_counter() - began, 1)
        outcome.figures["day packed, sizes"] = sizes(archive, truth.events)
        judge(outcome, "day packed", await look_up(queue, archive, truth, begin))
        outcome.figures["relayctl history seconds"] = command_line(relay, directory, truth)
        await counter_checks(outcome, queue, archive, truth, begin)
    finally:
        await queue.close()


def _pack(archive: Archive) -> None:
    """All of it: as if a later day had begun."""
    later = datetime.now(UTC).date() + timedelta(2)
    begun = path_of(archive.directory, 0, later)
    begun.write_bytes(segment.head(0))
    Retention(archive, pause=lambda _: None).look(Terms(), later)
    begun.unlink()


def run(mails: int, samples: int, directory: Path) -> Outcome:
    outcome = Outcome("history", full=mails >= MAILS)
    with Relay(directory, roles=()) as relay:
        uvloop.run(measure(outcome, relay, directory / "archive", mails, samples))
    return outcome


def main() -> int:
    parser = arguments(__doc__, MAILS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args()
    with scratch("history") as directory:
        outcome = run(options.messages, options.samples, directory)
    show(
        "figures",
        [{"what": name, "figure": value} for name, value in outcome.figures.items() if not isinstance(value, list)],
    )
    return outcome.close()


if __name__ == "__main__":
    sys.exit(main())
