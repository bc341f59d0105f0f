"""``relayctl events tail``."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from typing import Annotated

import orjson
import typer

from mailqueue.consumer import follow
from mailqueue.events import Event
from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import on_queue

app = typer.Typer(no_args_is_help=True)


@app.callback()
def events() -> None:
    """What became of the mail."""


@app.command()
def tail(
    start: Annotated[
        str, typer.Option("--from", help='"0" = the oldest kept, "$" = from now on, or a stream id.')
    ] = "$",
    end: Annotated[bool, typer.Option("--end", help="Stop where there is nothing more, instead of waiting.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as docs/events.md has it.")] = False,
    config: PathOption = None,
) -> None:
    """Print events as they happen; Ctrl-C ends it."""

    async def printing(queue: Queue) -> None:
        async for event in follow(queue.shards, start, end=end):
            typer.echo(event.to_json() if json else line(event))

    async def work(queue: Queue) -> None:
        task = asyncio.ensure_future(printing(queue))
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    on_queue(load_or_exit(config), work)


def line(event: Event) -> str:
    """Time, kind, whom it is about, and what there is to say; empty fields are left out."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.at / 1000)) + f".{event.at % 1000:03d}"
    whom = event.recipient or ", ".join(event.recipients) or event.destination
    next_at = time.strftime("next %H:%M:%S", time.localtime(event.next_at / 1000)) if event.next_at else ""
    words = (
        f"{clock} {event.kind:<9}",
        event.actor,
        event.verb,
        event.subject,
        event.id,
        f"<{whom}>" if "@" in whom else whom,
        event.remote_mta,
        f"from {event.source}" if event.source else "",
        event.diagnostic_code.removeprefix("smtp; ") or event.status,
        event.reason,
        _change(event),
        next_at,
    )
    return " ".join(filter(None, words))


def _change(event: Event) -> str:
    """What was and what is, of an audit event."""
    said = [orjson.dumps(value).decode() for value in (event.before, event.after) if value is not None]
    return " → ".join(said) if event.kind == "audit" else ""
