"""From facts to what an operator reads: why a recipient is not delivered, what binds, when it is tried next. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipreputation.inspect import Standing, binding
from mailqueue.events import Event
from mailqueue.selection import DEFERRED, HELD, LEASED
from mailqueue.stopped import ROUTE, Stop
from relayctl.explain_facts import Facts, SourceFacts
from relayctl.sheets import clock
from relayctl.spans import spelled

REPLIES = 3
_GREY = ("greylist", "graylist", "grey list", "postgrey")
_KIND = {"connections": "connections open", "opening": "new connections", "messages": "messages"}


@dataclass(frozen=True, slots=True)
class Reason:
    """``code`` for programs: held · leased · suspended · no-worker · dns · no-source · over-limit · greylisted · deferred ·
    opening · turn · due."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """``next_at`` Unix ms, 0 = nobody can say; ``waits_for``: what the next attempt waits for."""

    reasons: tuple[Reason, ...]
    next_at: int
    waits_for: str
    limit: Standing | None
    source: str

    def plain(self, facts: Facts) -> dict[str, Any]:
        limit = self.limit
        return {
            "why": [{"code": reason.code, "text": reason.text} for reason in self.reasons],
            "next_at": self.next_at,
            "waits_for": self.waits_for,
            "limit": limit and _plain(limit),
            "limits": [_plain(one) for source in facts.sources for one in source.limits],
            "source": self.source,
            "pool": facts.pool,
            "replies": [reply(event) for event in replies(facts.history)],
        }


def _plain(one: Standing) -> dict[str, Any]:
    """``rate``: so many in so many seconds, none for connections; ``wait`` seconds until one more fits, at the latest."""
    facts = {name: getattr(one, name) for name in ("name", "kind", "used", "most", "wait")}
    return facts | ({"rate": one.rate} if one.rate[0] else {})


def explained(facts: Facts) -> Explained:
    """The first reason is the one that binds longest; the others hold, too."""
    limit = None if facts.row.place in (HELD, LEASED) else bound(facts.sources)
    found = list(_reasons(facts, limit))
    next_at, waits_for = _next(facts, found, limit)
    return Explained(tuple(found), next_at, waits_for, limit, _source(facts))


def _reasons(facts: Facts, limit: Standing | None) -> Iterator[Reason]:
    entry, row, now = facts.row.entry, facts.row, facts.now
    if row.place == HELD:
        since, who, why = entry.held
        yield Reason("held", f"held{_since(since)} by {who or 'the relay itself'}: {why or 'no reason is kept'}")
    if row.place == LEASED:
        yield _leased(facts)
    yield from (Reason("suspended", _suspended(stop, entry.destination, now)) for stop in facts.stops)
    if row.place in (HELD, LEASED):
        return
    if not any(worker.left > 0 for worker in facts.workers):
        yield Reason("no-worker", _no_worker(facts))
    if facts.route is not None and facts.route.failure is not None and not entry.destination.startswith("["):
        failure = facts.route.failure
        wait = "" if failure.permanent else "; what is due for it waits and is tried again"
        yield Reason("dns", f"{entry.destination} has no next hop now: {failure.status} {failure.text}{wait}")
    if not any(source.usable for source in facts.sources):
        yield Reason("no-source", _no_source(facts))
    if row.place == DEFERRED and entry.due > now:
        yield _deferred(facts)
    elif entry.due > now:
        yield Reason("deferred", f"due at {clock(entry.due)}, not attempted yet")
    waits = entry.due <= now and not facts.stops
    if waits and facts.opening:
        yield _opening(facts)
    if limit is not None:
        yield Reason("over-limit", _over_limit(facts, limit))
    elif waits and not facts.opening:
        yield _waiting(facts)


def _leased(facts: Facts) -> Reason:
    entry, holder = facts.row.entry, facts.holder
    since = _since(entry.leased_at)
    if holder is None or holder.left <= 0:
        name = holder.name if holder else "a worker"
        text = f"in the hands of {name}{since}, whose lease has ended: maintenance puts it back within seconds"
        return Reason("leased", text)
    text = f"being delivered now: {holder.name} has it{since}; its lease lasts another {spelled(holder.left)}"
    return Reason("leased", text)


def _suspended(stop: Stop, destination: str, now: int) -> str:
    kind, _, name = stop.key.partition(":")
    until = f"until {clock(stop.until)} (in {spelled((stop.until - now) / 1000)})" if stop.until else "until resumed"
    by = "by the relay, which cannot reach it" if stop.by_relay else "by an operator"
    end = "" if stop.by_relay else f"; `relayctl queue resume {stop.key} --reason …` ends it"
    return f"{kind} {name} is suspended {by}, {until}: {stop.reason or 'no reason given'}{end}"


def _no_worker(facts: Facts) -> str:
    roles = sorted({process.role for process in facts.processes if process.role != "delivery"})
    alive = f" (running: {', '.join(roles)})" if roles else ""
    return f"no delivery process has a lease on this queue{alive}: nothing is sent until one runs"


def _no_source(facts: Facts) -> str:
    halted = [source for source in facts.sources if source.stop is not None]
    if halted and all(source.stop or source.source.weight == 0 for source in facts.sources):
        stop = halted[0].stop
        assert stop is not None
        until = f"until {clock(stop.until)}" if stop.until else "until resumed"
        return f"every source of pool {facts.pool} is stopped: {stop.key} {until}: {stop.reason}"
    resting = [source for source in facts.sources if source.rests]
    if resting:
        names = ", ".join(source.source.address or "any" for source in resting[:8])
        soonest = spelled(min(source.rests for source in resting))
        return (
            f"sources of pool {facts.pool} were refused there and rest: {names}; the first is tried again in {soonest}"
        )
    return f"no source of pool {facts.pool} may send there: turned off, stopped, or of another address family"


def _deferred(facts: Facts) -> Reason:
    state, due = facts.row.state, facts.row.entry.due
    grey = any(word in state.reply.lower() for word in _GREY)
    tries = f"{state.attempts} attempt{'s' * (state.attempts != 1)}"
    wait = spelled((due - facts.now) / 1000)
    theirs = "put off by the other side" if state.reply[:3].isdigit() else "not reached"
    what = "greylisted: they want it again later" if grey else theirs
    text = f"{what}. After {tries} the last reply was: {state.reply or '–'}. Due at {clock(due)}, in {wait}"
    return Reason("greylisted" if grey else "deferred", text)


def _over_limit(facts: Facts, limit: Standing) -> str:
    blocked = sum(1 for source in facts.sources if source.usable)
    who = "its only usable source is" if blocked == 1 else f"all {blocked} usable sources are"
    some = ": " if blocked == 1 else "; of them the first to have room: "
    text = f"over a limit: {who} at what {facts.rule.name} takes{some}{limit_text(limit)}"
    if wait := _behind(facts, limit):
        text += f"; {facts.ahead:,} are before it in its queue, which is another {spelled(wait)} at {rate_text(limit)}"
    return text


def _behind(facts: Facts, limit: Standing) -> float:
    """Seconds that those before it take at this pace, as far as it is theirs alone."""
    count, seconds = limit.rate
    return facts.ahead * seconds / count if limit.kind == "messages" and count else 0.0


def _opening(facts: Facts) -> Reason:
    since = spelled((facts.now - facts.row.entry.due) / 1000)
    others = f"; {len(facts.opening)} sessions are being opened there" if len(facts.opening) > 1 else ""
    return Reason("opening", f"due for {since}: delivery waits {facts.opening[0]}{others}")


def _waiting(facts: Facts) -> Reason:
    since = spelled((facts.now - facts.row.entry.due) / 1000)
    ahead = f"; {facts.ahead:,} of its queue were due before it" if facts.ahead else ""
    if facts.turn_until:
        text = (
            f"due for {since}: a delivery process has its destination's turn and waits for a session or a limit{ahead}"
        )
        return Reason("turn", text)
    return Reason("due", f"due for {since}, waits for its turn{ahead}")


# ── next attempt ───────────────────────────────────────────────────────────────────────────────────────────────────


def _next(facts: Facts, reasons: Sequence[Reason], limit: Standing | None) -> tuple[int, str]:
    row, now = facts.row, facts.now
    codes = [reason.code for reason in reasons]
    if row.place == HELD:
        return 0, f"release: `relayctl queue release {row.entry.id} --reason …`"
    if row.place == LEASED:
        return row.entry.leased_at or now, "nothing: it is under way"
    endless = [stop for stop in facts.stops if not stop.until]
    if endless:
        return 0, f"resume: `relayctl queue resume {endless[0].key} --reason …`"
    if "no-worker" in codes:
        return 0, "a delivery process"
    if "no-source" in codes:
        rests = [source.rests for source in facts.sources if source.rests]
        return (
            (now + min(rests) * 1000, "a source to be tried again") if rests else (0, f"a source of pool {facts.pool}")
        )
    times = {row.entry.due: "its time of retry", **{stop.until: f"the end of {stop.key}" for stop in facts.stops}}
    if limit is not None and limit.kind != "connections":
        times[now + round((limit.wait + _behind(facts, limit)) * 1000)] = f"room under {limit.name}"
    at = max(times)
    if limit is not None and limit.kind == "connections" and at <= now:
        return 0, f"a connection to end: {limit_text(limit)}"
    if at <= now and "opening" in codes:
        again = [one.again for one in facts.opening if one.again >= 0]
        return (now + min(again) * 1000, "a session: one more is tried then") if again else (now, "a session")
    return (at, times[at]) if at > now else (now, "its turn")


def bound(sources: Sequence[SourceFacts]) -> Standing | None:
    """What holds the source that is free soonest; None when one of them may go now, or nothing is known."""
    usable = [source.limits for source in sources if source.usable]
    if not usable or not all(usable):
        return None
    holds = [binding(limits) for limits in usable]
    if any(one is None for one in holds):
        return None
    return min((one for one in holds if one is not None), key=lambda one: one.patience)


def limit_text(limit: Standing) -> str:
    if limit.kind == "connections":
        return f"{limit.used} of {limit.most} connections open ({limit.name}): one more fits when one of them ends"
    wait = spelled(limit.wait) if limit.wait >= 1 else f"{limit.wait * 1000:.0f} ms"
    return f"{rate_text(limit)} {_KIND[limit.kind]} ({limit.name}): one more fits in {wait}"


def rate_text(limit: Standing) -> str:
    """ "1,000/h", as configured: the period without its guard."""
    count, seconds = limit.rate
    if not count:
        return ""
    size = round(seconds)
    unit = {1: "s", 60: "min", 3600: "h", 86400: "d"}.get(size, f"{size} s")
    return f"{count:,}/{unit}"


def _source(facts: Facts) -> str:
    """Which one, and why that one."""
    entry, state = facts.row.entry, facts.row.state
    if facts.route is not None and facts.route.by_smarthost:
        how = "its recipient domain" if not facts.route.by_pool else "its sender"
        way = f"by smarthost {facts.route.site.removeprefix(ROUTE)}, because of {how}; "
    else:
        way = ""
    free = [one for one in facts.sources if one.usable and not any(limit.binds for limit in one.limits)]
    usable = [one for one in facts.sources if one.usable]
    names = ", ".join(one.source.address or "any" for one in (free or usable)[:8])
    more = f" and {len(free or usable) - 8} more" if len(free or usable) > 8 else ""
    why = f"{way}pool {facts.pool} ({'its account has it' if entry.flow.pool == facts.pool else f'for {entry.flow.pool}'})"
    if not usable:
        why += ": none of its sources may send"
    elif len(facts.sources) == 1:
        why += f": its only source {names}"
    else:
        which = "free now" if free else "usable, none free now"
        why += f": {which} {names}{more}; the one with the fewest sessions there, then the least sent for its weight"
    resting = [f"{one.source.address} ({spelled(one.rests)})" for one in facts.sources if one.rests]
    why += f"; refused there and resting: {', '.join(resting[:8])}" if resting else ""
    return why + (f"; last time from {state.source}" if state.source else "")


# ── what was said ──────────────────────────────────────────────────────────────────────────────────────────────────


def replies(history: Sequence[Event]) -> list[Event]:
    """The last three attempts or refusals, the newest first."""
    said = [event for event in history if event.diagnostic_code or event.kind in ("delivered", "unknown")]
    return said[: -REPLIES - 1 : -1]


def reply(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "kind": event.kind,
        "attempt": event.attempt,
        "text": event.diagnostic_code,
        "source": event.source,
        "remote_mta": event.remote_mta,
        "next_at": event.next_at,
    }


def _since(ms: int) -> str:
    return f" since {clock(ms)}" if ms else ""
