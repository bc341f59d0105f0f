"""A site: everything that shares its MX hosts, seen from one pool of sources. Its sessions, and who waits for them.

One task a site (:meth:`Site.run`), woken by events: a ticket is offered, a session opened, ended its work or was
lost, a limit was freed, a time came. Each step asks, in this order: are more sessions worth having and allowed; which
open ones can send now; how many messages do the paces grant them; then it claims just so many and hands them out,
least served source first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from config.providers import ProviderRule
from delivery.attempt import Judge, Parcel, parcels
from delivery.doors import Doors, NoSession
from delivery.metrics import DeliveryMetrics
from delivery.outcome import Outcome, Via, lost
from delivery.pool import CHAIN, Source, limits_of, sessions_worth_having, usable
from delivery.reply import Phase
from delivery.router import Route
from delivery.session import Session
from delivery.tls import TlsMode
from ipreputation.choose import levelled
from ipreputation.limits import Limits
from ipreputation.store import Lease, LimitsDown, LimitStore
from mailqueue.errors import LeaseLost, QueueDown
from mailqueue.message import CLASSES
from mailqueue.worker import ClaimRequest, Settlement, Ticket, Worker

QUANTUM = 500  # items a ticket may draw before the queue decides again whose turn it is
MOST_TICKETS = 50  # of one class that wait at one site; a provider with so many is not asked for
REST_SECONDS = {"reply": 600.0, "address_gone": 60.0}  # a source that a site refuses, or that is not there
FIRST_SESSIONS = 2  # as long as none has been let in
PAUSE_SECONDS = 1.0  # when the limits' server is away, or this machine has no port left

log = structlog.get_logger("delivery")


@dataclass(slots=True, eq=False)
class Held:
    """A ticket that waits here; ``due`` is what is believed to be left behind it, ``quantum`` what it may still draw."""

    worker: Worker
    ticket: Ticket
    due: int
    quantum: int = QUANTUM


@dataclass(slots=True, eq=False)
class Line:
    """One open session with the lease it rests on."""

    session: Session
    lease: Lease
    source: Source
    idle_since: float
    busy: bool = False
    given: int = 0  # transactions handed to it

    @property
    def left(self) -> int:
        return self.lease.limits.per_connection - self.given if self.session.alive else 0


class Floor(Protocol):
    """What all sites of a process share; the engine."""

    store: LimitStore
    judge: Judge
    doors: Doors
    metrics: DeliveryMetrics
    idle_seconds: float
    recipients: int
    stopping: bool
    stopped_sources: Collection[str]

    def free_sessions(self) -> int: ...
    def free_items(self) -> int: ...
    def starve(self, site: Site) -> None: ...
    def session_opened(self) -> None: ...
    def session_closed(self) -> None: ...
    async def release(self, lease: Lease) -> None: ...
    def claimed(self, count: int) -> None: ...
    def settle(self, worker: Worker, settlement: Settlement) -> None: ...
    def room(self) -> None: ...
    def reached(self, site: Site) -> None: ...
    def unreachable(self, site: Site, held: Sequence[Held], outcome: Outcome) -> Awaitable[None]: ...


@dataclass(slots=True, eq=False)
class Site:
    """Made by the engine for (pool, site); ends by itself when nothing waits and no session is left."""

    name: str
    pool: str
    rule: ProviderRule
    sources: tuple[Source, ...]
    route: Route
    floor: Floor
    tickets: deque[Held] = field(default_factory=deque)
    lines: list[Line] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)
    opening: int = 0
    _limits: dict[str, Limits] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _connect_after: float = 0.0
    _pace_after: float = 0.0

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

    def freed(self) -> bool:
        """A limit of ours has room. Whether anybody here wants it."""
        self._connect_after = 0.0
        self.wake()
        return bool(self.tickets)

    def drop_leases(self, leases: Collection[str]) -> None:
        """Others have their slots already: no more over these sessions."""
        for line in list(self.lines):
            if line.lease.token in leases:
                line.given = line.lease.limits.per_connection  # what is under way may end: a cut makes duplicates
                if not line.busy:
                    self._close(line)

    def crowded(self, class_: str) -> bool:
        """No more tickets of this class now; a better class is never kept out by a lesser one."""
        return sum(held.ticket.class_ == class_ for held in self.tickets) >= MOST_TICKETS

    def configure(self, rule: ProviderRule, sources: tuple[Source, ...]) -> None:
        """Sessions open from now on follow these; open ones end under the old."""
        self.rule, self.sources = rule, sources
        self._limits.clear()
        self.wake()

    # ── the loop ───────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until there is nothing to do here. Raises nothing of its own."""
        while self.tickets or self.lines or self._tasks:
            self._wake.clear()
            if self.floor.stopping:
                self._give_up_tickets()
            self._retire()
            try:
                moved = bool(self.tickets) and await self._step()
            except (LimitsDown, QueueDown, LeaseLost) as trouble:
                log.warning("site waits", site=self.name, why=str(trouble))
                self._connect_after = self._pace_after = self._now() + PAUSE_SECONDS
                moved = False
            if not moved:
                await self._sleep()

    async def _step(self) -> bool:
        """True when something was handed out."""
        demand = sum(held.due for held in self.tickets)
        await self._open_more(demand)
        ready = self._ready()
        if not ready or self._now() < self._pace_after:
            return False
        free = self.floor.free_items()
        if free <= 0:
            self.floor.starve(self)
            return False
        shares = self._shares(ready, min(demand, free))
        granted = await self._granted(shares)
        wanted = sum(count for _, count in granted)
        if not wanted:
            return False
        found = await self._claim(wanted)
        await self._hand_out(found, granted)
        return True

    def _ready(self) -> list[Line]:
        """Sessions that can send now, those of the least served source first."""
        lines = [line for line in self.lines if not line.busy and line.left > 0]
        lines.sort(key=lambda line: (self._level(line.source), line.idle_since))
        return lines

    def _level(self, source: Source) -> float:
        return self.served.get(source.address, 0.0) / max(source.weight, 1)

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
        taken = await self.floor.store.take([(line.lease.limits, count) for line, count in shares])
        granted = [(line, got.count) for (line, _), got in zip(shares, taken, strict=True) if got.count]
        if not granted:
            self._pace_after = self._now() + max(min(got.wait for got in taken), 0.001)
            self.floor.metrics.limited.labels(self.rule.name).inc()
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
            if isinstance(answer, LeaseLost | QueueDown):
                log.warning("claim failed", site=self.name, why=str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += answer
        self.tickets.rotate(-len(asked))
        return found

    async def _claim_one(self, held: Held, count: int) -> list[Parcel]:
        keep = held.quantum > count and not self.floor.stopping
        request = ClaimRequest(held.ticket, count, self.floor.recipients, keep)
        try:
            claimed = await held.worker.claim(request)
        except BaseException:
            self._forget(held)
            raise
        self.floor.claimed(len(claimed.items))
        held.due = claimed.left
        held.quantum -= len(claimed.items)
        if not (keep and claimed.left):
            self._forget(held)
        elif held.quantum <= 0:  # several recipients a transaction: more items than transactions
            held.worker.give_back(held.ticket)
            self._forget(held)
        return parcels(held.worker, claimed.items, self.floor.recipients)

    def _forget(self, held: Held) -> None:
        if held in self.tickets:
            self.tickets.remove(held)
            self.floor.room()

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
                line.busy = True
                line.given += len(chain)
                self.served[line.source.address] = self.served.get(line.source.address, 0.0) + len(chain)
                self._start(self._send(line, chain))
        for parcel in waiting:  # claimed under an old grant: back as they were
            self._return(parcel)
        if unused:
            await self.floor.store.give_back(unused)

    async def _send(self, line: Line, chain: Sequence[Parcel]) -> None:
        """One session's chain of transactions."""
        session = line.session
        via = Via(f"{session.host} [{session.address}]", line.source.address, session.tls)
        blamed: Outcome | None = None
        for parcel in chain:
            if not session.alive or self.floor.stopping:
                self._return(parcel)
                line.given -= 1
                continue
            blamed = await self._transact(session, parcel, via) or blamed
        line.busy = False
        line.idle_since = self._now()
        if blamed is not None and not session.alive:
            self._rest(line.source, blamed.diagnostic, REST_SECONDS["reply"])
        if line.left <= 0 or self.floor.stopping:
            self._close(line)
        self.wake()

    async def _transact(self, session: Session, parcel: Parcel, via: Via) -> Outcome | None:
        """Sends one parcel and settles its items; the outcome that blames our source, if there is one."""
        judge, provider = self.floor.judge, self.rule.name
        try:
            result = await session.send(parcel.transaction())
        except Exception as error:  # ours: nothing is known of what the peer has
            log.exception("transaction broken", site=self.name, error=str(error))
            outcome = lost(Phase.END_OF_DATA, f"internal error: {type(error).__name__}", via, unknown=True)
            now = int(time.time() * 1000)
            for item in parcel.items:
                self.floor.settle(parcel.worker, judge.settlement(item, outcome, provider, now))
            return None
        if result.aborted:
            self._return(parcel)
            return None
        blamed = None
        for outcome, settlement in judge.verdicts(parcel, result, via, provider):
            self.floor.settle(parcel.worker, settlement)
            if outcome.another_source:
                blamed = outcome
        return blamed

    def _return(self, parcel: Parcel) -> None:
        for item in parcel.items:
            self.floor.settle(parcel.worker, Settlement(item, "back"))

    # ── sessions ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _open_more(self, demand: int) -> None:
        alive, idle = len(self.lines), len(self._ready())
        most = FIRST_SESSIONS + 3 * alive
        worth = min(sessions_worth_having(demand, most), most) - alive - self.opening
        want = min(worth, self.floor.free_sessions(), demand - idle)
        if want <= 0 or self._now() < self._connect_after:
            return
        candidates = self._candidates()
        if not candidates:
            await self._no_source()
            return
        while want > 0:
            granted = await self.floor.store.connect(candidates, want, each=1)
            for lease in granted.leases:
                source = next(source for source in self.sources if source.address == lease.source)
                self.opening += 1
                self.floor.session_opened()
                self._start(self._establish(lease, source))
            want -= len(granted.leases)
            if granted.wait is not None:
                self._connect_after = self._now() + max(granted.wait.until, 0.001)
                self.floor.metrics.limited.labels(self.rule.name).inc()
                break
            if not granted.leases:
                break

    def _candidates(self) -> list[tuple[str, Limits]]:
        """Sources by how few sessions they have here, then by how little they have sent."""
        versions = {6 if ":" in address else 4 for host in self.route.hosts for address in host.addresses}
        found = usable(self.sources, versions, self.resting, self._now(), self.floor.stopped_sources)
        count = {source.address: 0 for source in found}
        for line in self.lines:
            if line.source.address in count:
                count[line.source.address] += 1
        found = [source for source in found if source.weight > 0]
        found.sort(key=lambda source: (count[source.address] / source.weight, self._level(source)))
        return [(source.address, self._limits_of(source)) for source in found]

    def _limits_of(self, source: Source) -> Limits:
        limits = self._limits.get(source.address)
        if limits is None:
            limits = self._limits[source.address] = limits_of(self.rule, self.name, source.address)
            self.served = levelled([(s.address, s.weight) for s in self.sources], self.served)
        return limits

    async def _no_source(self) -> None:
        """Every source rests here, is stopped, or is of the wrong family."""
        rest = [until for until in self.resting.values() if until > self._now()]
        if self.lines or self.opening:
            self._connect_after = min(rest, default=self._now() + PAUSE_SECONDS)
            return
        via = Via()
        why = "every source of the pool is refused here for now" if rest else "no source of the pool may send here"
        await self._fail(lost(Phase.CONNECT, why, via))

    async def _establish(self, lease: Lease, source: Source) -> None:
        line: Line | None = None
        mode = TlsMode(self.rule.for_source(source.address).tls)
        try:
            session = await self.floor.doors.open(self.route.hosts, source, mode, self._lost)
            line = Line(session, lease, source, self._now())
            self.floor.reached(self)
            self.floor.metrics.opened.labels(self.rule.name).inc()
            self.floor.metrics.sessions.labels(self.rule.name).inc()
        except NoSession as refusal:
            await self._refused(refusal, source)
        finally:
            self.opening -= 1
            if line is None:
                self.floor.session_closed()
                await self.floor.release(lease)
            else:
                self.lines.append(line)
            self.wake()

    async def _refused(self, refusal: NoSession, source: Source) -> None:
        self.floor.metrics.refused.labels(source.address, refusal.kind).inc()
        now = self._now()
        if refusal.blame == "us":
            log.warning("no port left", source=source.address, text=refusal.outcome.diagnostic)
            self._connect_after = now + PAUSE_SECONDS
        elif refusal.blame == "source":
            self._rest(source, refusal.outcome.diagnostic, REST_SECONDS.get(refusal.kind, 60.0))
        elif self.lines:  # others got in: no more than these, for a while
            self._connect_after = now + 5 * PAUSE_SECONDS
        elif self.opening <= 1:
            await self._fail(refusal.outcome)

    def _rest(self, source: Source, why: str, seconds: float) -> None:
        self.resting[source.address] = self._now() + seconds
        log.warning("source rests", source=source.address, site=self.name, seconds=seconds, why=why)

    async def _fail(self, outcome: Outcome) -> None:
        """Nobody lets us in: every destination that waits here is suspended, its items stay where they are."""
        held, self.tickets = list(self.tickets), deque()
        await self.floor.unreachable(self, held, outcome)

    def _lost(self, session: Session, _why: str) -> None:
        """An idle session's peer went away."""
        for line in self.lines:
            if line.session is session and not line.busy:
                self._close(line)
                return

    def _retire(self) -> None:
        """Sessions idle too long, at their last message, or ended."""
        horizon = self._now() - self.floor.idle_seconds
        for line in list(self.lines):
            if not line.busy and (line.left <= 0 or line.idle_since <= horizon or self.floor.stopping):
                self._close(line)

    def _close(self, line: Line) -> None:
        if line in self.lines:
            self.lines.remove(line)
            self._start(self._quit(line))

    async def _quit(self, line: Line) -> None:
        """The slot is ours until the peer said 221 or hung up."""
        try:
            await line.session.quit()
        finally:
            self.floor.session_closed()
            self.floor.metrics.sessions.labels(self.rule.name).dec()
            await self.floor.release(line.lease)
            self.wake()

    # ── small things ───────────────────────────────────────────────────────────────────────────────────────────

    def _give_up_tickets(self) -> None:
        while self.tickets:
            held = self.tickets.popleft()
            held.worker.give_back(held.ticket)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task broken", site=self.name, error=repr(error))
        self.wake()

    async def _sleep(self) -> None:
        """Until woken, or the first of the times that matter."""
        now = self._now()
        times = [line.idle_since + self.floor.idle_seconds for line in self.lines if not line.busy]
        if self.tickets:
            times += [self._connect_after, self._pace_after]
        wait = min((at - now for at in times if at > now), default=None)
        try:
            async with asyncio.timeout(None if wait is None else max(wait, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            pass

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
