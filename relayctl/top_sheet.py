"""What ``relayctl top`` looks like."""

from __future__ import annotations

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from relayctl.overview import ACCEPTED, BOUNCED, DEFERRED, DELIVERED, Overview, Progress, by
from relayctl.spans import moment, spelled

CLASSES = ("emergency", "transactional", "bulk")


def sheet(seen: Overview, most: int) -> RenderableType:
    """``most``: rows of each table."""
    parts: list[RenderableType] = [*_warnings(seen), _rates(seen), _backlog(seen.backlog), _counts(seen), Text()]
    parts.append(Columns([_providers(seen, most), _accounts(seen, most)], padding=(0, 6)))
    for table in (_flows(seen, most), _sources(seen, most), _processes(seen), _stops(seen, most)):
        if table.row_count:
            parts += [Text(), table]
    return Group(*parts)


def _warnings(seen: Overview) -> list[Text]:
    lines = [
        Text(f"ALARM {one.name} since {moment(one.since / 1000)}: {one.reason}", "bold red") for one in seen.alarms
    ]
    if seen.intake:
        lines.append(
            Text(f"intake is stopped since {moment(seen.intake.since / 1000)}: {seen.intake.reason}", "bold yellow")
        )
    lines += [Text(seen.marks.text(mark), "bold red") for mark in seen.marks.reached]
    digests: dict[str, set[str]] = {}
    for one in seen.processes:
        digests.setdefault(one.host, set()).add(one.digest)
    lines += [
        Text(f"processes of {host} have different configurations", "bold yellow")
        for host, found in digests.items()
        if len(found) > 1
    ]
    if not any(one.role == "delivery" for one in seen.processes):
        lines.append(Text("no delivery process runs", "bold red"))
    return lines


def _rates(seen: Overview) -> Table:
    table = Table("", *("accepted/s", "delivered/s", "deferred/s", "bounced/s"), box=None, pad_edge=False)
    for which, name in enumerate(("10 s", "5 min")):
        rates = (seen.rates.get(kind, (0.0, 0.0))[which] for kind in (ACCEPTED, DELIVERED, DEFERRED, BOUNCED))
        table.add_row(name, *(f"{rate:,.1f}" for rate in rates))
    _right(table, 1)
    return table


def _backlog(whole: Progress) -> Text:
    if not whole.open:
        return Text("backlog 0")
    begun = f"backlog {whole.open:,} recipients, the oldest since {moment(whole.since)} ({spelled(whole.elapsed)})"
    return Text(f"{begun}; {whole.rate:,.1f}/s; {_eta(whole)}")


def _eta(one: Progress) -> str:
    if one.eta is None:
        return "no end in sight"
    return f"done in {spelled(one.open / one.rate)}, {moment(one.eta)}" if one.open else "done"


def _counts(seen: Overview) -> Text:
    marks, facts = seen.marks, seen.summary
    words = [f"{facts.messages:,} messages", f"{facts.in_flight:,} in flight", f"{facts.held:,} held"]
    words.append(f"{facts.suspended + len(facts.stops):,} suspensions")
    if marks.memory_limit:
        words.append(
            f"memory {_mib(marks.memory_used)} of {_mib(marks.memory_limit)} MiB, mark {_mib(marks.memory_mark)}"
        )
    if marks.disk_free is not None:
        words.append(f"disk {_mib(marks.disk_free)} MiB free, mark {_mib(marks.disk_mark)}")
    return Text(" · ".join(words))


def _providers(seen: Overview, most: int) -> Table:
    table = Table("provider", *CLASSES, "delivered/s", box=None, pad_edge=False)
    names = sorted(
        seen.queued.keys() | seen.delivering.keys(), key=lambda name: -sum(seen.queued.get(name, {}).values())
    )
    for name in names[:most]:
        counts = seen.queued.get(name, {})
        cells = (f"{counts.get(class_, 0):,}" for class_ in CLASSES)
        table.add_row(Text(name), *cells, f"{seen.delivering.get(name, 0.0):,.1f}")
    _right(table, 1)
    return table


def _accounts(seen: Overview, most: int) -> Table:
    table = Table("account", "open", box=None, pad_edge=False)
    for name, count in list(by(seen, "account").items())[:most]:
        table.add_row(Text(name), f"{count:,}")
    _right(table, 1)
    return table


def _flows(seen: Overview, most: int) -> Table:
    table = Table(
        "campaign", "account", "class", "open", "done", "start", "elapsed", "rate/s", "end", box=None, pad_edge=False
    )
    for flow, one in seen.flows[:most]:
        end = _eta(one) if one.rate or one.eta is None else "–"
        words = (flow.campaign or "–", flow.account, flow.class_)
        numbers = (f"{one.open:,}", f"{one.done:,}", moment(one.since), spelled(one.elapsed), f"{one.rate:,.1f}", end)
        table.add_row(*map(Text, words), *numbers)
    return table


def _sources(seen: Overview, most: int) -> Table:
    table = Table("source", "sessions", "delivered/s", "", box=None, pad_edge=False)
    for one in seen.sources[:most]:
        state = (
            f"suspended: {one.suspended}" if one.suspended else f"rests at {one.resting} sites" if one.resting else ""
        )
        table.add_row(Text(one.address), str(one.sessions), f"{one.rate:,.1f}", Text(state, "yellow"))
    if len(seen.sources) > most:
        table.add_row(Text(f"… {len(seen.sources) - most} more", "dim"))
    return table


def _processes(seen: Overview) -> Table:
    table = Table("process", "instance", "version", "generation", "sessions", "lease", "", box=None, pad_edge=False)
    for one in seen.processes:
        lease = _lease(seen.summary.workers, one.name)
        trouble = one.trouble or ("; ".join(("restart for", *one.restart)) if one.restart else "")
        table.add_row(
            Text(one.name),
            one.instance,
            one.version,
            f"{one.generation} {one.digest[:6]}",
            str(one.live.get("sessions", "–")),
            lease,
            Text(trouble, "yellow"),
        )
    return table


def _lease(workers: dict[str, float], name: str) -> str:
    """The shortest of the process's leases, one a shard."""
    left = [seconds for worker, seconds in workers.items() if worker.startswith(f"{name} ")]
    return f"{min(left):.0f} s" if left else "–"


def _stops(seen: Overview, most: int) -> Table:
    table = Table("suspended", "until", "by", "why", box=None, pad_edge=False)
    for stop in sorted(seen.stops, key=lambda stop: (stop.by_relay, stop.key))[:most]:
        until = moment(stop.until / 1000) if stop.until else "resumed"
        table.add_row(Text(stop.key), until, "relay" if stop.by_relay else "operator", Text(stop.reason))
    if (more := seen.summary.suspended + len(seen.summary.stops) - most) > 0:
        table.add_row(Text(f"… {more:,} more", "dim"), "", "", "")
    return table


def _mib(count: int) -> str:
    return f"{count // (1024 * 1024):,}"


def _right(table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"
