"""A weekend without a consumer: ten million events, and the queue server's memory stays flat; then the replay is exact.

Events with running numbers go into the stream of a real queue server (synced to disk) while the real maintenance
archives, first at the rate of 300,000 mails an hour, then at a multiple of it. Nobody reads. The server's memory is
asked every half second; it is flat when, from the moment the stream has its length, the second half of the time needs
at most a tenth more than the first, and the stream is never longer than what it keeps and a minute's events. Then everything is replayed from archive and stream while events go on: each number once and in
order. Counter-checks: with maintenance killed the same watch says "not flat"; a replay that lacks a batch, or has an
event twice, is said to be wrong.

    python -m benchmarks.accept_weekend [--messages 10000000] [--rate 15000]
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

from benchmarks.day import rows
from benchmarks.harness import Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from config.settings import QueueSettings
from mailqueue.queue import Queue
from streams.archive import Archive
from streams.merged import replay

EVENTS, RATE = 10_000_000, 15_000  # a second, forced
REAL_RATE, REAL_SECONDS = 300_000 * 3 // 3600, 20.0  # three events a mail
KEEP = 200_000  # in the stream, archived
FLAT = 0.10
FIRST = 10_000_000  # running numbers have eight digits from the first on
BURST = 1000  # events written to the server at once
STREAM = b"events:{q0}"
# As the queue's own scripts do it: many events in one step.
SCRIPT = b"for e in string.gmatch(ARGV[1], '[^\\n]+') do redis.call('XADD', KEYS[1], '*', 'e', e) end return 1"


class Feeder:
    """Events into the stream at a rate, in a thread; ``sent`` = how many are acknowledged."""

    def __init__(self, path: Path, templates: int = 20_000) -> None:
        self.sent = 0
        made = rows(templates // 2, 1_767_225_600_000, 3_600_000)
        self._templates = [row.data[:-1] + b',"n":' for row in made]
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def feed(self, count: int, rate: float) -> float:
        """Seconds it took. It waits where it is ahead of the rate and does not hurry where it is behind."""
        began, first = time.monotonic(), self.sent
        while self.sent < first + count:
            burst = min(BURST, first + count - self.sent, max(int(rate / 10), 1))
            self._burst(burst)
            ahead = (self.sent - first) / rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
        return time.monotonic() - began

    def _burst(self, count: int) -> None:
        many = len(self._templates)
        lines: list[bytes] = []
        for number in range(FIRST + self.sent, FIRST + self.sent + count):
            lines += (self._templates[number % many], b"%d}\n" % number)
        words = (b"EVAL", SCRIPT, b"1", STREAM, b"".join(lines))
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        answer = self._answers.readline()
        if answer != b":1\r\n":
            raise RuntimeError(f"the queue server says {answer!r}")
        self.sent += count


def number_of(event: bytes) -> int:
    """-1 for an event that has none (an alarm)."""
    return int(event[-9:-1]) if event[-13:-9] == b'"n":' else -1


# ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Sample:
    """``used``: used_memory, MB. ``behind``: seconds, as maintenance says."""

    at: float
    sent: int
    used: float
    length: int
    behind: float
    maintenance_mb: float


class Watch:
    """Asks the server in a thread until stopped."""

    def __init__(self, world: Relay, feeder: Feeder) -> None:
        self.samples: list[Sample] = []
        self._world, self._feeder = world, feeder
        self._over = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._over.wait(0.5):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        info = self._world.command("INFO", "memory").decode(errors="replace")
        used = int(info.partition("used_memory:")[2].partition("\r")[0] or 0)
        length = int(self._world.command("XLEN", STREAM)[1:].split(b"\r")[0] or 0)
        behind, resident = 0.0, 0.0
        with contextlib.suppress(OSError):
            behind = self._world.metrics("maintenance").get("tambo_archive_behind_seconds", 0.0)
            resident = self._world.processes["maintenance"].resident_bytes() / 1e6
        return Sample(time.monotonic() - self._began, self._feeder.sent, used / 1e6, length, behind, resident)


def warmed(samples: Sequence[Sample], keep: int) -> list[Sample]:
    """From the moment on when the stream had been filled and trimmed."""
    full = next((at for at, sample in enumerate(samples) if sample.sent >= 2 * keep), len(samples))
    return list(samples[full:])


def rise(samples: Sequence[Sample]) -> float:
    """By how much the most of the second half is above the most of the first, as a share; 9.99 = too few samples to say."""
    if len(samples) < 8:
        return 9.99
    half = len(samples) // 2
    first, second = (max(sample.used for sample in part) for part in (samples[:half], samples[half:]))
    return second / first - 1


# ── replay ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Replayed:
    """``wrong``: the first few places where a number did not follow the one before."""

    count: int = 0
    next: int = FIRST
    others: int = 0
    wrong: list[str] = field(default_factory=list)

    def take(self, number: int) -> None:
        if number < 0:
            self.others += 1
            return
        if number != self.next and len(self.wrong) < 10:
            self.wrong.append(f"{number} in place of {self.next}")
        self.count += 1
        self.next = number + 1

    def exact(self, sent: int) -> bool:
        return not self.wrong and self.count == sent and self.next == FIRST + sent


async def replayed(world: Relay, archive: Archive, feeder: Feeder, total: int) -> Replayed:
    """Up to the last of ``total`` events, which may not all have been sent when it begins."""
    found = Replayed()
    queue = await Queue.open(QueueSettings(url=world.url), "accept", patience=10)
    try:
        async for record in replay(queue.shards, archive):
            found.take(number_of(record.data))
            if found.next >= FIRST + total:
                break
    finally:
        await queue.close()
    return found


# ── the run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings(directory: Path, keep: int) -> dict[str, dict[str, object]]:
    return {"archive": {"directory": str(directory), "keep_in_stream": keep}}


def feed(outcome: Outcome, world: Relay, feeder: Feeder, events: int, rate: float, keep: int, real: int) -> None:
    """``real`` of the events at the real rate, then the others at the forced one, with the watch on."""
    watch = Watch(world, feeder)
    cpu = world.processes["maintenance"].cpu_seconds()
    try:
        slow = feeder.feed(real, REAL_RATE)
        fast = feeder.feed(events - real, rate)
        if outcome.full:
            await_archived(world)
    finally:
        watch.stop()
    seen = warmed(watch.samples, keep)
    most = max((sample.used for sample in seen), default=0.0)
    outcome.check(
        f"memory is flat: the second half of the time needs at most a tenth more than the first ({len(seen)} samples)",
        rise(seen) <= FLAT,
        f"{rise(seen):+.1%}; at most {most:.0f} MB",
    )
    longest = max(sample.length for sample in watch.samples)
    allowed = keep + 60 * int(rate)
    outcome.check(
        "the stream is never longer than what it keeps and a minute's events", longest <= allowed, f"{longest:,}"
    )
    worst = max(sample.behind for sample in watch.samples)
    outcome.check("the archive keeps up: never a minute behind", worst < 60, f"{worst:.0f} s at most")
    seconds = world.processes["maintenance"].cpu_seconds() - cpu
    outcome.figures |= {
        "events": feeder.sent,
        "real rate, events/s": round(real / slow),
        "forced rate, events/s": round((events - real) / fast),
        "used_memory MB, before": watch.samples[0].used,
        "used_memory MB, most": max(sample.used for sample in watch.samples),
        "stream length, most": max(sample.length for sample in watch.samples),
        "maintenance MB, most": max(sample.maintenance_mb for sample in watch.samples),
        "archiver µs of CPU an event": round(seconds / feeder.sent * 1e6, 2),
        "over time": [asdict(sample) for sample in watch.samples[:: max(len(watch.samples) // 40, 1)]],
    }


def await_archived(world: Relay, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while world.metrics("maintenance")["tambo_archive_behind_seconds"] > 0:
        if time.monotonic() > deadline:
            raise RuntimeError("the archive did not catch up")
        time.sleep(0.2)


def read_back(outcome: Outcome, world: Relay, archive: Archive, feeder: Feeder, more: int) -> None:
    """While ``more`` events come at the real rate."""
    total = feeder.sent + more
    feeding = threading.Thread(target=feeder.feed, args=(more, REAL_RATE), daemon=True)
    feeding.start()
    began = time.monotonic()
    found = uvloop.run(replayed(world, archive, feeder, total))
    seconds = time.monotonic() - began
    feeding.join(60)
    claim = (
        f"replay of {total:,} events from archive and stream, while {more:,} of them still come: each once, in order"
    )
    outcome.check(
        claim, found.exact(total), f"{found.count:,} events, {len(found.wrong)} out of place {found.wrong[:3]}"
    )
    outcome.figures["replayed events/s"] = round(found.count / seconds)
    size = sum(one.path.stat().st_size for one in archive.segments())
    outcome.figures["archive bytes an event"] = round(size / total, 1)


def counter_checks(outcome: Outcome, archive: Archive) -> None:
    numbers = list(range(FIRST, FIRST + 1000))
    lost, twice = numbers[:500] + numbers[501:], numbers[:500] + numbers[499:]
    said = []
    for wrong in (lost, twice):
        found = Replayed()
        for number in wrong:
            found.take(number)
        said.append(found.exact(1000))
    outcome.check("counter-check: one event lost, or one twice, is no exact replay", said == [False, False], said)
    lacking = Replayed()
    for number in _without_a_batch(archive):
        lacking.take(number)
    outcome.check("counter-check: an archive that lacks a batch is none", bool(lacking.wrong), lacking.wrong[:1])


def unwatched(outcome: Outcome, world: Relay, feeder: Feeder, keep: int) -> None:
    world.processes["maintenance"].kill()
    watch = Watch(world, feeder)
    try:
        time.sleep(3)
        feeder.feed(max(keep, 1000), 50_000)
        time.sleep(1.5)
    finally:
        watch.stop()
    risen = rise(watch.samples)
    outcome.check("counter-check: with maintenance killed memory is not flat", risen > FLAT, f"{risen:+.1%}")


def _without_a_batch(archive: Archive, events: int = 50_000) -> Iterator[int]:
    """The first events' numbers, without a thousand in the middle."""
    for at, (_, event) in enumerate(archive.read(0)):
        if at >= events:
            return
        if not events // 4 <= at < events // 4 + 1000 and (number := number_of(event)) >= 0:
            yield number


def run(events: int, rate: float, keep: int, directory: Path, killed: bool = True) -> Outcome:
    """``killed``: also that memory is not flat when nobody archives."""
    outcome = Outcome("weekend", full=events >= EVENTS)
    random.seed(1)
    archive = Archive(directory / "archive")
    with Relay(directory, roles=("maintenance",), settings=settings(archive.directory, keep)) as world:
        feeder = Feeder(directory / "s", min(20_000, events))
        try:
            real = min(int(REAL_RATE * REAL_SECONDS), events // 100)
            feed(outcome, world, feeder, events, rate, keep, real)
            read_back(outcome, world, archive, feeder, min(REAL_RATE * 10, real))
            counter_checks(outcome, archive)
            if killed:
                unwatched(outcome, world, feeder, keep)
        finally:
            feeder.close()
    return outcome


def main() -> int:
    parser = arguments(__doc__, EVENTS)
    parser.add_argument("--rate", type=float, default=RATE, help=f"events a second, forced; default {RATE:,}")
    options = parser.parse_args()
    with scratch("weekend") as directory:
        outcome = run(options.messages, options.rate, min(KEEP, options.messages // 10), directory)
    figures = outcome.figures.items()
    show("figures", [{"what": name, "figure": value} for name, value in figures if not isinstance(value, list)])
    return outcome.close()


if __name__ == "__main__":
    sys.exit(main())
