"""What can't be reached waits as a whole: the queue is told, one item is settled as deferred and says why, the others
stay untouched until the time comes. A destination, or a smarthost route with all mail that takes it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import structlog

from delivery.away import Absences, Away
from delivery.router import Route
from delivery.site import Floor
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.worker import ClaimRequest, Ticket, Worker

log = structlog.get_logger("delivery")


class Suspensions:
    """Of one process. ``floor`` counts what is claimed and settles it; the engine."""

    def __init__(self, absences: Absences, workers: Sequence[Worker], floor: Floor) -> None:
        self._absences, self._workers, self._floor = absences, workers, floor
        self._told: dict[tuple[int, str], int] = {}  # shard, route → the suspension that its event is about

    async def wait(self, worker: Worker, ticket: Ticket, away: Away, route: Route) -> None:
        """Its destination is suspended; where it goes by a smarthost, that route is."""
        if route.by_smarthost:
            await self._of_route(worker, ticket, away, route.site)
        else:
            await self.of_destination(worker, ticket, away, route.group)

    async def _of_route(self, worker: Worker, ticket: Ticket, away: Away, name: str) -> None:
        """All mail that takes it waits; one item says why, and the tickets go back."""
        why, shard = away.outcome.diagnostic, worker.shard.number
        event = None
        if self._told.get((shard, name)) != away.until_ms:
            self._told[shard, name] = away.until_ms
            now = now_ms()
            log.warning("route suspended", route=name, seconds=round((away.until_ms - now) / 1000), why=why)
            event = Event("suspended", now, destination=name, provider=name, reason=why, next_at=away.until_ms)
            await self._defer_one(worker, ticket, away, name)  # before the stop, after which nothing can be claimed
        await worker.stop_sending(name, away.until_ms, f"relay: {why}", event)
        if event is None:
            worker.give_back(ticket)
        if self._absences.forgotten((name, name)):  # a reload came between
            await self.resume({name})

    async def of_destination(self, worker: Worker, ticket: Ticket, away: Away, provider: str) -> None:
        """The destination waits; one item says why."""
        now = now_ms()
        why = away.outcome.diagnostic
        event = Event(
            "suspended", now, destination=ticket.destination, provider=provider, reason=why, next_at=away.until_ms
        )
        await worker.stop_sending(f"destination:{ticket.destination}", away.until_ms, f"mx: {why}", event)
        await self._defer_one(worker, ticket, away, provider)

    async def _defer_one(self, worker: Worker, ticket: Ticket, away: Away, provider: str) -> None:
        claimed = await worker.claim(ClaimRequest(ticket, 1))
        self._floor.claimed(claimed.items)
        for item in claimed.items:
            self._floor.settle(
                worker, self._floor.judge.settlement(item, away.outcome, provider, now_ms(), due=away.until_ms)
            )

    async def resume(self, routes: Collection[str]) -> None:
        """Ends what was suspended here; an operator's word stays."""
        for worker in self._workers:
            try:
                stops = await worker.stops()
                for name in sorted(routes & stops.keys()):
                    if stops[name] == self._told.get((worker.shard.number, name)):  # else an operator's
                        why = "the route has changed"
                        await worker.send_again(name, Event("resumed", now_ms(), destination=name, reason=why))
            except (QueueDown, ServerAnswer) as down:
                log.warning("queue away", shard=worker.shard.number, why=str(down))


def now_ms() -> int:
    return int(time.time() * 1000)
