"""``relayctl config check | show | reference``; ``reload`` has a file of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config import reference as pages
from config import sockets
from config.digest import digest_of
from config.load import ConfigError, Loaded, default_path, load
from config.schema import leaves

app = typer.Typer(no_args_is_help=True)

PathOption = Annotated[
    Path | None, typer.Option("--config", help="File to read; default $TAMBO_CONFIG, else /etc/tambo/tambo.toml.")
]


@app.command()
def check(
    config: PathOption = None, json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False
) -> None:
    """Validate file and environment: exit 0, or 1 with every problem on standard error."""
    if json:
        _check_json(config or default_path(os.environ))
        return
    loaded = load_or_exit(config)
    if apart := sockets.disagreements(loaded.settings):
        say("sockets of systemd: warnings", apart, "yellow")
    count = Counter(origin.partition(" ")[0] for origin in loaded.origins.values())
    sources = f"{count['file']} values from the file, {count['environment']} from the environment"
    typer.echo(f"{config or default_path(os.environ)}: valid; {sources}, {len(loaded.providers.rules) - 1} providers")


@app.command()
def show(
    config: PathOption = None, json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False
) -> None:
    """Print every value and where it came from; secrets are masked."""
    loaded = load_or_exit(config)
    if json:
        rows = {key: {"value": value, "origin": loaded.origins[key]} for key, value in leaves(loaded.settings)}
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    table = Table("key", "value", "from", box=None, pad_edge=False)
    for key, value in leaves(loaded.settings):
        origin = loaded.origins[key]
        table.add_row(Text(key), Text(_spelled(value)), Text(origin), style="dim" if origin == "default" else None)
    Console(width=None if os.isatty(1) else 400, highlight=False).print(table)


@app.command()
def reference(language: Annotated[str, typer.Option(help=" or ".join(pages.LANGUAGES))] = "en") -> None:
    """Print every key: what it may be, what it is by default, what it means (Markdown)."""
    try:
        typer.echo(pages.page(language), nl=False)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--language") from None


def _check_json(path: Path) -> None:
    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        typer.echo(orjson.dumps({"path": str(path), "valid": False, "problems": error.problems, "warnings": []}))
        raise typer.Exit(1) from None
    said = {"path": str(path), "valid": True, "problems": [], "warnings": loaded.warnings, "digest": digest_of(loaded)}
    typer.echo(orjson.dumps(said))


def load_or_exit(path: Path | None) -> Loaded:
    """For every verb that needs the configuration; warnings and problems go to standard error."""
    path = path or default_path(os.environ)
    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        say(f"{path}: refused", error.problems, "red")
        raise typer.Exit(1) from None
    if loaded.warnings:
        say(f"{path}: warnings", loaded.warnings, "yellow")
    return loaded


def say(title: str, lines: Sequence[str], colour: str) -> None:
    """Each line whole, its key in bold; soft wrap, so that a pipe gets one line a problem."""
    console = Console(stderr=True, highlight=False)
    console.print(Text(title, style=f"bold {colour}"), soft_wrap=True)
    for line in lines:
        key, colon, text = line.partition(": ")
        console.print(Text.assemble("  ", (key, "bold"), colon, text), soft_wrap=True)


def _spelled(value: object) -> str:
    if value is None:
        return "–"
    return orjson.dumps(value).decode() if not isinstance(value, str) else value or '""'
