"""What ``relayctl dkim`` prints, with what is to be done next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from relayctl import sheets
from relayctl.dkim_records import Verdict
from signing import record
from signing.keys import Held

RELOAD = "Then send SIGHUP to relayd and maintenance: they read their keys at start and then."


def console() -> Console:
    """Wide where nobody looks, so that a pipe gets whole lines."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=400)


def listed(held: Sequence[Held], now: float) -> None:
    table = Table("domain", "selector", "algorithm", "state", "signs since", "next", box=None, pad_edge=False)
    for one in held:
        key, state = one.key, one.state(now)
        since = sheets.clock(int(key.since * 1000)) if 0 < key.since < float("inf") else "–"
        style = {"signing": "green", "ready": "yellow", "removable": "yellow"}.get(state, "")
        cells = (key.domain, key.selector, key.algorithm, Text(state, style=style), since, next_step(one, now))
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    console().print(table if held else Text("No keys yet: relayctl dkim generate DOMAIN"))


def next_step(held: Held, now: float) -> str:
    domain = held.key.domain
    match held.state(now):
        case "ready":
            return f"publish (relayctl dkim show {domain}), then relayctl dkim rotate {domain}"
        case "retired":
            return f"leave its record until {sheets.clock(int((held.keep or 0) * 1000))}"
        case "removable":
            return f"remove the record {held.key.name} and the file {held.path}"
        case _:
            return "–"


def records(held: Sequence[Held], now: float) -> None:
    """Zone file lines, to be pasted as they are: what is said beside them is a comment there."""
    out = console()
    for one in held:
        note = "may be removed" if one.state(now) == "removable" else one.state(now)
        out.print(Text(f"; {one.key.name}: {one.key.algorithm}, {note}", style="dim"), soft_wrap=True)
        if one.state(now) != "removable":
            out.print(Text(record.zone_line(one.key)), soft_wrap=True)


def made(held: Sequence[Held], now: float) -> None:
    out = console()
    records(held, now)
    domain = held[0].key.domain
    out.print()
    for one in held:
        out.print(Text(f"{one.path}: mode 0600; keep a copy where the other secrets are"), soft_wrap=True)
    if held[0].state(now) == "signing":
        steps = [
            f"Publish the records above at once: mail is signed by them. Check: relayctl dkim test {domain}",
            RELOAD,
        ]
    else:
        steps = [
            "1. Publish the records above.",
            f"2. See that they are there: relayctl dkim test {domain}",
            f"3. Let the keys sign: relayctl dkim rotate {domain}",
        ]
    for step in steps:
        out.print(Text(step), soft_wrap=True)


def begun(held: Sequence[Held], overlap: float) -> None:
    out = console()
    for one in held:
        out.print(Text(f"{one.key.name} signs from now on.", style="green"), soft_wrap=True)
    out.print(Text(RELOAD), soft_wrap=True)
    days = f"{overlap / 86_400:g}"
    out.print(
        Text(f"Leave the records of the keys before for {days} days; `relayctl dkim list` says when they may go.")
    )


def verdicts(found: Sequence[Verdict]) -> None:
    table = Table("selector", "algorithm", "state", "verdict", box=None, pad_edge=False)
    for one in found:
        lines = [*(Text(text, style="red") for text in one.problems), *(Text(text, "yellow") for text in one.warnings)]
        verdict = Text("\n").join(lines) if lines else Text("good", style="green")
        table.add_row(Text(one.selector), one.algorithm, one.state, verdict)
    console().print(table)


def return_path_key(path: Path, count: int) -> None:
    out = console()
    out.print(Text(f"{path}: mode 0600, {count} {'key' if count == 1 else 'keys'}; the first makes return paths"))
    if count > 1:
        out.print(Text("Leave the older ones as long as bounces may come (14 days), then remove their lines."))
    out.print(Text("Every process that makes or reads return paths must have the same file; then reload them."))
