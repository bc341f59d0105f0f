"""What a look of ``relayctl top`` costs the queue server with a million recipients queued.

``python -m benchmarks.accept_top [--count N]``

500 campaigns of 10 accounts, 20,000 domains. The server's own account of its time (commandstats) around each look. As a
counter-check the same is asked of counting every queue, which top must not do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.harness import Relay, scratch
from benchmarks.outcome import Outcome
from config.settings import QueueSettings
from mailqueue.message import Envelope, Message, new_id
from mailqueue.queue import Queue
from mailqueue.server import info_map
from maintenance.census import Census
from relayctl.overview import Looker

DAY = 86_400_000
ACCOUNTS, CAMPAIGNS, DOMAINS, EACH = 10, 50, 20_000, 1000
LOOKS = 20
MOST_MS = 20.0


def messages(count: int) -> Iterator[Message]:
    now = int(time.time() * 1000)
    for number in range(max(count // EACH, 1)):
        first = number * EACH
        recipients = tuple(f"p{first + n}@d{(first + n) % DOMAINS}.many.test" for n in range(min(EACH, count)))
        account, campaign = f"a{number % ACCOUNTS}", f"c{number // ACCOUNTS % CAMPAIGNS}"
        envelope = Envelope(new_id(), account, "aviso@entidad.test", recipients, now, now + 5 * DAY, campaign=campaign)
        yield Message(envelope, b"Subject: aviso\r\n\r\ntexto\r\n")


async def server_ms(queue: Queue, work: Callable[[], Awaitable[object]]) -> float:
    """The server's milliseconds in commands; scripts count once, what they call within them."""

    async def spent() -> float:
        info = info_map(await queue.shards[0].command("INFO", "commandstats"))
        return sum(float(facts.split("usec=")[1].split(",")[0]) / 1000 for facts in info.values() if "usec=" in facts)

    before = await spent()
    await work()
    return await spent() - before


async def measure(url: str, count: int, outcome: Outcome) -> None:
    queue = await Queue.open(QueueSettings(url=url, memory_mark=1.0, disk_mark_mb=0), "top", patience=30)
    try:
        waiting: set[asyncio.Task[object]] = set()
        for one in messages(count):
            waiting.add(asyncio.create_task(queue.put(one)))
            if len(waiting) >= 50:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*waiting)
        looker = Looker(queue)
        seen = await looker.look()
        costs, took = [], []
        for _ in range(LOOKS):
            began = time.monotonic()
            costs.append(await server_ms(queue, looker.look))
            took.append((time.monotonic() - began) * 1000)
        census = await server_ms(queue, Census(queue.shards, CollectorRegistry()).take)
        everything = await server_ms(queue, lambda: count_queues(queue))
    finally:
        await queue.close()
    outcome.figures |= {
        "recipients": seen.backlog.open,
        "flows": len(seen.flows),
        "server_ms_median": statistics.median(costs),
        "server_ms_most": max(costs),
        "look_ms_median": statistics.median(took),
        "census_ms": census,
        "counting_every_queue_ms": everything,
    }
    outcome.check("all recipients are in the picture", seen.backlog.open == count, f"{seen.backlog.open:,}")
    figure = (
        f"{statistics.median(costs):.1f} ms, at most {max(costs):.1f} ms; a look takes {statistics.median(took):.0f} ms"
    )
    outcome.check(f"server time of a look below {MOST_MS:.0f} ms", max(costs) < MOST_MS, figure)
    outcome.check("counting every queue would not be", not outcome.full or everything > MOST_MS, f"{everything:.0f} ms")


async def count_queues(queue: Queue) -> int:
    """By SCAN, as who knows no better would."""
    shard, cursor, found = queue.shards[0], b"0", 0
    while True:
        cursor, keys = await shard.command("SCAN", cursor, "MATCH", f"{shard.prefix}q:*", "COUNT", 5000)
        found += sum(await shard.commands([("ZCARD", key) for key in keys]))
        if cursor == b"0":
            return found


def run(count: int, full: int = 1_000_000) -> Outcome:
    outcome = Outcome("top", full=count >= full)
    with scratch("top") as directory:
        relay = Relay(directory, roles=())
        relay.start_server()
        try:
            uvloop.run(measure(relay.url, count, outcome))
        finally:
            relay.close()
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    return run(parser.parse_args().count).close()


if __name__ == "__main__":
    sys.exit(main())
