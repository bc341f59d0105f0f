"""``relayctl events tail | schema``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated

import orjson
import typer

from config.settings import Settings
from mailqueue.event_schema import schema as json_schema
from mailqueue.events import Event
from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.event_filter import Filter
from relayctl.lines import Lines
from relayctl.plain import plain
from relayctl.queue import on_queue, print_json
from relayctl.spans import moment
from streams import ids
from streams.connect import archive_of
from streams.merged import replay
from streams.positions import FORMS
from streams.segment import SegmentDamaged
from streams.starts import starts
from streams.taken import Taken, read

app = typer.Typer(no_args_is_help=True)


@app.callback()
def events() -> None:
    """What became of the mail."""


@app.command()
def tail(
    start: Annotated[str, typer.Option("--from", help=FORMS)] = "new",
    end: Annotated[bool, typer.Option("--end", help="Stop where there is nothing more, instead of waiting.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as docs/events.md has it.")] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind of event; may be repeated.")] = None,
    account: Annotated[str, typer.Option(help="Only of this account.")] = "",
    campaign: Annotated[str, typer.Option(help="Only of this campaign.")] = "",
    recipient: Annotated[str, typer.Option(help="Only of this address, or of all at a domain.")] = "",
    id: Annotated[str, typer.Option("--id", help="Only of this message.")] = "",
    config: PathOption = None,
) -> None:
    """Print events as they happen, or from a date on through the archive; Ctrl-C ends it."""
    loaded = load_or_exit(config)
    try:
        wanted = Filter.of(kind or (), account=account, campaign=campaign, recipient=recipient, id=id)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

    async def work(queue: Queue) -> None:
        begin = await _begin(queue, loaded.settings, start)
        lines = Lines()
        await lines.print_all(_lines(queue, loaded.settings, begin, wanted, end=end, json=json))
        if end and not lines.printed:
            typer.echo(f"no such event {'from ' + start + ' on' if start != 'new' else 'came meanwhile'}", err=True)

    on_queue(loaded, work)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the events."""
    print_json(json_schema())


async def _begin(queue: Queue, settings: Settings, start: str) -> Mapping[int, str]:
    """Also "0", "$" and a stream id for all shards, as Redis has them."""
    text = {"0": "oldest", "$": "new"}.get(start, start)
    archive = archive_of(settings)
    try:
        if ids.parse(text) > ids.NONE:
            return {shard.number: text for shard in queue.shards}
    except ValueError:
        pass
    try:
        return {**await starts(queue.shards, archive, "oldest"), **await starts(queue.shards, archive, text)}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


async def _lines(
    queue: Queue, settings: Settings, begin: Mapping[int, str], wanted: Filter, *, end: bool, json: bool
) -> AsyncIterator[Sequence[bytes]]:
    """One by one: what is printed is to be seen at once. Damage and gaps go to standard error."""
    try:
        async for record in replay(queue.shards, archive_of(settings), begin, end=end, lost=_lost):
            if not wanted.may_match(record.data):
                continue
            event = read(record.shard, (record.stream_id, record.data))
            if event is not None and wanted.matches(event):
                yield [_spelled(event, json=json)]
    except (SegmentDamaged, OSError) as error:
        typer.echo(f"the archive can't be read: {error}", err=True)
        raise typer.Exit(1) from None


def _spelled(event: Taken, *, json: bool) -> bytes:
    return event.to_json() if json else line(event).encode()


def _lost(shard: int, after: str, next_id: str) -> None:
    typer.echo(f"shard {shard}: events between {after} and {next_id} are kept no more", err=True)


def line(event: Event, *, dated: bool = False) -> str:
    """Time, kind, whom it is about, and what there is to say; empty fields are left out, and the date of today unless
    ``dated``."""
    at = time.localtime(event.at / 1000)
    day = "" if not dated and at[:3] == time.localtime()[:3] else time.strftime("%Y-%m-%d ", at)
    clock = day + time.strftime("%H:%M:%S", at) + f".{event.at % 1000:03d}"
    whom = event.recipient or ", ".join(event.recipients) or event.destination
    next_at = time.strftime("next %H:%M:%S", time.localtime(event.next_at / 1000)) if event.next_at else ""
    words = (
        f"{clock} {event.kind:<9}",
        event.actor,
        event.verb,
        event.subject,
        str(event.after) if event.kind == "alarm" else "",
        event.id,
        f"<{whom}>" if "@" in whom else whom,
        event.remote_mta,
        f"from {event.source}" if event.source else "",
        event.diagnostic_code.removeprefix("smtp; ") or event.status,
        event.reason,
        _change(event),
        next_at,
    )
    return plain(" ".join(filter(None, words)))


def _change(event: Event) -> str:
    """What was and what is, of an audit event."""
    if event.kind != "audit" or (event.before is None and event.after is None):
        return ""
    said = ("–" if value is None else orjson.dumps(_dated(value)).decode() for value in (event.before, event.after))
    return " → ".join(said)


def _dated(value: object) -> object:
    """Ends in Unix ms as people read them; 0 = none is said."""
    if isinstance(value, dict) and isinstance(until := value.get("until"), int):
        return {**value, "until": moment(until / 1000) if until else "resumed"}
    return value
