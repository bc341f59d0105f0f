"""``relayctl archive list | verify | export | accept-loss``."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mailqueue.queue import Queue
from relayctl.audit import audited
from relayctl.config import PathOption, load_or_exit
from relayctl.periods import DateOption, SinceOption, UntilOption, period
from relayctl.queue import JsonOption, on_queue, print_json, said
from streams import holes, ids, inspection
from streams.archive import Archive, Segment
from streams.connect import archive_of
from streams.history import END
from streams.holes import Hole
from streams.inspection import Facts
from streams.segment import SegmentDamaged

app = typer.Typer(no_args_is_help=True)


@app.callback()
def archive() -> None:
    """What has happened, as it lies on disk."""


@app.command("list")
def list_(
    since: SinceOption = "",
    until: UntilOption = "",
    date: DateOption = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Segments, by shard and day (UTC): size, events, first and last stream id."""
    segments = _segments(_archive(config), period(since, until, date))
    try:
        found = [inspection.facts(one) for one in segments]
    except (OSError, SegmentDamaged) as error:
        raise _unreadable(error) from None
    if json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        _print(found)


@app.command()
def verify(
    since: SinceOption = "",
    until: UntilOption = "",
    date: DateOption = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Read every batch and check it, and every index; exit 1 when something is wrong."""
    there = _archive(config)
    last = {one.shard: one for one in there.segments()}
    report = []
    segments = _segments(there, period(since, until, date))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("verifying", total=sum(one.path.stat().st_size for one in segments))
        for one in segments:
            try:
                events, wrong = inspection.verify(one, last=last[one.shard] == one)
            except OSError as error:
                events, wrong = 0, [str(error)]
            report.append({"segment": one.path.name, "events": events, "wrong": wrong})
            progress.advance(task, one.path.stat().st_size)
    _say(report, json=json)


@app.command("accept-loss")
def accept_loss(
    reason: Annotated[str, typer.Option(help="Why; it stands in the audit event.")],
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Let archiving go on though the archive lacks what was archived before; exit 1 when it lacks nothing. Consumers that
    stand before the hole read on behind it."""
    there, why, found = _archive(config), said(reason), list[Hole]()

    async def work(queue: Queue) -> None:
        found.extend(await holes.holes(queue.shards, there))
        if found:
            before = [dataclasses.asdict(one) for one in found]
            event = audited("archive accept-loss", str(there.directory), why, before)
            await holes.accept(queue.shards[0], found, event)

    try:
        on_queue(load_or_exit(config), work)
    except OSError as error:
        raise _unreadable(error) from None
    if json:
        print_json([dataclasses.asdict(one) for one in found])
    for one in found if not json else ():
        typer.echo(f"given up: {one.text}")
    if not found:
        typer.echo("the archive has all that was archived: nothing to accept", err=True)
        raise typer.Exit(1)


@app.command()
def export(since: SinceOption = "", until: UntilOption = "", date: DateOption = "", config: PathOption = None) -> None:
    """Print archived events, a JSON object a line with its `stream_id`, in order; exit 1 when some can't be read."""
    first, last = period(since, until, date)
    damages: list[str] = []
    found = inspection.lines(_archive(config), (first, 0), (last, ids.LAST_NUMBER) if last else END, damages.append)
    try:
        for line in found:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever reads has enough; what Python would still flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        raise _unreadable(error) from None
    for damage in damages:
        typer.echo(damage, err=True)
    if damages:
        raise typer.Exit(1)


def _archive(config: PathOption) -> Archive:
    loaded = load_or_exit(config)
    found = archive_of(loaded.settings)
    if found is None:
        typer.echo("there is no archive: archive.directory is not set", err=True)
        raise typer.Exit(1)
    return found


def _segments(there: Archive, window: tuple[int, int]) -> list[Segment]:
    """Those with a part in the period. Exit 1 when the directory can't be read."""
    first = ids.day((window[0], 0))
    last = ids.day((window[1], 0)) if window[1] else datetime.date.max
    try:
        return [one for one in there.segments() if first <= one.day <= last]
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> typer.Exit:
    typer.echo(f"the archive can't be read: {error}", err=True)
    return typer.Exit(1)


def _print(found: list[Facts]) -> None:
    table = Table("segment", "events", "bytes", "index", "first", "last", "", box=None, pad_edge=False)
    for number in (1, 2, 3):
        table.columns[number].justify = "right"
    for one in found:
        beside = f"{one.index_bytes:,}" if one.index == "whole" else one.index
        packed = "packed" if one.packed else ""
        table.add_row(one.name, f"{one.events:,}", f"{one.bytes:,}", beside, one.first, one.last, packed)
    console = Console(highlight=False)
    (console if console.is_terminal else Console(width=200, highlight=False)).print(table)
    events, size = sum(one.events for one in found), sum(one.bytes + one.index_bytes for one in found)
    typer.echo(f"{len(found)} segments, {events:,} events, {size:,} bytes")


def _say(report: list[dict[str, object]], *, json: bool) -> None:
    bad = [one for one in report if one["wrong"]]
    if json:
        print_json(report)
    else:
        for text in _sentences(bad):
            typer.echo(text, err=True)
        events = sum(one["events"] for one in report if isinstance(one["events"], int))
        typer.echo(f"{len(report)} segments, {events:,} events whole, {len(bad)} segments damaged")
    if bad:
        raise typer.Exit(1)


def _sentences(bad: list[dict[str, object]]) -> Iterator[str]:
    for one in bad:
        for text in one["wrong"] if isinstance(one["wrong"], list) else ():
            yield f"{one['segment']}: {text}"
