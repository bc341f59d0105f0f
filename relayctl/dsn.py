"""``relayctl dsn tail``: what became of each recipient, as a bounce processor wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from config.settings import Settings
from mailqueue.queue import Queue
from relayctl.audit import actor
from relayctl.config import PathOption, load_or_exit
from relayctl.events import line
from relayctl.lines import Lines
from relayctl.streams import on_streams, split
from streams.connect import archive_of
from streams.consumer import Consumer
from streams.groups import Group, Groups, checked_kinds
from streams.merge import Merge
from streams.positions import FORMS
from streams.starts import starts
from streams.taken import Taken, batches

app = typer.Typer(no_args_is_help=True)

# Failures and final results. Not `deferred`: it is tried again, and one of these follows.
KINDS = ("delivered", "bounced", "expired", "unknown", "late", "removed", "suppressed", "returned")


@app.callback()
def dsn() -> None:
    """What became of each recipient."""


@app.command()
def tail(
    group: Annotated[str, typer.Option(help="Go on where this group is; made when there is none.")] = "",
    ack: Annotated[bool, typer.Option("--ack", help="Move the group on behind what was printed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with its position.")] = False,
    kinds: Annotated[
        str,
        typer.Option(metavar="KIND,…", help="Default those of the group; of a new one, or without, " + ",".join(KINDS)),
    ] = "",
    owner: Annotated[str, typer.Option(help="Of a new group: whom to ask about it; default who calls.")] = "",
    start: Annotated[str, typer.Option("--from", help=FORMS + "; for a new group, or without one.")] = "new",
    end: Annotated[bool, typer.Option("--end", help="Stop where there is nothing more, instead of waiting.")] = False,
    config: PathOption = None,
) -> None:
    """Print what became of each recipient as it happens. A line is acknowledged once it is written: after a crash the
    last ones come again, and what is printed here no other reader of the group gets. Without --ack a group is looked at and
    left as it is."""
    if ack and not group:
        raise typer.BadParameter("--ack needs --group: whose position is to move on?")
    loaded = load_or_exit(config)
    asked = tuple(split(kinds))

    async def work(queue: Queue) -> None:
        known = await Groups(queue.shards[0]).get(group) if group else None
        wanted = checked_kinds(asked or (known.kinds if known else KINDS))
        if not ack:
            await _look(queue, loaded.settings, known, wanted, start, end=end, json=json)
            return
        if known and wanted != known.kinds:
            what, before = (", ".join(kinds) or "all kinds" for kinds in (wanted, known.kinds))
            typer.echo(f"{group} reads {what} from now on; before: {before}", err=True)
        reading = {"group": group, "owner": owner or ("" if known else actor()), "kinds": wanted, "end": end}
        reading["start"] = "new" if known else start
        await _acknowledged(queue, loaded.settings, reading, json=json)

    on_streams(loaded, work)


async def _acknowledged(queue: Queue, settings: Settings, reading: Mapping[str, Any], *, json: bool) -> None:
    batch: list[Taken] = []
    async with Consumer(queue.shards, archive_of(settings), **reading) as events:

        async def taken() -> AsyncIterator[Sequence[bytes]]:
            while found := await events.batch():
                batch[:] = found
                yield [_line(event, json=json) for event in found]

        await Lines().print_all(taken(), lambda: events.ack(batch))


async def _look(
    queue: Queue, settings: Settings, known: Group | None, kinds: Sequence[str], start: str, *, end: bool, json: bool
) -> None:
    archive = archive_of(settings)
    after = known.positions if known else await starts(queue.shards, archive, start)
    begin = {**(await starts(queue.shards, archive, "oldest")), **after}
    merge = Merge(queue.shards, archive, begin, end=end)
    merge.start()
    try:
        await Lines().print_all(
            [_line(event, json=json) for event in batch] async for batch in batches(merge, frozenset(kinds))
        )
    finally:
        await merge.close()


def _line(event: Taken, *, json: bool) -> bytes:
    return event.to_json() if json else line(event).encode()
