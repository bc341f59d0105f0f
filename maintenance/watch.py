"""The step of the rounds that looks after the mail itself: does it move, does anybody answer, what was taken out."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from config.load import Loaded
from config.providers import Providers
from config.settings import Settings
from delivery.routes import Routes
from mailqueue import keys
from mailqueue.overdue import Backlog, overdue, stops
from mailqueue.queue import Queue
from maintenance.alarms import Alarms
from maintenance.bounces import Bounces
from maintenance.progress import SETTLED, Excuses, Finding, Patience, Progress
from maintenance.reach import Reach
from maintenance.tail import Said, Tail

POISON = "five claims ended without a result"  # what the reaper says of it
IDLE_LOOKS = 5  # rounds between two looks at the backlog while mail is settled


class Watch:
    """One per maintenance process. ``look`` is to be called about once a second."""

    def __init__(self, queue: Queue, alarms: Alarms, registry: CollectorRegistry, loaded: Loaded) -> None:
        self._queue = queue
        self._shard = queue.shards[0]
        self._alarms = alarms
        self._tail = Tail(queue.shards)
        self._progress = Progress()
        self._reach = Reach()
        self._bounces = Bounces()
        self._poison: dict[bytes, str] = {}  # item → message id
        self._poison_seen = False
        self._missing_since: int | None = None  # no worker, and mail is due
        self._looks = 0
        self._oldest = Gauge(
            "tambo_oldest_due_seconds",
            "How long the oldest mail has been due that nobody holds, stopped or suspended",
            ["class"],
            registry=registry,
        )
        self._events = Counter("tambo_events", "Events as maintenance reads along", ["kind"], registry=registry)
        self.take_over(loaded)

    def take_over(self, loaded: Loaded) -> None:
        """At start and on reload."""
        self._providers: Providers = loaded.providers
        self._routes = Routes(loaded.settings.routes, loaded.passwords)

    async def look(self, settings: Settings) -> None:
        """Raises QueueDown."""
        fresh = self._looks > 0
        said = await self._tail.new()
        for one in said:
            self._note(one, fresh)
        moved = fresh and any(one.event.kind in SETTLED for one in said)
        if moved:
            await self._alarms.set("no-progress", False, "mail is settled again")
        if not moved or self._looks % IDLE_LOOKS == 0:
            await self._look_behind(settings)
        self._looks += 1

    def _note(self, said: Said, fresh: bool) -> None:
        event = said.event
        if fresh:
            self._events.labels(event.kind).inc()
        if event.kind in SETTLED:
            self._progress.settled(said.at)
        self._reach.note(said)
        self._bounces.note(said)
        if event.kind == "held" and event.reason == POISON and event.index is not None:
            self._poison[keys.item(event.id, event.index)] = event.id
            self._poison_seen = True

    async def _look_behind(self, settings: Settings) -> None:
        backlog = await overdue(self._queue.shards)
        for class_ in keys.CLASS_LETTER:
            self._oldest.labels(class_).set(backlog.oldest(class_))
        await self._say("no-progress", await self._progressing(settings, backlog))
        await self._say("unreachable", self._reach.judge(backlog.now, settings.alarms.no_progress_seconds))
        await self._say("no-workers", self._workers(backlog, settings))
        await self._say("poison-held", await self._poisoned())
        now = backlog.now
        await self._alarms.family("bounces", self._bounces.judge(now), whole=self._bounces.whole(now))

    async def _progressing(self, settings: Settings, backlog: Backlog) -> Finding:
        timeouts = settings.delivery.timeouts
        patience = Patience(settings.alarms.no_progress_seconds, max(dict(timeouts).values()))
        now, free = backlog.now, []
        if backlog.rows:
            stopped = await stops(self._shard)
            excuses = Excuses(settings, self._providers, self._routes, stopped)
            free = await excuses.free(self._shard.command, backlog, self._progress.quiet(now), patience)
        return self._progress.judge(backlog, free, patience)

    def _workers(self, backlog: Backlog, settings: Settings) -> Finding:
        """A lease that has just ended may be taken anew: two of them is long enough."""
        if backlog.workers or not backlog.rows:
            self._missing_since = None
            return Finding(False)
        self._missing_since = self._missing_since or backlog.now
        if backlog.now - self._missing_since < 2000 * settings.queue.lease_seconds:
            return Finding(None)
        return Finding(True, "mail is due and no delivery process has a lease on the queue")

    async def _poisoned(self) -> Finding:
        """Those that were seen; after a restart nothing held at all is what says that none are left."""
        for item in list(self._poison):
            if not [s for s in self._queue.shards if await s.command("HEXISTS", s.prefix + "hold", item)]:
                del self._poison[item]
        if self._poison:
            ids = sorted(set(self._poison.values()))
            named = ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")
            return Finding(True, f"held, for {POISON}: {named}", len(self._poison))
        held = sum([int(await s.command("HLEN", s.prefix + "hold")) for s in self._queue.shards])
        return Finding(False if self._poison_seen or not held else None)

    async def _say(self, name: str, finding: Finding) -> None:
        if finding.on is not None:
            await self._alarms.set(name, finding.on, finding.reason, finding.count)
