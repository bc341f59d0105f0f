"""``relayctl history``: what became of a message or of a recipient."""

from __future__ import annotations

from typing import Annotated

import typer

from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.events import line
from relayctl.periods import DateOption, SinceOption, UntilOption, period
from relayctl.queue import on_queue
from streams.connect import archive_of
from streams.history import history as found_in
from streams.segment import SegmentDamaged


def history(
    id: Annotated[str, typer.Option("--id", help="Message id, as in `250 queued as`.")] = "",
    recipient: Annotated[str, typer.Option(help="An address, in upper or lower case.")] = "",
    account: Annotated[str, typer.Option(help="Only of this account.")] = "",
    campaign: Annotated[str, typer.Option(help="Only of this campaign.")] = "",
    since: SinceOption = "",
    until: UntilOption = "",
    date: DateOption = "",
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as docs/events.md has it.")] = False,
    config: PathOption = None,
) -> None:
    """Print what became of a message or a recipient, oldest first, from archive and stream; exit 1 when nothing is known."""
    first, last = period(since, until, date)
    recipient = recipient.strip().removeprefix("<").removesuffix(">")
    if not id and not recipient and not (account and first):
        raise typer.BadParameter("say whose: --id or --recipient; or --account with --date or --since, which reads all")
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        wanted = {"id": id, "recipient": recipient, "account": account, "campaign": campaign}
        archive = archive_of(loaded.settings)
        try:
            events = await found_in(queue.shards, archive, **wanted, since_ms=first, until_ms=last, limit=limit)
        except (OSError, SegmentDamaged) as error:
            typer.echo(f"the archive can't be read: {error}", err=True)
            raise typer.Exit(1) from None
        for event in events:
            typer.echo(event.to_json() if json else line(event, dated=True))
        if not events:
            typer.echo("nothing is known of it" if archive else "nothing is known of it; there is no archive", err=True)
            raise typer.Exit(1)
        if len(events) == limit:
            typer.echo(f"only the newest {limit}; --limit, --since and --until say which", err=True)

    on_queue(loaded, work)
