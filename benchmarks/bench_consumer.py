"""Events per second of a consumer of a group, beside plain XREAD of the same stream in the same run.

    python -m benchmarks.bench_consumer [--events 100000] [--rounds 3]

``XREAD``: the stream's entries fetched and dropped. ``XREAD, read``: and each read as an Event. ``batches``: a Consumer,
500 events for an acknowledgement. ``one by one``: each event acknowledged and waited for, one in ten of the events.
``kinds``: a Consumer that wants one event in ten. Rounds alternate; the medians count. Server: embedded, synced always.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Awaitable, Callable

import uvloop

from benchmarks.harness import Relay, scratch
from benchmarks.outcome import show
from config.settings import QueueSettings
from mailqueue.events import Event
from mailqueue.queue import Queue
from streams.consumer import Consumer

KINDS = ("delivered",) * 7 + ("deferred", "received", "bounced")


def event(number: int) -> Event:
    """Of the usual size: 600 bytes of JSON."""
    return Event(
        kind=KINDS[number % 10],
        at=1_767_225_600_000 + number,
        id=f"{number:020d}",
        account="campaigns",
        campaign="january",
        class_="bulk",
        metadata={"batch": "17"},
        reverse_path="notices@agency.example",
        recipient=f"person{number}@example.org",
        index=0,
        action="delivered",
        status="2.0.0",
        diagnostic_code="smtp; 250 2.0.0 ok 1767225665 a640c23a62f3a-8a1b2c3d4e5si123456789abc.123 - gsmtp",
        remote_mta="mx1.example.org [192.0.2.25]",
        source="203.0.113.17",
        provider="default",
        destination="example.org",
        attempt=1,
        phase="end-of-data",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        size=10240,
        received_at=1_767_225_600_000,
    )


async def fill(queue: Queue, count: int) -> None:
    shard = queue.shards[0]
    for first in range(0, count, 5000):
        async with shard.client.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + 5000, count)):
                pipe.xadd(shard.events, {"e": event(number).to_json()})
            await pipe.execute()


async def plain(queue: Queue, *, read: bool) -> int:
    shard, place, count = queue.shards[0], b"0", 0
    while answer := await shard.command("XREAD", "COUNT", 500, "STREAMS", shard.events, place):
        for id, fields in answer[0][1]:
            place = id
            count += 1
            if read:
                Event.from_json(fields[1])
    return count


async def consumed(queue: Queue, name: str, kinds: tuple[str, ...] = (), most: int = 0) -> int:
    """``most``: acknowledged one by one, so many; 0 = all, in batches."""
    count = 0
    async with Consumer(queue.shards, group=name, owner="bench", kinds=kinds, start="oldest", end=True) as events:
        if most:
            async for one in events:
                await one.ack()
                count += 1
                if count == most:
                    break
            return count
        while batch := await events.batch():
            await events.ack(batch)
            count += len(batch)
    return count


async def measure(url: str, events: int, rounds: int) -> None:
    queue = await Queue.open(QueueSettings(url=url), "bench", patience=10)
    try:
        await fill(queue, events)
        ways: dict[str, Callable[[int], Awaitable[int]]] = {
            "XREAD": lambda _: plain(queue, read=False),
            "XREAD, read": lambda _: plain(queue, read=True),
            "batches": lambda number: consumed(queue, f"batches{number}"),
            "kinds": lambda number: consumed(queue, f"kinds{number}", ("bounced",)),
            "one by one": lambda number: consumed(queue, f"one{number}", (), events // 10),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                count = await way(number)
                passed = events if name == "kinds" else count  # passed over or read
                rates[name].append(passed / (time.perf_counter() - started))
        fastest = statistics.median(rates["XREAD"])
        show(
            f"{events:,} events, {rounds} rounds",
            [
                {
                    "way": name,
                    "events/s": f"{statistics.median(found):,.0f}",
                    "lowest – highest": f"{min(found):,.0f} – {max(found):,.0f}",
                    "of XREAD": statistics.median(found) / fastest,
                }
                for name, found in rates.items()
            ],
        )
    finally:
        await queue.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with scratch("bench") as directory, Relay(directory, roles=()) as world:
        uvloop.run(measure(world.url, options.events, options.rounds))


if __name__ == "__main__":
    main()
