"""The whole relay at one moment: what ``relayctl top`` shows. Figures come from the queue's own counts (flows, lanes) and
from what each process says of itself; nothing is scanned and no event is read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailqueue import alarms, inspect, intake
from mailqueue.alarms import Alarm
from mailqueue.inspect import FlowFacts, Summary
from mailqueue.intake import Stopped
from mailqueue.marks import Figures
from mailqueue.processes import Process, present
from mailqueue.queue import Queue
from mailqueue.stopped import Stop, some_suspended

ACCEPTED, DELIVERED, DEFERRED, BOUNCED = "accepted", "delivered", "deferred", "bounced"
MOST_DESTINATIONS = 100  # of the suspended that are named
FINAL = (DELIVERED, BOUNCED, "unknown", "expired")  # after these a recipient is no backlog any more
Rate = tuple[float, float]  # per second over 10 s, over 5 min


@dataclass(frozen=True, slots=True)
class Source:
    address: str
    sessions: int
    resting: int  # sites where it rests
    rate: float  # delivered a second
    suspended: str  # why, "" = it is not


@dataclass(frozen=True, slots=True)
class Progress:
    """``since``: Unix s of the oldest part's arrival; ``rate``: recipients that became final a second; ``eta``: Unix s,
    None = at this rate never."""

    open: int
    done: int
    since: float
    elapsed: float
    rate: float
    eta: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    at: float
    rates: Mapping[str, Rate]
    backlog: Progress
    queued: Mapping[str, Mapping[str, int]]  # provider → class → recipients, as maintenance counted last
    delivering: Mapping[str, float]  # provider → delivered a second
    flows: Sequence[tuple[FlowFacts, Progress]]  # the largest first
    sources: Sequence[Source]
    summary: Summary
    stops: Sequence[Stop]  # those that hold; of suspended destinations some
    processes: Sequence[Process]
    alarms: Sequence[Alarm]
    intake: Stopped | None
    marks: Figures


class Looker:
    """``look`` again and again: a flow's present rate is what it did since the look before."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._before: tuple[float, dict[tuple[int, str], int]] = (0.0, {})

    async def look(self) -> Overview:
        """Raises QueueDown."""
        shard = self._queue.shards[0]
        summary, there = await inspect.summary(self._queue.shards), await present(shard)
        raised, stopped = await alarms.raised(shard), await intake.stopped(shard)
        stops = [Stop.read(key, value.encode()) for key, value in sorted(summary.stops.items())]
        stops += await some_suspended(self._queue.shards, MOST_DESTINATIONS)
        await self._queue.marks.reached()
        return self.put_together(time.time(), summary, stops, there, tuple(raised.values()), stopped)

    def put_together(
        self,
        at: float,
        summary: Summary,
        stops: Sequence[Stop],
        there: Sequence[Process],
        raised: Sequence[Alarm],
        stopped: Stopped | None,
    ) -> Overview:
        stops = [stop for stop in stops if stop.holds(int(at * 1000))]
        rates = added(one.live.get("rates", {}) for one in there)
        flows = [(flow, self._progress(flow, at)) for flow in sorted(summary.flows, key=lambda flow: -flow.open)]
        self._before = at, {(flow.shard, flow.id): flow.done for flow in summary.flows}
        return Overview(
            at=at,
            rates=rates,
            backlog=_whole(summary, rates, at),
            queued=_queued(there),
            delivering=_delivering(there),
            flows=flows,
            sources=sources(there, stops),
            summary=summary,
            stops=stops,
            processes=there,
            alarms=raised,
            intake=stopped,
            marks=self._queue.marks.figures,
        )

    def _progress(self, flow: FlowFacts, at: float) -> Progress:
        since, (looked, done) = flow.since / 1000, self._before
        before = done.get((flow.shard, flow.id))
        if before is None or at <= looked:  # its average
            rate = flow.done / max(at - since, 1.0)
        else:
            rate = max(flow.done - before, 0) / (at - looked)
        return progress(flow.open, flow.done, since, rate, at)


def progress(open_: int, done: int, since: float, rate: float, at: float) -> Progress:
    eta = at if not open_ else at + open_ / rate if rate > 0 else None
    return Progress(open_, done, since, max(at - since, 0.0), rate, eta)


def added(said: Any) -> dict[str, Rate]:
    """The rates of all processes together."""
    total: dict[str, list[float]] = {}
    for rates in said:
        for name, (short, long) in rates.items():
            both = total.setdefault(name, [0.0, 0.0])
            both[0] += short
            both[1] += long
    return {name: (both[0], both[1]) for name, both in total.items()}


def _whole(summary: Summary, rates: Mapping[str, Rate], at: float) -> Progress:
    """By the rate of the last ten seconds, by that of the last five minutes where nothing came of them."""
    final = [sum(rates.get(name, (0.0, 0.0))[which] for name in FINAL) for which in (0, 1)]
    since = min((flow.since / 1000 for flow in summary.flows), default=at)
    done = sum(flow.done for flow in summary.flows)
    return progress(summary.open - min(summary.held, summary.open), done, since, final[0] or final[1], at)


def _queued(there: Sequence[Process]) -> Mapping[str, Mapping[str, int]]:
    """Of any maintenance that has counted: all count the same."""
    return next((one.live["queued"] for one in there if one.live.get("queued")), {})


def _delivering(there: Sequence[Process]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for one in there:
        for provider, rate in one.live.get("providers", {}).items():
            total[provider] += rate
    return dict(total)


def sources(there: Sequence[Process], stops: Sequence[Stop]) -> list[Source]:
    """Those with the most sessions first."""
    total: dict[str, list[float]] = {}
    for one in there:
        for address, (sessions, resting, rate) in one.live.get("sources", {}).items():
            facts = total.setdefault(address, [0, 0, 0.0])
            facts[0] += sessions
            facts[1] = max(facts[1], resting)
            facts[2] += rate
    stopped = {one.key.removeprefix("source:"): one.reason for one in stops if one.key.startswith("source:")}
    for address in stopped:
        total.setdefault(address, [0, 0, 0.0])
    found = [
        Source(address, int(facts[0]), int(facts[1]), facts[2], stopped.get(address, ""))
        for address, facts in total.items()
    ]
    return sorted(found, key=lambda source: (not source.suspended, -source.sessions, -source.rate, source.address))


def plain(seen: Overview, most: int) -> dict[str, Any]:
    """As JSON."""
    return {
        "at": seen.at,
        "rates": {name: {"10s": rate[0], "5min": rate[1]} for name, rate in seen.rates.items()},
        "backlog": _as_json(seen.backlog),
        "messages": seen.summary.messages,
        "in_flight": seen.summary.in_flight,
        "held": seen.summary.held,
        "queued_by_provider": seen.queued,
        "delivered_by_provider": seen.delivering,
        "queued_by_class": by(seen, "class_"),
        "queued_by_account": dict(list(by(seen, "account").items())[:most]),
        "flows": [
            {
                "class": flow.class_,
                "account": flow.account,
                "campaign": flow.campaign,
                "pool": flow.pool,
                **_as_json(done),
            }
            for flow, done in seen.flows[:most]
        ],
        "sources": [_as_json(one) for one in seen.sources],
        "workers": seen.summary.workers,
        "suspended": [_as_json(one) for one in seen.stops],
        "suspended_destinations": seen.summary.suspended,
        "processes": [_as_json(one) for one in seen.processes],
        "alarms": [_as_json(one) for one in seen.alarms],
        "intake": _as_json(seen.intake) if seen.intake else None,
        "marks": {**_as_json(seen.marks), "reached": seen.marks.reached},
    }


def by(seen: Overview, field: str) -> dict[str, int]:
    """Recipients open by a flow's field, the most first."""
    total: Counter[str] = Counter()
    for flow, _ in seen.flows:
        total[getattr(flow, field)] += flow.open
    return dict(total.most_common())


def _as_json(facts: Any) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__slots__}
