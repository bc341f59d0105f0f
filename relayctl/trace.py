"""``relayctl trace``: what sessions say, as they say it."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.text import Text

from config.addresses import ascii_domain
from mailqueue.processes import Process, opening, present
from mailqueue.queue import Queue
from mailqueue.traces import Batch, Kind, Line
from relayctl.audit import Why, audited, record
from relayctl.config import PathOption, load_or_exit
from relayctl.plain import plain
from relayctl.queue import JsonOption, on_queue
from relayctl.spans import span

ROLES = {"account": ("relayd",), "client": ("relayd", "inbound"), "domain": ("delivery",)}
STYLE = {"C": "cyan", "S": "green", "*": "dim"}


def trace(
    account: Annotated[str, typer.Option(help="Submissions of this account.")] = "",
    domain: Annotated[str, typer.Option(help="Deliveries to this recipient domain.")] = "",
    client: Annotated[str, typer.Option(metavar="ADDRESS", help="Sessions that come from this address.")] = "",
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long; Ctrl-C ends it before.")] = "5m",
    reason: Why = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Show dialogues as they happen: who speaks, when, in which phase. Passwords are masked, content is not shown."""
    kind, value = _subject(account, domain, client)
    length = span(for_)

    async def printing(queue: Queue, ears: Sequence[Process]) -> None:
        async with aclosing(queue.trace(kind, value, length)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                if not batch.lines and not batch.dropped:
                    typer.echo(f"listening to {len(ears)} processes for {for_}; Ctrl-C ends it", err=True)
                    for one in opening(ears) if kind == "domain" else ():
                        if value in one.domains:
                            typer.echo(f"already under way: delivery waits {one}", err=True)
                tell(batch, json)

    async def work(queue: Queue) -> None:
        ears = [one for one in await present(queue.shards[0]) if one.role in ROLES[kind]]
        if not ears:
            typer.echo(f"no {' or '.join(ROLES[kind])} runs that could be listened to", err=True)
            raise typer.Exit(1)
        await record(queue, audited("trace", f"{kind}:{value}", reason, count=len(ears)))
        task = asyncio.ensure_future(printing(queue, ears))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    on_queue(load_or_exit(config), work)


def _subject(account: str, domain: str, client: str) -> tuple[Kind, str]:
    """BadParameter unless it is exactly one of them, well written."""
    if sum(map(bool, (account, domain, client))) != 1:
        raise typer.BadParameter("write one of --account, --domain and --client")
    try:
        if client:
            return "client", str(ipaddress.ip_address(client))
        if domain:
            return "domain", ascii_domain(domain.rpartition("@")[2]).lower().rstrip(".")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return "account", account


def tell(batch: Batch, json: bool) -> None:
    if json:
        for line in batch.lines:
            typer.echo(orjson.dumps(asdict(line)))
        if batch.dropped:
            typer.echo(orjson.dumps({"dropped": batch.dropped}))
        return
    console = Console(highlight=False)
    for line in batch.lines:
        console.print(spelled(line), soft_wrap=True)
    if batch.dropped:
        console.print(Text(f"… {batch.dropped} lines dropped: too many at once", "yellow"), soft_wrap=True)


def spelled(line: Line) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(line.at / 1000)) + f".{line.at % 1000:03d}"
    where = f"{clock} {line.session} {line.peer} {line.subject or '–'} {line.phase:<11} "
    return Text.assemble((where, "dim"), (plain(f"{line.who} {line.text}"), STYLE.get(line.who, "")))
