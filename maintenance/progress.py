"""The no-progress alarm: mail is due, limits are free, and nothing has been settled for too long.

Everything is judged from the queue, the limits and the events, as delivery left them: it need not be alive. What excuses
standing still is looked at site by site, and no excuse lasts for ever: a connection cannot be held longer than the
slowest time-out, a rate that is used up has room again when its bucket has refilled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from config.providers import ProviderRule, Providers
from config.routes import PREFIX
from config.settings import Settings
from delivery.pool import pools_of
from delivery.routes import Routes
from ipreputation.inspect import Command, Standing, standings
from ipreputation.limits import limits_for
from mailqueue.overdue import Backlog, Overdue

FEW_TARPITS = (
    2  # sites of few mails whose hosts may let a worker wait, each for as long as a time-out lasts, at one time
)
SETTLED = frozenset({"delivered", "deferred", "bounced", "unknown", "late", "suppressed"})


@dataclass(frozen=True, slots=True)
class Finding:
    """``on`` None: not long enough to say, so nothing changes."""

    on: bool | None
    reason: str = ""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. ``still``: how long nothing may be settled; ``slowest``: how long a session may wait for its peer."""

    still: float
    slowest: float


class Progress:
    """What one maintenance process has seen; pure, times are the server's ms."""

    def __init__(self) -> None:
        self._settled_at = 0  # last settle that was seen
        self._stuck_since: int | None = None
        self._busy_since: int | None = None  # workers have had mail in their hands ever since, and settled none
        self._began = 0

    def quiet(self, now: int) -> float:
        """Seconds without a settle, at most since this process has been watching."""
        return (now - max(self._settled_at, self._began or now)) / 1000

    def settled(self, at: int) -> None:
        """A result was written."""
        self._settled_at = max(self._settled_at, at)
        self._stuck_since = self._busy_since = None

    def judge(self, backlog: Backlog, free: Sequence[Overdue], patience: Patience) -> Finding:
        """``free``: the rows of the backlog that no limit excuses."""
        now = backlog.now
        self._began = self._began or now
        self._busy_since = (self._busy_since or now) if backlog.in_hands else None
        hanging = self._busy_since is not None and now - self._busy_since >= 1000 * (patience.still + patience.slowest)
        if not free and not hanging:
            self._stuck_since = None
            return Finding(False)
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since < 1000 * patience.still and not hanging:
            return Finding(None)
        return Finding(True, self._why(backlog, free), len(free) or backlog.in_hands)

    def _why(self, backlog: Backlog, free: Sequence[Overdue]) -> str:
        last = f"nothing was settled since {clock(self._settled_at)}" if self._settled_at else "nothing is settled"
        hands = f"workers have {backlog.in_hands} in their hands"
        if not free:
            return f"{hands}; {last}"
        first = min(free, key=lambda row: row.since)
        others = f" and {len(free) - 1} more" if len(free) > 1 else ""
        what = f"{first.destination} ({first.group}, {first.class_}){others}, due since {clock(first.since)}"
        return f"{what}; {last}; {hands}"


def clock(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(ms / 1000))


class Excuses:
    """Whether limits have room for what is overdue, by the configuration in force."""

    def __init__(
        self, settings: Settings, providers: Providers, routes: Routes, stops: Mapping[str, tuple[int, str]]
    ) -> None:
        """``stops``: key → until (ms, 0 = until resumed) and why; of them the sources count here."""
        self._pools = pools_of(settings.delivery)
        self._providers = providers
        self._routes = routes
        self._stops = stops

    async def free(self, command: Command, backlog: Backlog, quiet: float, patience: Patience) -> list[Overdue]:
        """The rows that could be sent now: some source has room, or has been full for so long that it is no excuse.

        Which hosts mail of the default rule goes to, only DNS knows, so its limits cannot be looked up: a worker that
        tends it may be waiting for a slow host."""
        found: list[Overdue] = []
        tended: list[Overdue] = []
        known: dict[tuple[str, str], bool] = {}
        for row in backlog.rows:
            site = row.group if row.group.startswith(PREFIX) or not row.pool.startswith(PREFIX) else row.pool
            rule = self._routes.rule(site) or self._providers.named(site)
            if not rule.roll_up:
                if self._sources(row.pool, backlog.now):
                    (tended if row.tended and quiet <= patience.still + patience.slowest else found).append(row)
                continue
            key = (site, row.pool)
            if key not in known:
                known[key] = await self._room(command, rule, site, row.pool, backlog.now, quiet, patience)
            if known[key]:
                found.append(row)
        if len({row.destination for row in tended}) > FEW_TARPITS:
            found += tended
        return found

    async def _room(
        self, command: Command, rule: ProviderRule, site: str, pool: str, now: int, quiet: float, patience: Patience
    ) -> bool:
        for source in self._sources(pool if not site.startswith(PREFIX) else site, now):
            standing = await standings(command, limits_for(rule, site, source), now / 1000)
            if all(_no_excuse(limit, quiet, patience) for limit in standing):
                return True
        return False

    def _sources(self, pool: str, now: int) -> list[str]:
        """Addresses that may send now."""
        smarthost = self._routes.named(pool)
        if smarthost is not None:
            pool = smarthost.settings.pool
        sources = self._pools.get(pool) or next(iter(self._pools.values()))
        stopped = {
            key.removeprefix("source:")
            for key, (until, _) in self._stops.items()
            if key.startswith("source:") and (until == 0 or until > now)
        }
        return [source.address for source in sources if source.weight > 0 and source.address not in stopped]


def _no_excuse(limit: Standing, quiet: float, patience: Patience) -> bool:
    if not limit.binds:
        return True
    lasting = patience.slowest if limit.kind == "connections" else limit.refill
    return quiet > patience.still + lasting
