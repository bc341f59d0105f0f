"""Tables of ``relayctl sandbox`` for a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from relayctl.plain import plain
from sandbox.scenario import Scenario, TimelineEntry

_REPLY_SHOWN = 100
_SOURCES_SHOWN = 20


def _console() -> Console:
    return Console(width=None if os.isatty(1) else 400, highlight=False)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def behaviours(found: Mapping[str, Mapping[str, str]]) -> None:
    for title, column in (("behaviours", "Behaviours"), ("shapes", "Shapes of what comes back")):
        table = _table(column, "name", "what it does")
        for name, what in found[title].items():
            table.add_row(Text(name), Text(what))
        _console().print(table)


def mails(found: Sequence[Mapping[str, Any]]) -> None:
    table = _table("", "id", "came", "to", "subject", "from source", "spf", "dkim", "dmarc")
    for mail in found:
        came = time.strftime("%H:%M:%S", time.localtime(mail["at"]))
        to = ", ".join(mail["recipients"])
        words = (mail["id"], came, to, mail["subject"], mail["source"], mail["spf"], mail["dkim"], mail["dmarc"])
        table.add_row(*(Text(plain(word)) for word in words))
    _console().print(table)


def report(found: Mapping[str, Any]) -> None:
    console = _console()
    console.print(f"{found['messages']} messages taken, {found['open']} connections open; ledger {found['ledger']}")
    console.print(_domains(found))
    for title, key, columns in (
        ("What was said", "replies", ("domain", "times", "reply")),
        ("What came back", "returned", ("shape", "times", "the relay's reply")),
    ):
        if found[key]:
            console.print(_counts(title, columns, found[key]))
    if found["verdicts"]:
        console.print(_verdicts(found["verdicts"]))
    if found["violation_counts"]:
        broken = _table("Limits and rules broken", "times", "which")
        for name, times in sorted(found["violation_counts"].items()):
            broken.add_row(str(times), Text(name))
        console.print(broken)
    if found["limits"]:
        console.print(_standing(found["limits"]))
    for name, mode in sorted(found["dns"].items()):
        console.print(f"dns {name or 'of all names'}: {mode}")


def _domains(found: Mapping[str, Any]) -> Table:
    table = _table("Domains", "domain", "taken", "from sources", "refused", "behaves")
    for name in sorted({*found["accepted"], *found["refused"], *found["behaviours"]}):
        taken, refused = found["accepted"].get(name, {}), found["refused"].get(name, {})
        moods = found["behaviours"].get(name, {"": "accept"})
        if not taken and not refused and moods == found["planned"].get(name):
            continue
        codes = " ".join(f"{code}×{times}" for code, times in refused.items())
        mood = ", ".join(f"{mood} ({source})" if source else mood for source, mood in moods.items())
        table.add_row(Text(name), str(sum(taken.values())), str(len(taken)), Text(codes), Text(mood))
    return table


def _counts(title: str, columns: Sequence[str], tree: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table(title, *columns)
    for outer, inner in tree.items():
        for text, times in inner.items():
            line = " ".join(text.split("\n"))
            short = line if len(line) <= _REPLY_SHOWN else line[: _REPLY_SHOWN - 1] + "…"
            table.add_row(Text(outer), str(times), Text(short))
    return table


def _verdicts(tree: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("What receivers found", "domain", "spf", "dkim", "dmarc")
    for domain, counts in tree.items():
        words = {name: " ".join(_times(counts, name)) for name in ("spf", "dkim", "dmarc")}
        table.add_row(Text(domain), *map(Text, words.values()))
    return table


def _times(counts: Mapping[str, int], method: str) -> list[str]:
    return [f"{key.partition('=')[2]}×{times}" for key, times in counts.items() if key.startswith(f"{method}=")]


def _standing(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a site, and one for each of the sources whose limits have shrunk."""
    table = _table("Sources at sites that count", "site", "source", "today", "days", "unknown of asked", "limits left")
    for site in dict.fromkeys(row["site"] for row in rows):
        own = [row for row in rows if row["site"] == site]
        shrunk = sorted((row for row in own if row["factor"] < 1), key=lambda row: float(row["factor"]))
        asked, unknown = sum(row["asked"] for row in own), sum(row["unknown"] for row in own)
        table.add_row(
            site, f"{len(own)} sources", _span(own, "today"), _span(own, "days"), f"{unknown}/{asked}", _left(shrunk)
        )
        for row in shrunk[:_SOURCES_SHOWN]:
            counts = (str(row["today"]), str(row["days"]), f"{row['unknown']}/{row['asked']}")
            table.add_row("", row["source"], *counts, f"{row['factor']:.0%}")
    return table


def _span(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    least, most = min(row[key] for row in rows), max(row[key] for row in rows)
    return str(most) if least == most else f"{least}–{most}"


def _left(shrunk: Sequence[Mapping[str, Any]]) -> str:
    return f"shrunk for {len(shrunk)}" if shrunk else "100%"


def scenarios(found: Mapping[str, str]) -> None:
    table = _table("", "name", "what happens")
    for name, title in found.items():
        table.add_row(Text(name), Text(title))
    _console().print(table)


def scenario(plan: Scenario) -> None:
    console = _console()
    console.print(Text(plan.title, style="bold"), soft_wrap=True)
    console.print(Text(plan.play.strip()), soft_wrap=True)
    table = _table("", "after", "for", "what", "")
    for entry in sorted(plan.timeline, key=lambda entry: entry.after_seconds):
        lasts = f"{entry.for_seconds:g} s" if entry.for_seconds is not None else ""
        table.add_row(f"{entry.after_seconds:g} s", lasts, Text(_change(entry)), Text(entry.say))
    if plan.timeline:
        console.print(table)


def _change(entry: TimelineEntry) -> str:
    parts = [f"dns {entry.domain or 'of all names'} {entry.dns}"] if entry.dns else []
    if entry.set:
        whom = f" for {', '.join(entry.sources)}" if entry.sources else ""
        share = f" {entry.share:.0%}" if entry.share != 1 else ""
        parts.append(f"{entry.domain} {entry.set}{share}{whom}")
    return ", ".join(parts)
