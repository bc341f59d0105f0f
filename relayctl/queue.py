"""``relayctl queue summary | show | suspend | resume``, and what all verbs of the queue share; the others stand beside."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import orjson
import structlog
import typer
import uvloop
from rich.console import Console

from config.durations import seconds
from config.load import Loaded
from config.schema import nearest
from mailqueue import inspect, stopped
from mailqueue.errors import QueueDown, QueueRefused, ServerAnswer
from mailqueue.message import Envelope
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from relayctl import sheets
from relayctl.audit import audited
from relayctl.config import PathOption, load_or_exit
from relayctl.lines import reader_left
from streams.segment import SegmentDamaged

app = typer.Typer(no_args_is_help=True)

SHOWN = 100  # suspended destinations
PATIENCE_SECONDS = 2.0  # for a server that is not there
KINDS = {
    "flow": "flow:<id>",
    "account": "account:<name>",
    "campaign": "campaign:<account>/<name>",
    "provider": "provider:<name>",
    "source": "source:<address>",
    "destination": "destination:<domain>",
    "route": "route:<name>",
}
_DOMAIN = re.compile(r"[^\s@:/]{1,253}|\[[0-9A-Za-z.:]+\]")

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help=" · ".join(KINDS.values()))]
Reason = Annotated[str, typer.Option(help="Why; it stands in the events.")]


def on_queue(loaded: Loaded, work: Callable[[Queue], Awaitable[None]]) -> None:
    """Opens the configured queue, works, closes; what queue or archive can't do goes to standard error, exit 1. So do
    warnings; what went well is the command's own answer, on standard output."""

    async def session() -> None:
        settings = loaded.settings
        queue = await Queue.open(settings.queue, role="relayctl", patience=PATIENCE_SECONDS, quota=settings.quota)
        try:
            await work(queue)
        finally:
            await queue.close()

    try:
        with warnings_only():
            uvloop.run(session())
    except BrokenPipeError:  # whoever reads has enough
        reader_left()
    except (QueueDown, QueueRefused, ServerAnswer, SegmentDamaged, PermissionError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def warnings_only() -> Iterator[None]:
    """Log lines of the rooms below, on standard error."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@app.command()
def summary(config: PathOption = None, json: JsonOption = False) -> None:
    """Counts of the whole queue, its flows, what is suspended (of destinations a hundred at most), who works."""

    async def work(queue: Queue) -> None:
        facts = await inspect.summary(queue.shards)
        shown = await stopped.some_suspended(queue.shards, SHOWN)
        if json:
            print_json({**_plain(facts), "open": facts.open, "suspended_destinations": [_plain(one) for one in shown]})
        else:
            sheets.summary(_console(), facts, time.time(), shown)

    on_queue(load_or_exit(config), work)


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="Message id.")],
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """One message and where each of its recipients stands."""

    async def work(queue: Queue) -> None:
        found = await _find(queue, id)
        if found is None:
            raise typer.Exit(1)
        shard, envelope = found
        items = await inspect.items(shard, envelope)
        if json:
            print_json({"envelope": _plain(envelope), "items": [_plain(item) for item in items]})
        else:
            sheets.message(_console(), envelope, items)

    on_queue(load_or_exit(config), work)


@app.command()
def suspend(
    key: Key,
    reason: Reason,
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="90s, 5m, 1h30m; default until resumed.")] = "",
    config: PathOption = None,
) -> None:
    """Send nothing more for KEY until it is resumed, touching no item; what is under way goes on."""
    loaded = load_or_exit(config)
    name, length = stop_key(key), _length(for_)
    kind, _, value = name.partition(":")
    if kind == "provider" and value != "default" and value not in loaded.providers.rules:
        raise typer.BadParameter(f"no provider {value}{instead(value, loaded)}")
    why = said(reason)

    async def work(queue: Queue) -> None:
        before = await inspect.suspension(queue.shards[0], name)
        until = int((time.time() + length) * 1000) if length else 0
        trail = audited("queue suspend", name, why, before, {"until": until, "reason": why})
        await queue.suspend(name, length, why, trail)
        typer.echo(f"suspended {name} {'for ' + for_ if for_ else 'until resumed'}")
        if kind == "campaign" and not await _waits(queue, value):
            typer.echo(f"no mail of {value} is in the queue now: it holds for what comes under that name", err=True)

    on_queue(loaded, work)


async def _waits(queue: Queue, campaign: str) -> bool:
    found = await inspect.summary(queue.shards)
    return any(f"{flow.account}/{flow.campaign}" == campaign and flow.open for flow in found.flows)


def instead(provider: str, loaded: Loaded) -> str:
    """What may have been meant: a rule, or the destination of that name."""
    names = sorted(loaded.providers.rules)
    if near := nearest(provider, names):
        return near
    domain = f"; a domain is destination:{provider}" if _DOMAIN.fullmatch(provider) and "." in provider else ""
    return f"{domain}; providers are default, {', '.join(names)}"


@app.command()
def resume(key: Key, reason: Reason, config: PathOption = None) -> None:
    """Send again for KEY; exit 1 when it was not suspended."""
    name, why = stop_key(key), said(reason)

    async def work(queue: Queue) -> None:
        before = await inspect.suspension(queue.shards[0], name)
        if not await queue.resume(name, why, audited("queue resume", name, why, before)):
            typer.echo(f"{name} is not suspended", err=True)
            raise typer.Exit(1)
        typer.echo(f"resumed {name}")

    on_queue(load_or_exit(config), work)


def stop_key(text: str) -> str:
    """The key as the queue spells it; BadParameter says what is allowed."""
    kind, _, value = text.partition(":")
    account, slash, campaign = value.partition("/")
    match kind:
        case "flow" if value.isascii() and value.isdigit():
            return text
        case "account" | "provider" | "route" if value and not value.isspace():
            return text
        case "campaign" if account and slash and campaign:
            return text
        case "source" if address := _address(value):
            return f"source:{address}"
        case "destination" if _DOMAIN.fullmatch(value):
            return f"destination:{value.lower().rstrip('.')}"
    allowed = KINDS.get(kind) or " · ".join(KINDS.values())
    raise typer.BadParameter(f"{text!r} names nothing that can be suspended; write {allowed}")


def said(reason: str) -> str:
    """One line of text; BadParameter when there is none."""
    line = " ".join(reason.split())
    if not line:
        raise typer.BadParameter("a reason has at least one word")
    return line


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _length(text: str) -> float:
    try:
        length = float(str(seconds(text or "0")))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if text and length <= 0:
        raise typer.BadParameter("a suspension lasts longer than nothing")
    return length


async def _find(queue: Queue, message_id: str) -> tuple[Shard, Envelope] | None:
    found = await inspect.find(queue.shards, message_id) if message_id.isascii() else None
    if found is None:
        typer.echo(f"{message_id}: not in the queue; the events say what became of it", err=True)
    return found


def _plain(facts: Any) -> dict[str, Any]:
    """A dataclass as JSON has it: ``class``, not ``class_``."""
    return dataclasses.asdict(facts, dict_factory=lambda pairs: {name.rstrip("_"): value for name, value in pairs})


def print_json(record: Any) -> None:
    """One JSON value on standard output."""
    typer.echo(orjson.dumps(record, option=orjson.OPT_INDENT_2))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=240, highlight=False)
