"""``relayctl alarms``: what must be looked at now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mailqueue.alarms import raised
from mailqueue.processes import present
from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, _console, on_queue, print_json
from relayctl.spans import moment


def alarms(
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 while one is on or nobody watches, for a monitor.")
    ] = False,
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Alarms that are on, since when and why; docs/handbook.md says what to do about each."""
    bad = False

    async def work(queue: Queue) -> None:
        nonlocal bad
        found = await raised(queue.shards[0])
        watched = any(one.role == "maintenance" for one in await present(queue.shards[0]))
        bad = bool(found) or not watched
        if json:
            print_json([asdict(alarm) for alarm in found.values()])
        elif not found:
            typer.echo("no alarm is on")
        else:
            table = Table("alarm", "since", "count", "why", box=None)
            for alarm in found.values():
                table.add_row(alarm.name, moment(alarm.since / 1000), str(alarm.count or ""), Text(alarm.reason))
            _console().print(table)
        if not watched:
            typer.echo("nobody watches: no maintenance process says that it runs", err=True)

    on_queue(load_or_exit(config), work)
    if check and bad:
        raise typer.Exit(1)
