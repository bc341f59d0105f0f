"""``relayctl sandbox scenario list | show | check``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from relayctl import sandbox_sheets
from relayctl.queue import JsonOption, print_json
from relayctl.sandbox_link import refuse
from sandbox.scenario import Scenario, ScenarioError, find, load, scenarios
from sandbox.world import World

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped one's name, or a TOML file.")]


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """Those that are shipped."""
    found = {path.stem: load(path).title for path in scenarios()}
    if json:
        print_json(found)
    else:
        sandbox_sheets.scenarios(found)


@app.command()
def show(name: Name) -> None:
    """What happens, when, and what to do meanwhile; then the file."""
    path, plan = _loaded(name)
    sandbox_sheets.scenario(plan)
    typer.echo(path.read_text(encoding="utf-8"))


@app.command()
def check(name: Name) -> None:
    """Exit 0 when it can be played; else 1, and every fault by its key."""
    path, plan = _loaded(name)
    try:
        world = World(plan)
    except ValueError as error:
        refuse(f"{path}: {error}")
    typer.echo(f"{path}: {len(world.domains)} domains, {len(world.hosts)} hosts, {len(plan.timeline)} changes")


def _loaded(name: str) -> tuple[Path, Scenario]:
    try:
        path = find(name)
        return path, load(path)
    except ScenarioError as error:
        refuse(re.sub(r"; (?=[a-z.0-9]+: )", "\n  ", str(error)))
