"""A site: everything that shares its MX hosts, seen from one pool of sources. Who waits for it, and what is sent.

One task a site (:meth:`Site.run`), woken by events: a ticket is offered, a session opened, ended its work or was
lost, a limit was freed, a time came. Each step asks, in this order: are more sessions worth having and allowed; which
open ones can send now; how many messages do the paces grant them; then it claims just so many and hands them out,
least served source first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import structlog

from config.providers import ProviderRule
from delivery.attempt import Judge, Parcel, parcels
from delivery.grey import RULE as GREYLISTED
from delivery.lines import Ground, Line, Lines, now
from delivery.outcome import Outcome, Via, lost
from delivery.overhear import attend
from delivery.pool import CHAIN, Source
from delivery.reply import Phase
from delivery.router import Route
from delivery.routes import Routes
from ipreputation.store import LimitsDown
from mailqueue.errors import LeaseLost, QueueDown
from mailqueue.message import CLASSES, QueueItem
from mailqueue.worker import ClaimRequest, Settlement, Ticket, Worker

QUANTUM = 500  # items a ticket may draw before the queue decides again whose turn it is
MOST_TICKETS = 50  # of one class that wait at one site; a provider with so many is not asked for
MOST_DESTINATIONS = 500  # the same at a site that is no provider, a host of many domains: the others wait a minute
PAUSE_SECONDS = 1.0  # when the queue or the limits do not answer

log = structlog.get_logger("delivery")


@dataclass(slots=True, eq=False)
class Held:
    """A ticket that waits here; ``due`` is what is believed to be left behind it, ``quantum`` what it may still draw."""

    worker: Worker
    ticket: Ticket
    due: int
    quantum: int = QUANTUM


class Floor(Ground, Protocol):
    """What all sites of a process share; the engine."""

    judge: Judge
    recipients: int

    def free_items(self) -> int: ...
    def starve(self, site: Site) -> None: ...
    def claimed(self, items: Sequence[QueueItem]) -> None: ...
    def settle(self, worker: Worker, settlement: Settlement) -> None: ...
    def room(self) -> None: ...
    def reached(self, site: Site) -> None: ...
    def unreachable(self, site: Site, held: Sequence[Held], outcome: Outcome) -> Awaitable[None]: ...


class Site:
    """Made by the engine for (pool, site); ends by itself when nothing waits and no session is left."""

    def __init__(
        self, name: str, pool: str, rule: ProviderRule, sources: tuple[Source, ...], route: Route, floor: Floor
    ) -> None:
        self.name, self.pool, self.route = name, pool, route
        self.tickets: deque[Held] = deque()
        self.lines = Lines(
            name,
            rule,
            sources,
            floor,
            start=self._start,
            changed=self.wake,
            failed=self._fail,
            halted=self._give_up_tickets,
            waiting=self.domains,
        )
        self._floor = floor
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace_after = 0.0

    @property
    def rule(self) -> ProviderRule:
        return self.lines.rule

    # ── from outside ───────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, worker: Worker, ticket: Ticket, route: Route) -> None:
        """A flow has mail for a destination of this site."""
        self.route = route
        # The same one may be here still: its lease ran out, or a claim that gave it back is not answered yet. The new
        # one takes its place, and what comes of the old claim is the old one's affair.
        same = (ticket.shard, ticket.flow, ticket.destination)
        for held in self.tickets:
            if (held.ticket.shard, held.ticket.flow, held.ticket.destination) == same:
                self.tickets.remove(held)
                break
        self.tickets.append(Held(worker, ticket, ticket.due))
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    def domains(self, most: int | None = None) -> list[str]:
        """Whose mail waits here; ``most`` of them."""
        return list(islice(dict.fromkeys(held.ticket.destination for held in self.tickets), most))

    def freed(self) -> bool:
        """A limit of ours has room. Whether anybody here wants it."""
        self.lines.freed()
        self.wake()
        return bool(self.tickets)

    def renew(self) -> None:
        """The way has changed: what waits comes again by the new one."""
        self._give_up_tickets()
        self.lines.renew()

    def let_go(self, routes: Routes) -> None:
        """Tickets that take another way now are given back; open sessions go on with the others."""
        for held in [held for held in self.tickets if routes.overrule(held.ticket.destination, self.name)]:
            self.tickets.remove(held)
            held.worker.give_back(held.ticket)

    def crowded(self, class_: str) -> bool:
        """No more tickets of this class now; a better class is never kept out by a lesser one."""
        most = MOST_TICKETS if self.rule.roll_up else MOST_DESTINATIONS
        return sum(held.ticket.class_ == class_ for held in self.tickets) >= most

    # ── the loop ───────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until there is nothing to do here. Raises nothing of its own."""
        while self.tickets or self.lines or self._tasks:
            looked = now()
            self._wake.clear()
            if self._floor.stopping:
                self._give_up_tickets()
                self.lines.abandon()
            self.lines.retire()
            moved = False
            try:
                moved = bool(self.tickets) and await self._step()
            except (LimitsDown, QueueDown, LeaseLost) as trouble:
                log.warning("site waits", site=self.name, why=str(trouble))
                self._pause()
            except Exception:  # whatever it is, the site must not stand still for ever
                log.exception("site in trouble", site=self.name)
                self._pause()
            if not moved and (self.tickets or self.lines or self._tasks):  # else nobody would wake it
                await self._sleep(looked)

    async def _step(self) -> bool:
        """True when something was handed out."""
        demand = sum(held.due for held in self.tickets)
        await self.lines.open_more(demand, self.route)
        ready = self.lines.ready()
        if not ready or now() < self._pace_after:
            return False
        free = self._floor.free_items()
        if free <= 0:
            self._floor.starve(self)
            return False
        shares = self._shares(ready, min(demand, free))
        granted = await self._granted(shares)
        wanted = sum(count for _, count in granted)
        if not wanted:
            return False
        found = await self._claim(wanted)
        await self._hand_out(found, granted)
        return True

    def _shares(self, ready: list[Line], demand: int) -> list[tuple[Line, int]]:
        """How many transactions each session would take: one each, a chain where there is plenty."""
        chain = max(1, min(CHAIN, demand // len(ready)))
        shares = []
        for line in ready:
            count = min(chain, line.left, demand)
            if count <= 0:
                break
            shares.append((line, count))
            demand -= count
        return shares

    async def _granted(self, shares: list[tuple[Line, int]]) -> list[tuple[Line, int]]:
        """The shares as far as the paces allow."""
        if not any(line.lease.limits.messages for line, _ in shares):
            return shares
        taken = await self._floor.store.take([(line.lease.limits, count) for line, count in shares])
        granted = [(line, got.count) for (line, _), got in zip(shares, taken, strict=True) if got.count]
        if not granted:
            self._pace_after = now() + max(min(got.wait for got in taken), 0.001)
            self._floor.metrics.limited.labels(self.rule.name).inc()
        return granted

    # ── claiming and handing out ───────────────────────────────────────────────────────────────────────────────

    async def _claim(self, wanted: int) -> list[Parcel]:
        """Parcels from the tickets in turn; tickets with nothing left, or that had their share, leave."""
        asked: list[tuple[Held, int]] = []
        for held in sorted(self.tickets, key=lambda held: CLASSES.index(held.ticket.class_)):
            count = min(held.due, held.quantum, wanted)
            if count > 0:
                asked.append((held, count))
                wanted -= count
            if wanted <= 0:
                break
        answers = await asyncio.gather(*(self._claim_one(held, count) for held, count in asked), return_exceptions=True)
        found: list[Parcel] = []
        for answer in answers:
            if isinstance(answer, BaseException):  # what the others brought must still go out
                log.warning("claim failed", site=self.name, why=repr(answer))
            else:
                found += answer
        self.tickets.rotate(-len(asked))
        return found

    async def _claim_one(self, held: Held, count: int) -> list[Parcel]:
        keep = held.quantum > count and not self._floor.stopping
        request = ClaimRequest(held.ticket, count, self._floor.recipients, keep)
        try:
            claimed = await held.worker.claim(request)
        except BaseException:
            self._forget(held)
            raise
        self._floor.claimed(claimed.items)
        held.due = claimed.left
        held.quantum -= len(claimed.items)
        if not (keep and claimed.left):
            self._forget(held)
        elif held.quantum <= 0:  # several recipients a transaction: more items than transactions
            held.worker.give_back(held.ticket)
            self._forget(held)
        return parcels(held.worker, claimed.items, self._floor.recipients)

    def _forget(self, held: Held) -> None:
        if held in self.tickets:
            self.tickets.remove(held)
            self._floor.room()

    async def _hand_out(self, found: list[Parcel], granted: list[tuple[Line, int]]) -> None:
        """One each in the order of the sessions, then the second, and so on; unused grants go back."""
        chains: dict[int, list[Parcel]] = {}
        waiting = deque(found)
        for turn in range(CHAIN):
            for line, count in granted:
                if waiting and turn < count:
                    chains.setdefault(id(line), []).append(waiting.popleft())
        unused = []
        for line, count in granted:
            chain = chains.get(id(line), [])
            if len(chain) < count and line.lease.limits.messages:
                unused.append((line.lease.limits, count - len(chain)))
            if chain:
                self.lines.serve(line, len(chain))
                self._start(self._send(line, chain))
        for parcel in waiting:  # claimed under an old grant: back as they were
            self._return(parcel)
        if unused:
            await self._floor.store.give_back(unused)

    async def _send(self, line: Line, chain: Sequence[Parcel]) -> None:
        """One session's chain of transactions. A reply that blames the source ends it: insisting makes a block longer."""
        session = line.session
        via = Via(f"{session.host} [{session.address}]", line.source.address, session.tls)
        for parcel in chain:  # another session may have heard that our address is not wanted
            over = self.lines.rests(line.source) or line.source.address in self._floor.stopped_sources
            if over or not session.alive or self._floor.stopping:
                self._return(parcel)
                line.given -= 1
                continue
            blamed = await self._transact(line, parcel, via)
            if blamed is not None and (self.route.smarthost is None or not session.alive):
                self.lines.rest(line.source, blamed.diagnostic)
        self.lines.done(line)
        self.wake()

    async def _transact(self, line: Line, parcel: Parcel, via: Via) -> Outcome | None:
        """Sends one parcel and settles its items; the outcome that blames our source, if there is one."""
        judge, provider = self._floor.judge, self.rule.name
        if self._floor.doors.tap.on:
            attend(line.session, self._floor.doors.tap, parcel.items[0].destination)
        try:
            result = await line.session.send(parcel.transaction())
        except Exception as error:  # ours: nothing is known of what the peer has
            log.exception("transaction broken", site=self.name, error=str(error))
            outcome = lost(Phase.END_OF_DATA, f"internal error: {type(error).__name__}", via, unknown=True)
            at = int(time.time() * 1000)
            for item in parcel.items:
                self._floor.settle(parcel.worker, judge.settlement(item, outcome, provider, at))
            return None
        if any(told.reply is not None and not told.local for told in result.recipients):
            line.worked = True
            self._floor.reached(self)
        if result.aborted:
            line.worked = True  # if the session ended, it was our doing: no refusal
            self._return(parcel)
            return None
        blamed = None
        for outcome, settlement in judge.verdicts(parcel, result, via, provider):
            self._floor.settle(parcel.worker, settlement)
            if outcome.another_source:
                blamed = outcome
            elif outcome.rule == GREYLISTED:
                self.lines.greylisted(self.route)
        return blamed

    def _return(self, parcel: Parcel) -> None:
        for item in parcel.items:
            self._floor.settle(parcel.worker, Settlement(item, "back"))

    async def _fail(self, outcome: Outcome) -> None:
        """Nobody lets us in: every destination that waits here is suspended, its items stay where they are."""
        held, self.tickets = list(self.tickets), deque()
        await self._floor.unreachable(self, held, outcome)

    # ── small things ───────────────────────────────────────────────────────────────────────────────────────────

    def _give_up_tickets(self) -> None:
        while self.tickets:
            held = self.tickets.popleft()
            held.worker.give_back(held.ticket)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task broken", site=self.name, error=repr(error))
        self.wake()

    def _pause(self) -> None:
        self.lines.connect_after = self._pace_after = now() + PAUSE_SECONDS

    async def _sleep(self, looked: float) -> None:
        """Until woken, or the first of the times that matter: all after ``looked``, also one that came since. A wait of
        a millisecond is over before a busy loop comes here, and nobody else would wake us for it."""
        times: list[float | None] = [self.lines.next_idle()]
        if self.tickets:
            times += [self.lines.connect_after, self._pace_after, self.lines.one_more_at()]
        wait = min((at - now() for at in times if at is not None and at > looked), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if wait is None else max(wait, 0.001)):
                await self._wake.wait()
