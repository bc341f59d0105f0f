"""``relayctl config reload``: the file is validated, every process of this host that reads it gets SIGHUP, and it is
over when each of them has said which configuration it has now.

SIGHUP also where systemd keeps the processes: they send RELOADING and READY themselves, so the unit is seen to reload
(``systemctl reload`` does the same). A process id counts only where the program behind it is ours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from config import credentials
from config.digest import digest_of
from config.load import PREFIX, ConfigError, default_path, load
from mailqueue.processes import Process, present
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from relayctl.audit import Why, audited, record
from relayctl.config import PathOption, app, load_or_exit, say
from relayctl.queue import JsonOption, on_queue, print_json

LOOK_EVERY_SECONDS = 0.1
MODULES = {"relayd": "relayd", "inbound": "relayd.inbound", "delivery": "delivery", "maintenance": "maintenance"}


@dataclass(slots=True)
class Follower:
    """One process and what became of it: ``followed``, or why not."""

    process: Process
    expected: str = ""  # digest
    followed: bool = False
    why: str = ""
    restart: Sequence[str] = ()
    changes: Mapping[str, str] = field(default_factory=dict)


@app.command()
def reload(
    reason: Why = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the processes.")] = 30.0,
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Validate the file, have every process of this host take it over, wait until all have; exit 1 unless they did."""
    path, loaded = (config or default_path(os.environ)).absolute(), load_or_exit(config)

    async def work(queue: Queue) -> None:
        shard = queue.shards[0]
        here, elsewhere = sort(await present(shard), path)
        before = {one.process.name: one.process.digest for one in here}
        await record(queue, audited("config reload", str(path), reason, before, digest_of(loaded), len(here)))
        for one in here:
            ask(one, path)
        await follow(shard, here, timeout, quiet=json)
        tell(here, elsewhere, path, json)
        if not here or not all(one.followed for one in here):
            raise typer.Exit(1)

    on_queue(loaded, work)


def sort(there: Sequence[Process], path: Path) -> tuple[list[Follower], list[Process]]:
    """Those of this host that read this file, and the others."""
    host, real = socket.gethostname(), os.path.realpath(path)
    here = [one for one in there if one.host == host and os.path.realpath(one.config) == real]
    return [Follower(one) for one in here], [one for one in there if one not in here]


def ask(one: Follower, path: Path) -> None:
    """SIGHUP, if it is the process that it says it is and will accept the file; else ``why`` says why not."""
    pid = one.process.pid
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        one.why = f"no process {pid} here; if it is in a container, reload it there"
        return
    try:
        if not _is_ours(pid, one.process.role):
            one.why = f"process {pid} is another program; if it is in a container, reload it there"
            return
        one.expected = _expected(path, _environ(pid))
        signal.pidfd_send_signal(descriptor, signal.SIGHUP)
    except ConfigError as error:
        one.why = "refused with the variables of its environment: " + "; ".join(error.problems)
    except PermissionError:
        one.why = f"process {pid} is another user's: run this as root or as the relay's user"
    except OSError as error:
        one.why = f"process {pid}: {error.strerror}"
    finally:
        os.close(descriptor)


def _is_ours(pid: int, role: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return any(word == MODULES.get(role) or Path(word).name == role for word in words)


def _environ(pid: int) -> tuple[tuple[str, str], ...]:
    """The variables that count in its configuration."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    named = (pair.partition("=") for pair in pairs)
    return tuple(
        sorted((name, value) for name, _, value in named if name.startswith(PREFIX) or name == credentials.VARIABLE)
    )


def _expected(path: Path, environ: tuple[tuple[str, str], ...]) -> str:
    return digest_of(load(path, dict(environ)))


async def follow(shard: Shard, here: Sequence[Follower], timeout: float, *, quiet: bool) -> None:
    """Until each has answered, or is gone, or ``timeout`` seconds have passed."""
    waiting = [one for one in here if not one.why]
    until = asyncio.get_running_loop().time() + timeout
    while waiting and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        now = {one.name: one for one in await present(shard)}
        for one in tuple(waiting):
            judge(one, now.get(one.process.name))
            if one.followed or one.why:
                waiting.remove(one)
                if not quiet:
                    typer.echo(f"{one.process.name}: {one.why or 'has it'}", err=not one.followed)
    for one in waiting:
        one.why = f"has not answered within {timeout:g} s"
        if not quiet:
            typer.echo(f"{one.process.name}: {one.why}", err=True)


def judge(one: Follower, now: Process | None) -> None:
    """What its last word says; nothing while it has not answered."""
    if now is None:
        one.why = "is gone"
    elif now.reloads > one.process.reloads:
        one.restart, one.changes = now.restart, now.changes
        one.followed = not now.refused and now.digest == one.expected
        if now.refused:
            one.why = "refused: " + "; ".join(now.refused)
        elif not one.followed:
            one.why = "has another configuration than this file: was it changed again?"


def tell(here: Sequence[Follower], elsewhere: Sequence[Process], path: Path, json: bool) -> None:
    changes = {key: text for one in here for key, text in one.changes.items()}
    restart = sorted({key for one in here for key in one.restart})
    if json:
        rows = [_row(one) for one in here]
        others = [{"name": one.name, "host": one.host, "config": one.config} for one in elsewhere]
        print_json({"path": str(path), "changes": changes, "restart": restart, "processes": rows, "elsewhere": others})
        return
    if not here:
        typer.echo(f"no process of this host reads {path}", err=True)
    for key, text in changes.items():
        typer.echo(f"  {key}: {text}")
    if here and not changes:
        typer.echo("  no setting differs; certificates, keys and the files that settings name were read again")
    if restart:
        say("waiting for a restart of the processes", restart, "yellow")
    if elsewhere:
        say(
            "not asked",
            [f"{one.name}: on {one.host}, relayctl config reload --config {one.config}" for one in elsewhere],
            "yellow",
        )


def _row(one: Follower) -> dict[str, Any]:
    return {"name": one.process.name, "followed": one.followed, "why": one.why, "restart": list(one.restart)}
