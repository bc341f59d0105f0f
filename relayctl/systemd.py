"""``relayctl systemd sockets``: the listeners of the configuration become socket units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from config import sockets
from relayctl.config import PathOption, load_or_exit, say

app = typer.Typer(no_args_is_help=True)

WriteOption = Annotated[bool, typer.Option("--write", help="Write what differs; without, it is printed.")]
DirectoryOption = Annotated[Path, typer.Option("--directory", help="Where systemd's units of this host lie.")]


@app.callback()
def systemd() -> None:
    """What systemd is told from the configuration."""


@app.command(name="sockets")
def listeners(
    config: PathOption = None, write: WriteOption = False, directory: DirectoryOption = sockets.DIRECTORIES[0]
) -> None:
    """Socket units of the listeners. Exit 0; 1 when they cannot be made or written."""
    settings = load_or_exit(config).settings
    try:
        different, superfluous = sockets.changes(settings, directory)
        if write:
            sockets.written(directory, different, superfluous)
    except (ValueError, OSError) as error:
        say("no sockets", [str(error)], "red")
        raise typer.Exit(1) from None
    if not write:
        typer.echo(
            "\n".join(f"# {directory / name}\n{text}" for name, text in sockets.units(settings).items()), nl=False
        )
        return
    for name in [*different, *superfluous]:
        typer.echo(f"{'written' if name in different else 'removed'}: {directory / name}")
    typer.echo(
        "now: systemctl daemon-reload, then restart relayd@N.socket with relayd@N.service"
        if different or superfluous
        else "unchanged"
    )
