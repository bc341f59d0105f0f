"""``relayctl alarms``: what must be looked at now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mailqueue.alarms import raised
from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, _console, on_queue, print_json
from relayctl.spans import moment


def alarms(
    check: Annotated[bool, typer.Option("--check", help="Exit 1 while one is on, for a monitor.")] = False,
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Alarms that are on, since when and why; docs/handbook.md says what to do about each."""
    any_: list[str] = []

    async def work(queue: Queue) -> None:
        found = await raised(queue.shards[0])
        any_.extend(found)
        if json:
            print_json([asdict(alarm) for alarm in found.values()])
        elif not found:
            typer.echo("no alarm is on")
        else:
            table = Table("alarm", "since", "count", "why", box=None)
            for alarm in found.values():
                table.add_row(alarm.name, moment(alarm.since / 1000), str(alarm.count or ""), Text(alarm.reason))
            _console().print(table)

    on_queue(load_or_exit(config), work)
    if check and any_:
        raise typer.Exit(1)
