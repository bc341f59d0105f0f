"""``relayctl streams list | show | create | remove | rewind``: groups of consumers of the events."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.load import Loaded
from mailqueue.queue import Queue
from relayctl.audit import actor, audited
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, on_queue, print_json, said
from relayctl.spans import moment, spelled
from streams.connect import archive_of
from streams.groups import Group, GroupLost, GroupRefused, Groups
from streams.lag import Lag, lags
from streams.merge import Gap
from streams.positions import FORMS, is_position, position
from streams.starts import starts

app = typer.Typer(no_args_is_help=True)

GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="a-z 0-9 . _ -")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the audit event.")]
KindsOption = Annotated[str, typer.Option("--kinds", metavar="KIND,…", help="Kinds of events; default all.")]


def on_streams(loaded: Loaded, work: Callable[[Queue], Awaitable[None]]) -> None:
    """As on_queue; what a group or an archive refuses goes to standard error, too, exit 1."""
    try:
        on_queue(loaded, work)
    except (GroupRefused, GroupLost, Gap, OSError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command("list")
def list_(config: PathOption = None, json: JsonOption = False) -> None:
    """All groups and how far each is behind."""
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        groups = await Groups(queue.shards[0]).all()
        found = await lags(queue.shards, groups, int(time.time() * 1000))
        if json:
            print_json([plain(group, found[group.name], loaded) for group in groups])
            return
        table = Table("group", "owner", "kinds", "read by", "last read", "behind", "events", box=None, pad_edge=False)
        for group in groups:
            lag = found[group.name]
            words = (group.name, group.owner, ", ".join(group.kinds) or "all", reader(group), last_read(group))
            table.add_row(*map(Text, words), spelled(lag.seconds), str(lag.events))
        Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)

    on_streams(loaded, work)


@app.command()
def show(name: GroupName, config: PathOption = None, json: JsonOption = False) -> None:
    """One group, with its position in each shard and when it is forgotten if nobody reads."""
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        group = await _group(queue, name)
        record = plain(group, (await lags(queue.shards, [group], int(time.time() * 1000)))[name], loaded)
        if json:
            print_json(record)
            return
        record |= {key: moment(record[key] / 1000) for key in ("created", "expires")}
        record["read"] = last_read(group)
        for key, value in record.items():
            typer.echo(f"{key:<13} {', '.join(value) or '–' if isinstance(value, list) else value or '–'}")

    on_streams(loaded, work)


@app.command()
def create(
    name: GroupName,
    reason: Reason,
    owner: Annotated[str, typer.Option(help="Whom to ask about it, an address; default who calls.")] = "",
    kinds: KindsOption = "",
    start: Annotated[str, typer.Option("--from", help=FORMS)] = "new",
    config: PathOption = None,
) -> None:
    """Make a group; a consumer that reads for a new one makes it, too. Exit 1 when there is one of that name."""
    loaded, why, whom = load_or_exit(config), said(reason), owner or actor()
    wanted = split(kinds)

    async def work(queue: Queue) -> None:
        begin = await starts(queue.shards, archive_of(loaded.settings), start)
        if len(begin) < len(queue.shards):
            begin = {**await starts(queue.shards, archive_of(loaded.settings), "oldest"), **begin}
        places = [position(shard, id) for shard, id in sorted(begin.items())]
        after = {"owner": whom, "kinds": wanted, "positions": places}
        event = audited("streams create", name, why, None, after)
        if not await Groups(queue.shards[0]).create(name, whom, wanted, begin, event):
            raise GroupRefused(f"there is a group {name} already: relayctl streams show {name}")
        typer.echo(f"created {name}: it reads {spoken(start)}")

    on_streams(loaded, work)


@app.command()
def remove(name: GroupName, reason: Reason, config: PathOption = None) -> None:
    """Forget a group and how far it was; a consumer that reads for it is told. Events are not touched."""
    why = said(reason)

    async def work(queue: Queue) -> None:
        before = await _group(queue, name)
        await Groups(queue.shards[0]).remove(name, audited("streams remove", name, why, before.plain()))
        typer.echo(f"removed {name}")

    on_streams(load_or_exit(config), work)


@app.command()
def rewind(
    name: GroupName,
    to: Annotated[str, typer.Option(help=FORMS)],
    reason: Reason,
    config: PathOption = None,
) -> None:
    """Let a group read again from a date or position, or go on from there. A consumer that reads for it is told and must
    open it again."""
    loaded, why = load_or_exit(config), said(reason)

    async def work(queue: Queue) -> None:
        before = await _group(queue, name)
        begin = await starts(queue.shards, archive_of(loaded.settings), to)
        places = [position(shard, id) for shard, id in sorted(begin.items())]
        event = audited("streams rewind", name, why, before.plain()["positions"], places)
        await Groups(queue.shards[0]).rewind(name, begin, f"rewound by {actor()}: {why}", event)
        typer.echo(f"{name} goes on with {spoken(to)}")

    on_streams(loaded, work)


def spoken(start: str) -> str:
    """Where a group begins, for people."""
    words = {"new": "what is written from now on", "oldest": "the oldest event that is kept"}
    return words.get(start, f"what is behind {start}" if is_position(start) else f"the events since {start}")


def plain(group: Group, lag: Lag, loaded: Loaded) -> dict[str, Any]:
    """As JSON has it. ``expires``: when it is forgotten if nobody reads until then."""
    expires = group.read + int(loaded.settings.streams.group_expire_seconds * 1000)
    behind = {"lag_events": lag.events, "lag_seconds": round(lag.seconds, 3)}
    return {**group.plain(), "expires": expires, "reads": reader(group), **behind}


def last_read(group: Group) -> str:
    """For people: a new one counts as read, so that it is not forgotten at once."""
    return moment(group.read / 1000) if group.read > group.created else "never"


def reader(group: Group) -> str:
    """Who reads for it now, "" = nobody."""
    return group.holder if group.until > time.time() * 1000 else ""


def split(kinds: str) -> list[str]:
    return [kind for kind in (word.strip() for word in kinds.split(",")) if kind]


async def _group(queue: Queue, name: str) -> Group:
    group = await Groups(queue.shards[0]).get(name)
    if group is None:
        raise GroupRefused(f"there is no group {name}: relayctl streams list")
    return group
