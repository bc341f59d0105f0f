"""What a copy of the queue costs: put's latency beside it, time, size, the server's extra memory; then the way back.

The queue is filled with personalised mail; 500 messages a second are put, before, during and after ``queue backup``. Then
the server's data is thrown away and the copy restored.

    python -m benchmarks.bench_backup [--messages 80000]
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.accept_restore import relayctl
from benchmarks.accept_scale import personal, put_all
from benchmarks.harness import Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from config.settings import QueueSettings
from mailqueue.queue import Queue
from mailqueue.server import info_map

MESSAGES = 80_000
A_SECOND = 500
BASELINE_SECONDS = 5.0


async def steady(queue: Queue, stop: asyncio.Event, rng: random.Random) -> list[float]:
    """Milliseconds of each put, whatever the one before took; the schedule is kept."""
    loop = asyncio.get_running_loop()
    found: list[float] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(message: Any) -> None:
        began = loop.time()
        assert (await queue.put(message)).kind == "queued"
        found.append((loop.time() - began) * 1000)

    messages, begun = personal(1_000_000, rng), loop.time()
    for number, message in enumerate(messages):
        if stop.is_set():
            break
        await asyncio.sleep(max(begun + number / A_SECOND - loop.time(), 0))
        task = asyncio.create_task(one(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return sorted(found)


def row(when: str, found: list[float]) -> dict[str, object]:
    def at(share: float) -> float:
        return found[min(int(len(found) * share), len(found) - 1)]

    return {"when": when, "puts": len(found), "p50 ms": at(0.5), "p99 ms": at(0.99), "max ms": found[-1]}


async def beside(queue: Queue, work: Any, rng: random.Random) -> list[float]:
    """Latencies while ``work()`` runs in a thread."""
    stop = asyncio.Event()
    putting = asyncio.create_task(steady(queue, stop, rng))
    try:
        await asyncio.to_thread(work)
    finally:
        stop.set()
    return await putting


async def measure(world: Relay, count: int, copy: Path, outcome: Outcome) -> None:
    rng = random.Random(1)
    queue = await Queue.open(QueueSettings(url=world.url, disk_mark_mb=0), "bench")
    try:
        await put_all(queue, personal(count, rng), count)
        before = await beside(queue, lambda: time.sleep(BASELINE_SECONDS), rng)
        said: dict[str, Any] = {}

        def take() -> None:
            began = time.monotonic()
            said.update(orjson.loads(relayctl(world, "queue", "backup", str(copy), "--json")))
            said["seconds"] = time.monotonic() - began

        during = await beside(queue, take, rng)
        after = await beside(queue, lambda: time.sleep(BASELINE_SECONDS), rng)
        memory = info_map(await queue.shards[0].command("INFO", "memory"))
        info = info_map(await queue.shards[0].command("INFO", "persistence")) | info_map(
            await queue.shards[0].command("INFO", "stats")
        )
    finally:
        await queue.close()
    rows = [row("before", before), row("during the copy", during), row("after", after)]
    show("put", rows)
    outcome.figures |= {
        "messages": count,
        "puts_per_second": A_SECOND,
        "latency": rows,
        "copy_seconds": said["seconds"],
        "copy_bytes": said["bytes"],
        "used_memory": int(memory["used_memory"]),
        "copy_on_write_bytes": int(info.get("rdb_last_cow_size", 0)),
        "fork_milliseconds": int(info.get("latest_fork_usec", 0)) / 1000,
        "file": int(info.get("aof_current_size", 0)),
    }
    outcome.check(
        "no put beside the copy took a second", during[-1] < 1000, f"{len(during):,} puts, {during[-1]:.0f} ms at most"
    )


def back(world: Relay, copy: Path, outcome: Outcome) -> None:
    began = time.monotonic()
    relayctl(world, "queue", "backup", "--verify", str(copy))
    outcome.figures["verify_seconds"] = time.monotonic() - began
    world.server.stop()
    shutil.rmtree(world.directory / "appendonlydir")
    world.start_server()
    began = time.monotonic()
    words = ("--hold", "--json", "--i-know-mail-may-go-out-twice")
    said = orjson.loads(relayctl(world, "queue", "restore", str(copy), *words))
    outcome.figures["restore_seconds"] = time.monotonic() - began
    outcome.figures["restored"] = said["held"]
    least = outcome.figures["messages"]
    outcome.check(
        "all that was in the queue comes back", said["held"] >= least, f"{said['held']:,} of {least:,} and more"
    )


def main() -> int:
    asked = arguments(__doc__, MESSAGES).parse_args()
    outcome = Outcome("backup", full=asked.messages >= MESSAGES)
    with scratch("backup") as directory:
        settings = "repl-diskless-sync-delay 0\n"
        with Relay(directory, roles=(), server_settings=settings) as world:
            copy = directory / "day.backup"
            uvloop.run(measure(world, asked.messages, copy, outcome))
            back(world, copy, outcome)
    print(orjson.dumps(outcome.figures, option=orjson.OPT_INDENT_2).decode())
    return outcome.close()


if __name__ == "__main__":
    sys.exit(main())
