"""A million recipients in the queue: memory, rates against those at 10,000, restart to first delivery.

``python -m benchmarks.accept_scale [--count N] [shared|personal …]``

shared    1,000 messages of 10 KB to 1,000 recipients each: content once per message
personal  one message of 30 KB per recipient, all from one template with what is personal filled in
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Relay, scratch
from config.settings import QueueSettings
from mailqueue.message import Envelope, Message, new_id
from mailqueue.queue import Queue
from mailqueue.server import info_map
from mailqueue.worker import ClaimRequest, Settlement

RESULTS = Path(__file__).resolve().parent / "results"
DAY = 86_400_000
SMALL = 10_000
DRAWN = 5_000  # items claimed and settled to measure a rate
console = Console(stderr=True)


def words(rng: random.Random, size: int) -> str:
    """Text of ``size`` characters in lines of about 76, as compressible as prose."""
    vocabulary = ["".join(rng.choices("abcdefghijklmnoprstuv", k=rng.randint(2, 11))) for _ in range(900)]
    lines, length = [], 0
    while length < size:
        line = " ".join(rng.choices(vocabulary, k=10))[:76]
        lines.append(line)
        length += len(line) + 2
    return "\r\n".join(lines)


def shared(count: int, rng: random.Random) -> Iterator[Message]:
    for number in range(count // 1000):
        recipients = tuple(f"p{number}-{n}@d{n % 200}.many.test" for n in range(1000))
        yield message(recipients, words(rng, 10_240).encode(), "circular")


def personal(count: int, rng: random.Random) -> Iterator[Message]:
    template = words(rng, 30_000)
    third = len(template) // 3
    for number in range(count):
        code = rng.getrandbits(128)
        body = (
            f"Subject: Aviso {number}\r\nMessage-ID: <{number}@x>\r\n\r\nEstimado ciudadano {code:032x}:\r\n"
            f"{template[:third]}\r\nSu expediente {number:08d} vence el {number % 28 + 1}; clave {code >> 64:016x}\r\n"
            f"{template[third : 2 * third]}\r\nMonto S/ {number % 9973}.{number % 100:02d}\r\n{template[2 * third :]}\r\n"
        )
        yield message((f"c{number}@d{number % 200}.many.test",), body.encode(), "aviso")


def message(recipients: tuple[str, ...], content: bytes, campaign: str) -> Message:
    now = int(time.time() * 1000)
    envelope = Envelope(new_id(), "carga", "aviso@entidad.test", recipients, now, now + 5 * DAY, campaign=campaign)
    return Message(envelope, content)


async def put_all(queue: Queue, messages: Iterator[Message], count: int) -> float:
    """Recipients per second; 200 puts under way at a time, progress said now and then."""
    started, said, done = time.monotonic(), time.monotonic(), 0
    under_way: set[asyncio.Task[Any]] = set()
    for one in messages:
        under_way.add(asyncio.create_task(queue.put(one)))
        done += len(one.envelope.recipients)
        if len(under_way) >= 200:
            finished, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                assert task.result().kind == "queued", task.result()
        if time.monotonic() - said > 15:
            said = time.monotonic()
            console.print(f"  {done:,} of {count:,} put")
    await asyncio.gather(*under_way)
    return count / (time.monotonic() - started)


async def draw(queue: Queue, recipients: int) -> tuple[float, float]:
    """(claims/s, settlements/s) for DRAWN items; tickets included in the claims."""
    worker = queue.workers()[0]
    await worker.start(lambda epoch: None)
    items: list[Any] = []
    started = time.monotonic()
    while len(items) < DRAWN:
        tickets, _, _ = await worker.due({"bulk": 64})
        if not tickets:
            break
        claims = await asyncio.gather(*(worker.claim(ClaimRequest(t, 50, recipients)) for t in tickets))
        for claimed in claims:
            items += claimed.items
    claimed_in = time.monotonic() - started
    started = time.monotonic()
    await asyncio.gather(*(worker.settle(Settlement(item, "final")) for item in items))
    settled_in = time.monotonic() - started
    await worker.stop()
    return len(items) / claimed_in, len(items) / settled_in


async def memory(queue: Queue) -> dict[str, int]:
    info = info_map(await queue.shards[0].command("INFO", "memory"))
    return {name: int(info[name]) for name in ("used_memory", "used_memory_rss", "used_memory_dataset")}


async def measure(url: str, kind: str, count: int) -> dict[str, Any]:
    make = {"shared": shared, "personal": personal}[kind]
    rng = random.Random(7)
    queue = await Queue.open(QueueSettings(url=url, memory_mark=1.0), "scale", patience=30)
    try:
        empty = await memory(queue)
        found: dict[str, Any] = {"kind": kind, "count": count}
        put = await put_all(queue, make(SMALL, rng), SMALL)
        claims, settles = await draw(queue, 1)
        found["at_10000"] = {"put": put, "claim": claims, "settle": settles}
        put = await put_all(queue, make(count, rng), count)
        full = await memory(queue)
        claims, settles = await draw(queue, 1)
        found["at_full"] = {"put": put, "claim": claims, "settle": settles}
        found["bytes_per_recipient"] = (full["used_memory"] - empty["used_memory"]) / (count + SMALL - DRAWN)
        found["used_memory"], found["used_memory_rss"] = full["used_memory"], full["used_memory_rss"]
        return found
    finally:
        await queue.close()


def restart(relay: Relay) -> dict[str, float]:
    """The server killed and started, then delivery: seconds until it has loaded, until the first delivered message."""
    aof = sum(path.stat().st_size for path in (relay.directory / "appendonlydir").iterdir())
    relay.server.kill()
    started = time.monotonic()
    relay.start_server(900)
    loaded = time.monotonic() - started
    relay.start("sandbox")
    before = relay.tell_sandbox(cmd="report")["messages"]
    begun = time.monotonic()
    relay.start("delivery", wait=False)
    while relay.tell_sandbox(cmd="report")["messages"] <= before:
        if not relay.processes["delivery"].running or time.monotonic() - begun > 120:
            raise RuntimeError(relay.processes["delivery"].log.read_text()[-2000:])
        time.sleep(0.01)
    first = time.monotonic() - begun
    return {"aof_bytes": aof, "load_seconds": loaded, "first_delivery_seconds_after_start": first}


def run(kind: str, count: int) -> dict[str, Any]:
    with scratch("scale") as directory:
        relay = Relay(directory, roles=("sandbox", "delivery"))
        relay.start_server()
        try:
            found = uvloop.run(measure(relay.url, kind, count))
            found["restart"] = restart(relay)
        finally:
            relay.close()
    return found


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['count']:,} recipients, {found['kind']} content")
    for name in ("", "put/s", "claim/s", "settle/s"):
        table.add_column(name, justify="right")
    for label, key in (("10,000 queued", "at_10000"), (f"{found['count']:,} queued", "at_full")):
        row = found[key]
        table.add_row(label, *(f"{row[name]:,.0f}" for name in ("put", "claim", "settle")))
    ratios = [found["at_full"][name] / found["at_10000"][name] for name in ("put", "claim", "settle")]
    table.add_row("ratio", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    again = found["restart"]
    Console().print(
        f"{found['bytes_per_recipient']:,.0f} B per recipient, {found['used_memory'] / 2**20:,.0f} MiB used, "
        f"{found['used_memory_rss'] / 2**20:,.0f} MiB resident; AOF {again['aof_bytes'] / 2**20:,.0f} MiB, "
        f"loaded in {again['load_seconds']:.1f} s, first delivery {again['first_delivery_seconds_after_start']:.1f} s "
        "after delivery's start"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("kinds", nargs="*", default=["shared", "personal"])
    given = parser.parse_args()
    if len(given.kinds) > 1:  # one process each, so that one's memory is not the other's
        for kind in given.kinds:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.accept_scale", "--count", str(given.count), kind], check=True
            )
        return
    (kind,) = given.kinds
    found = run(kind, given.count)
    show(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"scale-{kind}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
