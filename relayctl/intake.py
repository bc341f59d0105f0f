"""``relayctl intake stop | start | status``: whether relayd takes new mail."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mailqueue import intake
from mailqueue.intake import STOPPED, Stopped
from mailqueue.processes import present
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from relayctl.audit import audited
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, on_queue, print_json, said
from relayctl.spans import moment, span

app = typer.Typer(no_args_is_help=True)

OBEYED_SECONDS = 8.0


@app.command()
def stop(
    reason: Annotated[str, typer.Option(help="Why; it stands in the audit event and at /readyz, no client hears it.")],
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="90s, 5m, 1h30m; default until started.")] = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Take no new mail on any relayd: 421 4.3.2. What is queued goes on, returned mail is still taken."""
    loaded, why, length = load_or_exit(config), said(reason), span(for_) if for_ else 0.0

    async def work(queue: Queue) -> None:
        shard = queue.shards[0]
        before, after = _plain(await intake.stopped(shard)), {"reason": why, "seconds": length}
        await intake.stop(shard, why, length, audited("intake stop", "intake", why, before, after))
        _tell(await intake.stopped(shard), json, await _obeying(shard, why))

    on_queue(loaded, work)


@app.command()
def start(
    reason: Annotated[str, typer.Option(help="Why; it stands in the audit event.")] = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Take new mail again; exit 1 when it was taken anyhow."""
    loaded, why = load_or_exit(config), said(reason) if reason else ""

    async def work(queue: Queue) -> None:
        shard = queue.shards[0]
        before = _plain(await intake.stopped(shard))
        if await intake.start(shard, audited("intake start", "intake", why, before)) is None:
            typer.echo("the intake is not stopped", err=True)
            raise typer.Exit(1)
        _tell(None, json)

    on_queue(loaded, work)


@app.command()
def status(config: PathOption = None, json: JsonOption = False) -> None:
    """Whether new mail is taken, and what each relayd says of itself."""

    async def work(queue: Queue) -> None:
        _tell(await intake.stopped(queue.shards[0]), json, await _doors(queue.shards[0]))

    on_queue(load_or_exit(config), work)


async def _doors(shard: Shard) -> list[dict[str, str]]:
    return [{"name": one.name, "trouble": one.trouble} for one in await present(shard) if one.role == "relayd"]


async def _obeying(shard: Shard, why: str) -> list[dict[str, str]]:
    """What each relayd says, once all refuse new mail: they look every second and speak every three."""
    until = time.monotonic() + OBEYED_SECONDS
    doors = await _doors(shard)
    while not all(f"{STOPPED}: {why}" in door["trouble"] for door in doors) and time.monotonic() < until:
        await asyncio.sleep(0.2)
        doors = await _doors(shard)
    return doors


def _plain(found: Stopped | None) -> dict[str, Any] | None:
    return asdict(found) if found else None


def _tell(found: Stopped | None, json: bool, doors: list[dict[str, str]] | None = None) -> None:
    if json:
        print_json(
            {"stopped": found is not None, **(_plain(found) or {}), **({} if doors is None else {"relayd": doors})}
        )
        return
    if found is None:
        typer.echo("new mail is taken")
    else:
        until = moment(found.until / 1000) if found.until else "started by hand"
        typer.echo(f"no new mail is taken since {moment(found.since / 1000)}, until {until}: {found.reason}")
    for door in doors or ():
        typer.echo(f"  {door['name']}: {door['trouble'] or 'ready'}")
