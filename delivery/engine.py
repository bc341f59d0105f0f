"""The page: how due mail becomes sessions, and results become settlements.

    pull      one loop a shard asks the queue for tickets while there is capacity, and sleeps until the bell rings
    route     a ticket's destination → where it goes; no route is a result too
    offer     the ticket waits at its site (:mod:`delivery.site`), which opens sessions, claims and sends
    settle    what became of an item goes back to the queue, batched; one log line and the counters go with it

What can't be reached is suspended as a whole (:mod:`delivery.suspensions`). The engine holds no mail: what it knows is
lost with it and costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from config.providers import ProviderRule, Providers
from config.routes import PREFIX
from config.settings import DeliverySettings
from delivery.attempt import Judge
from delivery.away import Absences
from delivery.doors import Doors
from delivery.grey import Greylisters
from delivery.lines import now
from delivery.live import figures
from delivery.load import Load
from delivery.metrics import DeliveryMetrics
from delivery.outcome import Outcome, unroutable
from delivery.pool import Source, pools_of
from delivery.rests import Rests
from delivery.router import Route, Router
from delivery.site import Held, Site
from delivery.stops import SourceStops
from delivery.suspensions import Suspensions, now_ms
from ipreputation.store import Lease, LimitsDown, LimitStore
from mailqueue.batch import Batch
from mailqueue.errors import LeaseLost, QueueDown, ServerAnswer
from mailqueue.keys import CLASS_LETTER, lane_name
from mailqueue.logline import say
from mailqueue.message import CLASSES, QueueItem
from mailqueue.worker import ClaimRequest, Settlement, Ticket, Worker

TICKETS = {"bulk": 1000, "transactional": 1300, "emergency": 1600}  # held at most; the better class finds room left

log = structlog.get_logger("delivery")


class Engine:
    """One per process; made by the composition root, run until :meth:`stop`."""

    def __init__(
        self,
        settings: DeliverySettings,
        workers: Sequence[Worker],
        router: Router,
        providers: Providers,
        store: LimitStore,
        judge: Judge,
        doors: Doors,
        metrics: DeliveryMetrics,
        absences: Absences,
    ) -> None:
        self.store, self.judge, self.doors, self.metrics = store, judge, doors, metrics
        self.stopping = False
        self._workers = workers
        self._router = router
        self._sites: dict[tuple[str, str], Site] = {}
        self.rests, self.grey = Rests(), Greylisters()
        self._stops = SourceStops()
        self._starved: set[Site] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._routing = 0
        self._load = Load(settings)
        self._absences = absences
        self._suspensions = Suspensions(absences, workers, self)
        self._routes = router.routes
        self._releases: Batch[Lease, None] = Batch(self._release_all, most=200)
        self.configure(settings, providers)

    def configure(self, settings: DeliverySettings, providers: Providers) -> None:
        """At start and on reload: new sites follow the new settings, open sessions end under the old ones, and no source
        rests any more. The router's routes are replaced before."""
        self.rests.end()
        self._settings = self._load.settings = settings
        self._providers = providers
        self._pools: Mapping[str, tuple[Source, ...]] = pools_of(settings)
        self.metrics.note_pools(self._pools)
        self.idle_seconds = settings.timeouts.idle
        self.recipients = settings.recipients_per_transaction
        for site in self._sites.values():
            if not site.route.by_smarthost or self._router.routes.named(
                site.name
            ):  # a route that is gone opens no more
                site.lines.configure(self._rule_of(site.route.group), self._sources_of(site.pool))
            site.wake()
        self._reroute()

    def _reroute(self) -> None:
        """Routes that are different now: nobody waits for what failed under the old ones."""
        changed = self._routes.changed(self._router.routes)
        self._routes = self._router.routes
        for name in changed:
            self._absences.reached((name, name))
            if site := self._sites.get((name, name)):
                site.renew()
        self._ways = {**self._pools, **{name: self._sources_of(name) for name in self._routes.names()}}
        if not changed:
            return
        for site in self._sites.values():
            site.let_go(self._routes)
        self._start(self._suspensions.resume(changed))

    async def run(self) -> None:
        """Until stopped and drained."""
        for worker in self._workers:
            worker.room = self._load.free_bytes
            await worker.start(self._lease_lost)
        pulls = [asyncio.create_task(self._pull(worker)) for worker in self._workers]
        beat = asyncio.create_task(self._heartbeat())
        try:
            await asyncio.gather(*pulls)
            await self._drain()
        finally:
            for task in (*pulls, beat, *self._tasks):
                task.cancel()
            await self._releases.close(2.0)
            await asyncio.gather(*(worker.stop() for worker in self._workers))

    def stop(self) -> None:
        """No more tickets; transactions under way may end."""
        self.stopping = True
        self._room.set()
        self._wake_sites()

    def _wake_sites(self) -> None:
        for site in self._sites.values():
            site.wake()

    async def _drain(self) -> None:
        """Waits for sites and routes to end, at most ``drain_seconds``."""
        deadline = asyncio.get_running_loop().time() + self._settings.drain_seconds
        while self._tasks:
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.wait(self._tasks, timeout=max(left, 0))
            if left <= 0:
                log.warning("drain cut short", sites=len(self._sites), in_flight=self._load.items)
                return

    # ── pull ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _pull(self, worker: Worker) -> None:
        while not self.stopping:
            wanted = self._wanted()
            self._room.clear()
            if not any(wanted.values()):
                await self._room.wait()
                continue
            try:
                silent = [*self._stops.silent(self._ways), *self._crowded_routes()]
                tickets, wait, stops = await worker.due(wanted, self._crowded(), silent)
                if await self._stops.note(worker, stops):
                    self._wake_sites()
            except (QueueDown, ServerAnswer) as down:
                log.warning("queue away", shard=worker.shard.number, why=str(down))
                await asyncio.sleep(0.5)
                continue
            for ticket in tickets:
                self._routing += 1
                self._start(self._route(worker, ticket))
            if not tickets or wait:
                await self._nap(worker, wait)

    async def _nap(self, worker: Worker, wait: float | None) -> None:
        """Until the bell, the time of the next due item, or new capacity."""
        bell = asyncio.create_task(worker.rung(wait))
        room = asyncio.create_task(self._room.wait())
        try:
            await asyncio.wait({bell, room}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            bell.cancel()
            room.cancel()

    def _wanted(self) -> dict[str, int]:
        held = self._routing + sum(len(site.tickets) for site in self._sites.values())
        self.metrics.waiting.set(held)
        return {class_: max(most - held, 0) for class_, most in TICKETS.items()}

    def _crowded(self) -> list[str]:
        """Lanes of providers that have tickets enough."""
        return [
            lane_name(class_, site.rule.name)
            for site in self._sites.values()
            if site.rule.roll_up
            for class_ in CLASSES
            if site.crowded(class_)
        ]

    def _crowded_routes(self) -> list[str]:
        """The same of smarthost routes; mail that takes them because of its sender lies in any lane."""
        return [
            f"{CLASS_LETTER[class_]} {site.pool}"
            for site in self._sites.values()
            if site.route.by_smarthost
            for class_ in CLASSES
            if site.crowded(class_)
        ]

    @property
    def stopped_sources(self) -> Collection[str]:
        """Sources that may not send now."""
        return self._stops.now()

    # ── route ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _route(self, worker: Worker, ticket: Ticket) -> None:
        try:
            route = await self._router.route(ticket.destination, ticket.pool)
            if route.failure is None or route.by_smarthost:
                ticket = await self._grouped(worker, ticket, route)
            if route.failure is not None:
                await self._no_route(worker, ticket, route)
                return
            if not route.by_smarthost:
                self._absences.reached(("", ticket.destination))
            await self._offer(worker, ticket, route)
        except (QueueDown, LeaseLost) as down:
            log.warning("ticket let go", destination=ticket.destination, why=str(down))
        finally:
            self._routing -= 1
            self.room()

    async def _grouped(self, worker: Worker, ticket: Ticket, route: Route) -> Ticket:
        """The destination lies in the lanes of its group from now on; a stop of a route counts in no other's lanes."""
        group = route.group
        if route.by_pool:  # what it is for other mail, but no route of the recipient's
            group = self._providers.default.name if ticket.group.startswith(PREFIX) else ticket.group
        if group == ticket.group:
            return ticket
        await worker.assign(ticket.destination, group)
        return replace(ticket, group=group)

    async def _offer(self, worker: Worker, ticket: Ticket, route: Route) -> None:
        routes = self._router.routes
        valid = routes.named(route.site) if route.by_smarthost else routes.for_recipient(ticket.destination)
        if route.smarthost is not valid:
            worker.give_back(ticket)  # a reload came between
            return
        pool = route.site if route.by_smarthost else ticket.pool
        key = (pool, route.site)
        away = self._absences.now(key, now_ms())
        if away is not None:
            await self._suspensions.wait(worker, ticket, away, route)
            return
        site = self._sites.get(key)
        if site is None:
            site = self._sites[key] = self._open_site(pool, route)
            self._start(self._run_site(key, site))
        if site.crowded(ticket.class_) and not site.rule.roll_up:
            return  # the ticket runs out (two leases) and the destination's turn comes again
        site.offer(worker, ticket, route)

    def _open_site(self, pool: str, route: Route) -> Site:
        return Site(route.site, pool, self._rule_of(route.group), self._sources_of(pool), route, self)

    def _rule_of(self, group: str) -> ProviderRule:
        return self._router.routes.rule(group) or self._providers.named(group)

    def _sources_of(self, pool: str) -> tuple[Source, ...]:
        smarthost = self._router.routes.named(pool)
        if smarthost is not None:
            pool = smarthost.settings.pool
        sources = self._pools.get(pool)
        if sources is None:  # mail of an account whose pool was taken away
            sources = next(iter(self._pools.values()))
            log.error("pool unknown", pool=pool, allowed=list(self._pools), taken=[s.address for s in sources[:3]])
        return sources

    async def _run_site(self, key: tuple[str, str], site: Site) -> None:
        while True:
            await site.run()
            if not site.tickets:
                break
        self._sites.pop(key, None)
        self._starved.discard(site)
        self.room()

    # ── no way ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _no_route(self, worker: Worker, ticket: Ticket, route: Route) -> None:
        """Permanent: every item behind the ticket fails, with its DSN. Temporary: the destination waits."""
        failure = route.failure
        assert failure is not None
        outcome = unroutable(failure.status, failure.text, permanent=failure.permanent)
        if route.by_smarthost:
            key = (route.site, route.site)
            away = self._absences.now(key, now_ms()) or self._absences.note(key, outcome, now_ms())
            await self._suspensions.wait(worker, ticket, away, route)
            return
        if not failure.permanent:
            away = self._absences.note(("", ticket.destination), outcome, now_ms())
            await self._suspensions.of_destination(worker, ticket, away, ticket.group)
            return
        left = 1
        while left and not self.stopping:
            claimed = await worker.claim(ClaimRequest(ticket, 100, 100, keep=True))
            self.claimed(claimed.items)
            for item in claimed.items:
                self.settle(worker, self.judge.settlement(item, outcome, ticket.group, now_ms()))
            left = claimed.left

    async def unreachable(self, site: Site, held: Sequence[Held], outcome: Outcome) -> None:
        """No host of the site lets us in."""
        away = self._absences.note((site.pool, site.name), outcome, now_ms())
        until = round((away.until_ms - now_ms()) / 1000)
        log.warning("site unreachable", site=site.name, times=away.times, seconds=until, why=outcome.diagnostic)
        for one in held:
            await self._suspensions.wait(one.worker, one.ticket, away, site.route)
        self.room()

    def reached(self, site: Site) -> None:
        self._absences.reached((site.pool, site.name))

    # ── what sites ask of the floor ────────────────────────────────────────────────────────────────────────────

    def room(self) -> None:
        """Capacity for tickets: whoever waits for it may pull again."""
        self._room.set()

    def free_sessions(self) -> int:
        return self._load.free_sessions()

    def ample_sessions(self) -> bool:
        return self._load.ample_sessions()

    def free_items(self) -> int:
        return self._load.free_items()

    def starve(self, site: Site) -> None:
        """The site is woken when items are settled."""
        self._starved.add(site)

    def session_opened(self) -> None:
        self._load.sessions += 1

    def session_closed(self) -> None:
        full = self.free_sessions() <= 0
        self._load.sessions -= 1
        if full:
            self._wake_sites()

    async def release(self, lease: Lease) -> None:
        """The slot is free; many that end together cost one round trip."""
        await self._releases.add(lease)

    async def _release_all(self, _number: int, leases: list[Lease]) -> list[Exception | None]:
        try:
            await self.store.release(leases)
        except LimitsDown as down:  # the store's next heartbeat gives them back
            log.warning("slots not given back", count=len(leases), why=str(down))
        return [None] * len(leases)

    def claimed(self, items: Sequence[QueueItem]) -> None:
        self._load.claimed(items)
        self.metrics.in_flight.set(self._load.items)

    def settle(self, worker: Worker, settlement: Settlement) -> None:
        worker.settle(settlement).add_done_callback(lambda done: self._settled(settlement, done))

    def _settled(self, settlement: Settlement, done: asyncio.Future[str]) -> None:
        self._load.settled(settlement.item)
        self.metrics.in_flight.set(self._load.items)
        while self._starved:
            self._starved.pop().wake()
        event = settlement.event
        if event is None or done.cancelled() or done.exception() is not None:
            return
        say(log, replace(event, kind="late") if done.result() == "L" else event)
        self.metrics.settled(event)

    def live(self) -> dict[str, object]:
        """For who looks at all processes at once."""
        said = figures(self._sites.values(), self._pools, self.metrics.paces, self.rests.left(now()), now())
        return said | {"sessions": self._load.sessions, "in_flight": self._load.items}

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────────

    def limit_freed(self, name: str) -> bool:
        """A slot under ceiling "<site>/<source>" is free."""
        site = name.rpartition("/")[0]
        woken = [one.freed() for (_, called), one in self._sites.items() if called == site]  # each of them
        return any(woken)

    def _lease_lost(self, epoch: str) -> None:
        """Nothing more to do: every transaction asks for its lease before MAIL and before the final dot."""
        self.metrics.leases_lost.inc()
        log.warning("queue lease lost", epoch=epoch)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self.store.lease_seconds / 3)
            try:
                lost = {lease.token for lease in await self.store.extend()}
            except LimitsDown as down:
                log.warning("limits away", why=str(down))
                continue
            if lost:
                log.warning("slots lost", count=len(lost))
                for site in self._sites.values():
                    site.lines.drop_leases(lost)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task broken", error=repr(error), exc_info=error)
