"""Tables of the queue's facts for a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mailqueue.inspect import ItemFacts, Summary
from mailqueue.message import Envelope
from mailqueue.stopped import Stop


def summary(console: Console, facts: Summary, now: float, destinations: Sequence[Stop] = ()) -> None:
    """``now`` in Unix seconds."""
    counts = {
        "recipients open": facts.open,
        "messages": facts.messages,
        "in flight": facts.in_flight,
        "held": facts.held,
        "DSNs due": facts.notices,
        "suspended": len(facts.stops) + facts.suspended,
        "workers": len(facts.workers),
        "events kept": facts.events,
    }
    console.print(Text(" · ".join(f"{name} {count}" for name, count in counts.items())), soft_wrap=True)
    flows = _table("flow", "class", "account", "campaign", "pool", "open", "done", "age")
    for flow in sorted(facts.flows, key=lambda flow: -flow.open):
        names = (flow.id, flow.class_, flow.account, flow.campaign or "–", flow.pool)
        flows.add_row(*map(Text, names), str(flow.open), str(flow.done), age(now - flow.since / 1000))
    lanes = _table("lane", "flows")
    for lane, size in sorted(facts.lanes.items()):
        lanes.add_row(Text(lane), str(size))
    stops = _table("suspended", "until", "by", "reason")
    for key, value in sorted(facts.stops.items()):
        _add_stop(stops, Stop.read(key, value.encode()))
    for stop in sorted(destinations, key=lambda stop: (stop.by_relay, stop.key)):
        _add_stop(stops, stop)
    workers = _table("worker", "lease ends in")
    for name, left in sorted(facts.workers.items()):
        workers.add_row(Text(name), f"{left:.0f} s")
    for table in (flows, lanes, stops, workers):
        if table.row_count:
            console.print()
            console.print(table)


def _add_stop(table: Table, stop: Stop) -> None:
    until = clock(stop.until) if stop.until else "resumed"
    table.add_row(Text(stop.key), until, "relay" if stop.by_relay else "operator", Text(stop.reason))


def message(console: Console, envelope: Envelope, items: Sequence[ItemFacts]) -> None:
    rows = {
        "id": envelope.id,
        "account": envelope.account,
        "campaign": envelope.campaign or "–",
        "class, pool": f"{envelope.class_}, {envelope.pool}",
        "reverse-path": f"<{envelope.reverse_path}>",
        "received": clock(envelope.received_at),
        "expires": clock(envelope.expires_at),
        "metadata": str(dict(envelope.metadata)) if envelope.metadata else "–",
    }
    head = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        head.add_row(Text(name, style="bold"), Text(value))
    console.print(head)
    console.print()
    table = _table("", "recipient", "where", "due", "attempts", "last reply")
    for item in items:
        due = clock(item.due) if item.due else "–"
        state = item.state
        table.add_row(str(item.index), Text(item.recipient), item.place, due, str(state.attempts), Text(state.reply))
    console.print(table)


def clock(ms: int) -> str:
    """Unix milliseconds in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


def age(seconds: float) -> str:
    """In the largest unit of which there is one: "3 d", "5 h", "2 min", "12 s"."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)
