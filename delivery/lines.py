"""The sessions of a site: how many are worth having, which source opens the next, when each one ends.

Every open session rests on a lease of its source's slot; the slot is given back when the peer has said 221 or hung up,
not before, so that what we count and what the provider counts agree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from config.providers import ProviderRule
from delivery.doors import AnySession, Doors, NoSession
from delivery.grey import Greylisters
from delivery.metrics import DeliveryMetrics
from delivery.opening import Opening, one_more_at
from delivery.outcome import Outcome, Via, at_site, lost
from delivery.pool import Source, sessions_worth_having, usable
from delivery.reply import Phase
from delivery.rests import Rests
from delivery.router import Route
from delivery.tls import TlsMode
from delivery.turns import Turns
from ipreputation.limits import Limits
from ipreputation.store import Lease, LimitStore
from mailqueue.events import SOURCES_REST

REST_SECONDS = {"reply": 600.0, "address_gone": 60.0}  # a source that a site refuses, or that is not there
FIRST_SESSIONS = 2  # as long as none has been let in
PAUSE_SECONDS = 1.0  # when this machine has no port left

log = structlog.get_logger("delivery")


@dataclass(slots=True, eq=False)
class Line:
    """One open session with the lease it rests on."""

    session: AnySession
    lease: Lease
    source: Source
    idle_since: float
    busy: bool = False
    worked: bool = False  # the peer has answered a command of a transaction
    given: int = 0  # transactions handed to it
    finished: bool = False

    @property
    def left(self) -> int:
        """Transactions it may still carry."""
        return self.lease.limits.per_connection - self.given if self.session.alive and not self.finished else 0

    def finish(self) -> None:
        """No more transactions; one under way may end, for a cut after the final dot makes duplicates."""
        self.finished = True


class Ground(Protocol):
    """What sessions need of the process; the engine."""

    store: LimitStore
    doors: Doors
    metrics: DeliveryMetrics
    rests: Rests
    grey: Greylisters
    idle_seconds: float
    stopping: bool

    @property
    def stopped_sources(self) -> Collection[str]: ...

    def free_sessions(self) -> int: ...
    def ample_sessions(self) -> bool: ...
    def session_opened(self) -> None: ...
    def session_closed(self) -> None: ...
    async def release(self, lease: Lease) -> None: ...


class Lines:
    """``start`` runs a task in the site's name, ``changed`` wakes it; ``failed`` hears that nobody lets us in, ``halted``
    that an operator has stopped every source that could; ``waiting`` gives the domains that wait here."""

    def __init__(
        self,
        name: str,
        rule: ProviderRule,
        sources: tuple[Source, ...],
        ground: Ground,
        *,
        start: Callable[[Coroutine[Any, Any, None]], None],
        changed: Callable[[], None],
        failed: Callable[[Outcome], Awaitable[None]],
        halted: Callable[[], None],
        waiting: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.openings: list[Opening] = []
        self.connect_after = 0.0
        self._worth = 0  # sessions worth having when last looked at
        self._tries = 0  # further ones, since anybody got in
        self._wave = 0  # how often all that were being opened were abandoned
        self._one_more_after = 0.0
        self._name = name
        self._turns = Turns(name, rule, sources)
        self._ground = ground
        self._start, self._changed, self._failed, self._halted = start, changed, failed, halted
        self._waiting = waiting
        self._open: list[Line] = []
        self._paused_until = 0.0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def rule(self) -> ProviderRule:
        return self._turns.rule

    def configure(self, rule: ProviderRule, sources: tuple[Source, ...]) -> None:
        """Sessions open from now on follow these; open ones end under the old."""
        self._turns.configure(rule, sources)
        self._tries = 0

    # ── which ──────────────────────────────────────────────────────────────────────────────────────────────────

    def ready(self) -> list[Line]:
        """Sessions that can send now, those of the least served source first."""
        lines = [line for line in self._open if not line.busy and line.left > 0]
        lines.sort(key=lambda line: (self._turns.level(line.source), line.idle_since))
        return lines

    def serve(self, line: Line, transactions: int) -> None:
        """It has been handed so many."""
        line.busy = True
        line.given += transactions
        self._turns.serve(line.source, transactions)

    def done(self, line: Line) -> None:
        """Its transactions have ended."""
        line.busy = False
        line.idle_since = now()
        if line.left <= 0 or self._ground.stopping:
            self._close(line)
            self._mourn(line)

    def next_idle(self) -> float | None:
        """When the next idle session has been so for too long."""
        return min((line.idle_since + self._ground.idle_seconds for line in self._open if not line.busy), default=None)

    def sources_open(self) -> list[str]:
        """One for each session."""
        return [line.source.address for line in self._open]

    # ── opening ────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_more(self, demand: int, route: Route) -> None:
        """As many as are worth having for ``demand`` transactions that wait, and as the limits allow."""
        alive, idle = len(self._open), len(self.ready())
        most = FIRST_SESSIONS + 3 * alive  # slow start: who lets two in may let eight in
        self._worth = sessions_worth_having(demand, most)
        lacking = self._worth - alive - len(self.openings)
        further = self._further()
        want = min(max(lacking, further), self._ground.free_sessions(), demand - idle)
        behind = self._behind() if want <= 0 < self._ground.free_sessions() and not self.openings else set()
        if (want <= 0 and not behind) or demand <= 0 or now() < self.connect_after:
            return
        candidates = self._candidates(route)
        if want <= 0:
            candidates = [candidate for candidate in candidates if candidate[0] in behind]
            want = min(len(candidates), FIRST_SESSIONS)
            if not candidates:
                return
        if not candidates:
            await self._no_source(route)
            return
        by_address = {source.address: source for source in self._turns.sources}  # a reload may come while we ask
        wave = self._wave
        while want > 0:
            granted = await self._ground.store.connect(candidates, want, each=1)
            if wave != self._wave:  # given up while we asked: one more failure would count it twice
                for lease in granted.leases:
                    await self._ground.release(lease)
                return
            self._tries += further if granted.leases else 0
            for lease in granted.leases:
                self._look_elsewhere()
                self.openings.append(opening := Opening(lease.source))
                self._ground.session_opened()
                self._start(self._establish(lease, by_address[lease.source], route, opening))
            want -= len(granted.leases)
            if granted.wait is not None:
                self.connect_after = now() + max(granted.wait.until, 0.001)
                self._ground.metrics.limited.labels(self.rule.name).inc()
            if granted.wait is not None or not granted.leases:
                return

    def one_more_at(self) -> float | None:
        """When those under way will have been silent for too long to wait for them alone; None while they are too few."""
        if not self.openings or len(self._open) + len(self.openings) < self._worth:
            return None
        return max(one_more_at(self.openings, self._tries, now()), self._one_more_after)

    def _further(self) -> int:
        """1 when that time has come."""
        at = self.one_more_at()
        if at is None or now() < at:
            return 0
        if not self._ground.ample_sessions():
            self._one_more_after = now() + 5 * PAUSE_SECONDS
            return 0
        return 1

    def _look_elsewhere(self) -> None:
        """The next session tries other addresses than those that say nothing before it waits there, too."""
        slow = [one for one in self.openings if one.slow(now())]
        for one in slow:
            self._ground.doors.shun(one.address)
        if slow:
            first = min(slow, key=lambda one: one.since)
            log.warning("host keeps us waiting", site=self._name, opening=len(self.openings), **first.plain(now()))

    def _behind(self) -> set[str]:
        return set() if self._greylists() else self._turns.behind([line.source for line in self._open])

    def _usable(self, route: Route, stopped: Collection[str]) -> list[Source]:
        versions = {6 if ":" in address else 4 for host in route.hosts for address in host.addresses}
        return usable(self._turns.sources, versions, self._ground.rests.at(self._name, now()), stopped)

    def _candidates(self, route: Route) -> list[tuple[str, Limits]]:
        """In order; at a site that is no provider's and greylists just one."""
        found = self._usable(route, self._ground.stopped_sources)
        if not self.rule.roll_up and self._greylists():
            found = self._turns.foremost(found)
        return self._turns.candidates(found, [*self.sources_open(), *(one.source for one in self.openings)])

    def _greylists(self) -> bool:
        return self._ground.grey.has(self._name, now())

    def greylisted(self, route: Route) -> None:
        """It wants the same address again, later: sessions of others end with the transaction under way."""
        if self.rule.roll_up:  # a smarthost, or one host of many, whose provider knows us
            return
        self._ground.grey.note(self._name, now())
        foremost = self._turns.foremost(self._usable(route, self._ground.stopped_sources))
        for line in self._open if foremost else ():
            if line.source.address != foremost[0].address:
                line.finish()

    async def _no_source(self, route: Route) -> None:
        """Every source rests here, is stopped, or is of the wrong family."""
        if self._usable(route, ()):
            self._halted()
            return
        rest = self._ground.rests.at(self._name, now()).values()
        if self._open or self.openings:
            self.connect_after = min(rest, default=now() + PAUSE_SECONDS)
            return
        said = self._ground.rests.why(self._name) if rest else ""
        why = "every source of the pool rests here for now" if rest else "no source of the pool may send here"
        outcome = at_site(lost(Phase.CONNECT, f"{why}; it said: {said}" if said else why))
        await self._failed(replace(outcome, rule=SOURCES_REST if said else ""))

    async def _establish(self, lease: Lease, source: Source, route: Route, opening: Opening) -> None:
        line: Line | None = None
        mode = TlsMode(self.rule.for_source(source.address).tls)
        metrics = self._ground.metrics
        try:
            opening.begins()
            session = await self._ground.doors.open(
                route.hosts, source, mode, self._lost, opening, route.smarthost, self._waiting
            )
            line = Line(session, lease, source, now())
            self._open.append(line)
            self._let_in(opening)
            metrics.opened.labels(self.rule.name).inc()
            metrics.sessions.labels(self.rule.name).inc()
        except NoSession as refusal:
            self.openings.remove(opening)  # what comes of the refusal must not be cancelled with the others
            await self._refused(refusal, source)
        finally:
            if opening in self.openings:
                self.openings.remove(opening)
            self._changed()
            if line is None:
                self._ground.session_closed()
                await self._ground.release(lease)

    def _let_in(self, opening: Opening) -> None:
        """Who has waited since before it began waits in vain."""
        self._tries = 0
        for one in self.openings:
            if one.slow(now()) and one.since < opening.began:
                one.cancel()

    async def _refused(self, refusal: NoSession, source: Source) -> None:
        self._ground.metrics.refused.labels(source.address, refusal.kind).inc()
        if refusal.blame == "us":
            log.warning("no port left", source=source.address, text=refusal.outcome.diagnostic)
            self._pause(PAUSE_SECONDS)
        elif refusal.blame == "source":
            self.rest(source, refusal.outcome.diagnostic, refusal.kind)
        elif self._open:  # others got in: no more than these, for a while
            self._pause(5 * PAUSE_SECONDS)
        elif all(one.slow(now()) for one in self.openings):
            self.abandon()  # they wait where it has waited in vain
            await self._failed(refusal.outcome)

    def rest(self, source: Source, why: str, kind: str = "reply") -> None:
        """The source opens no session here for a while; those it has end with the transaction under way."""
        seconds = REST_SECONDS.get(kind, 60.0)
        self._ground.rests.note(self._name, source.address, now() + seconds, now(), why if kind == "reply" else "")
        for line in self._open:
            if line.source.address == source.address:
                line.finish()
        self._ground.metrics.source_refused(self.rule.name, source.address)
        log.warning("source rests", source=source.address, site=self._name, seconds=seconds, why=why)

    def rests(self, source: Source) -> bool:
        return self._ground.rests.rests(self._name, source.address, now())

    def freed(self) -> None:
        """A limit has room; a slot of a session that came to nothing is no reason to knock again."""
        self.connect_after = self._paused_until

    def _pause(self, seconds: float) -> None:
        self.connect_after = self._paused_until = now() + seconds

    # ── ending ─────────────────────────────────────────────────────────────────────────────────────────────────

    def retire(self) -> None:
        """Sessions idle too long, at their last transaction, of a source that is stopped, without a valid lease, or
        ended."""
        if (
            self._ground.store.valid_until <= time.monotonic()
        ):  # the limits' server is away: others may have our slots by now
            for line in self._open:
                line.finish()
        horizon, stopped = now() - self._ground.idle_seconds, self._ground.stopped_sources
        for line in list(self._open):
            over = line.left <= 0 or line.idle_since <= horizon or line.source.address in stopped
            if not line.busy and (over or self._ground.stopping):
                self._close(line)
                self._mourn(line)

    def _mourn(self, line: Line) -> None:
        """A session that was lost before it was of any use is a refusal, or we would knock for ever."""
        if line.worked or line.session.alive or self._ground.stopping:
            return
        self._pause(PAUSE_SECONDS)
        if not self._open and not self.openings:
            via = Via(f"{line.session.host} [{line.session.address}]", line.source.address, line.session.tls)
            why = line.session.failure or "closed before any mail"
            self._start(self._refuse(at_site(lost(Phase.EHLO, why, via))))

    async def _refuse(self, outcome: Outcome) -> None:
        await self._failed(outcome)

    def abandon(self) -> None:
        """None of the sessions that are being opened is wanted any more."""
        self._tries = 0
        self._wave += 1
        for one in self.openings:
            one.cancel()

    def renew(self) -> None:
        """Sessions end with the transaction under way, those that are being opened at once; new ones follow what is in
        force now."""
        self.abandon()
        for line in self._open:
            line.finish()
        self._changed()

    def drop_leases(self, tokens: Collection[str]) -> None:
        """Others have their slots already: no more over these sessions."""
        for line in self._open:
            if line.lease.token in tokens:
                line.finish()
        self._changed()

    def _lost(self, _session: AnySession, _why: str) -> None:
        """An idle session's peer went away."""
        self._changed()

    def _close(self, line: Line) -> None:
        if line in self._open:
            self._open.remove(line)
            self._start(self._quit(line))

    async def _quit(self, line: Line) -> None:
        """The slot is ours until the peer said 221 or hung up."""
        try:
            await line.session.quit()
        finally:
            self._ground.session_closed()
            self._ground.metrics.sessions.labels(self.rule.name).dec()
            await self._ground.release(line.lease)
            self._changed()


def now() -> float:
    return asyncio.get_running_loop().time()
