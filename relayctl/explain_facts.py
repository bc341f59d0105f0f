"""All that is known of one recipient in the queue: where it lies, what stops it, who works, where it would go, from which
sources, and how full their limits are. Reads only; what cannot be had is left out and said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from config.load import Loaded
from config.providers import ProviderRule
from delivery.main import router_of
from delivery.pool import Source, pools_of
from delivery.router import Route, Router
from ipreputation.inspect import Standing, standings
from ipreputation.limits import limits_for
from mailqueue import stopped
from mailqueue.entries import Row
from mailqueue.events import Event
from mailqueue.processes import Process, Waits, opening, present
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from mailqueue.selection import LEASED, QUEUED
from mailqueue.stopped import ROUTE, Stop

DNS_SECONDS = 6.0  # for all that is asked


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One address that could send it. ``limits`` at the site where it would go, () where that is not known. ``rests``:
    seconds for which no delivery process opens a session from it there, for it was refused."""

    source: Source
    stop: Stop | None = None
    other_family: bool = False  # the next hops have no address of its family
    rests: int = 0
    limits: tuple[Standing, ...] = ()

    @property
    def usable(self) -> bool:
        return self.source.weight > 0 and self.stop is None and not self.other_family and not self.rests


@dataclass(frozen=True, slots=True)
class Worker:
    name: str
    left: float  # seconds of its lease, less than none = it ended


@dataclass(frozen=True, slots=True)
class Facts:
    """``now`` Unix ms by the queue server. ``route`` None: it could not be found out in time. ``turn_until``: a delivery
    process has the turn of its destination until then (ms), 0 = nobody has. ``ahead``: due before it in its queue."""

    now: int
    row: Row
    stops: tuple[Stop, ...]
    workers: tuple[Worker, ...]
    processes: tuple[Process, ...]
    holder: Worker | None
    route: Route | None
    rule: ProviderRule
    pool: str
    sources: tuple[SourceFacts, ...]
    turn_until: int
    ahead: int
    history: tuple[Event, ...] = ()
    opening: tuple[Waits, ...] = ()  # sessions there, the longest wait first


class Witness:
    """Asks for facts; one for a run of the verb, so that DNS and configuration are asked once for each destination."""

    def __init__(self, queue: Queue, loaded: Loaded) -> None:
        self._queue, self._loaded = queue, loaded
        self._router: Router = router_of(loaded.settings, loaded)
        self._pools = pools_of(loaded.settings.delivery)
        self._routes: dict[tuple[str, str], Route | None] = {}
        self._asked = 0.0  # seconds spent on DNS

    async def facts(self, row: Row, history: Sequence[Event]) -> Facts:
        """Raises QueueDown."""
        entry, shard = row.entry, row.shard
        now = await _time(shard)
        stops = await stopped.stops(shard)
        sus = await stopped.suspended(shard, [entry.destination])
        workers = dict(await _workers(shard))
        route = await self._route(entry.destination, entry.flow.pool)
        processes = tuple(await present(self._queue.shards[0]))
        rule, pool, sources = await self._sources(shard, row, route, stops, now, processes)
        turn_until, ahead = await _turn(shard, row, now, bool(sus))
        return Facts(
            now=now,
            row=row,
            stops=tuple(stopped.over(entry.flow, entry.destination, entry.group, stops, sus, now)),
            workers=tuple(workers.values()),
            processes=processes,
            holder=workers.get(entry.epoch) if entry.place == LEASED else None,
            route=route,
            rule=rule,
            pool=pool,
            sources=sources,
            turn_until=turn_until,
            ahead=ahead,
            history=tuple(history),
            opening=tuple(one for one in opening(processes) if route is not None and one.site == route.site),
        )

    async def _route(self, destination: str, pool: str) -> Route | None:
        key = (destination, pool)
        if key not in self._routes:
            started = time.monotonic()
            try:
                async with asyncio.timeout(max(DNS_SECONDS - self._asked, 0)):
                    self._routes[key] = await self._router.route(destination, pool)
            except TimeoutError:
                self._routes[key] = None
            self._asked += time.monotonic() - started
        return self._routes[key]

    async def _sources(
        self,
        shard: Shard,
        row: Row,
        route: Route | None,
        stops: dict[str, Stop],
        now: int,
        processes: Sequence[Process],
    ) -> tuple[ProviderRule, str, tuple[SourceFacts, ...]]:
        """The rule of its provider, the pool's name, and each of its addresses; as delivery/engine.py finds them."""
        pool = row.entry.flow.pool
        site = route.site if route is not None else ""
        name = site if site.startswith(ROUTE) else pool if pool.startswith(ROUTE) else ""
        group = name or (route.group if route is not None and not route.failure else row.entry.group)
        rule = self._router.routes.rule(group) or self._loaded.providers.named(group)
        if name and (smarthost := self._router.routes.named(name)):
            pool = smarthost.settings.pool
        known = pool if pool in self._pools else next(iter(self._pools))
        versions = {6 if ":" in a else 4 for host in (route.hosts if route else ()) for a in host.addresses}
        found = self._pools[known]
        limits = [limits_for(rule, site, one.address) for one in found] if site else []
        full = [tuple(await standings(shard.command, one, now / 1000)) for one in limits]
        halted = {stop.key: stop for stop in stopped.sources(stops, [one.address for one in found], now)}
        return (
            rule,
            known,
            tuple(
                SourceFacts(
                    one,
                    halted.get(f"source:{one.address}"),
                    bool(versions and one.address) and one.version not in versions,
                    _rests(processes, site, one.address),
                    full[place] if full else (),
                )
                for place, one in enumerate(found)
            ),
        )


def _rests(processes: Sequence[Process], site: str, address: str) -> int:
    """Seconds until the first of those that deliver may try it again; what a process says is some seconds old."""
    found = [one.live.get("rests", {}).get(site, {}).get(address, 0) for one in processes if one.role == "delivery"]
    return min(found, default=0)


async def _time(shard: Shard) -> int:
    seconds, micros = await shard.command("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def _workers(shard: Shard) -> list[tuple[str, Worker]]:
    rows = await shard.command("ZRANGE", shard.prefix + "w", 0, -1, "WITHSCORES")
    buried = await shard.command("ZRANGE", shard.prefix + "dead", 0, -1)
    leases = [*zip(rows[::2], map(float, rows[1::2]), strict=True), *((epoch, 0.0) for epoch in buried)]
    if not leases:
        return []
    names = await shard.command("HMGET", shard.prefix + "workers", *(epoch for epoch, _ in leases))
    now = time.time() * 1000
    return [
        (epoch.decode(), Worker((name or b"?").decode(), (until - now) / 1000))
        for (epoch, until), name in zip(leases, names, strict=True)
    ]


async def _turn(shard: Shard, row: Row, now: int, suspended: bool) -> tuple[int, int]:
    entry = row.entry
    if entry.place != QUEUED:
        return 0, 0
    queue = f"{shard.prefix}q:{entry.flow.id}:{entry.destination}"
    ready = f"{shard.prefix}r:{entry.flow.letter}:{entry.group}:{entry.flow.id}"
    score, ahead = await shard.commands(
        [("ZSCORE", ready, entry.destination), ("ZCOUNT", queue, "-inf", f"({entry.due}")]
    )
    until = int(float(score or 0))
    return (until if until > now and entry.due <= now and not suspended else 0), int(ahead)
