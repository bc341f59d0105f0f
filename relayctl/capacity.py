"""``relayctl capacity``: the arithmetic of docs/capacity.md for one's own figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mailqueue.capacity import CONTENT, Load, need
from relayctl.queue import JsonOption, print_json


def capacity(
    recipients: Annotated[int, typer.Option(min=1, help="The most that wait at once: the largest backlog.")],
    size: Annotated[int, typer.Option("--bytes", min=1, help="Of one message.")],
    each: Annotated[int, typer.Option("--per-message", min=1, help="Recipients of one message.")] = 1,
    content: Annotated[str, typer.Option(help=" · ".join(CONTENT) + ": how much of it resembles other mail.")] = "text",
    an_hour: Annotated[int, typer.Option("--per-hour", min=1, help="Recipients an hour at the peak.")] = 300_000,
    json: JsonOption = False,
) -> None:
    """Memory, disk, cores and network for so much mail. An estimate: docs/capacity.md says what to measure."""
    if content not in CONTENT:
        raise typer.BadParameter(f"allowed: {', '.join(CONTENT)}", param_hint="--content")
    found = need(Load(recipients, size, each, content, an_hour))
    if json:
        return print_json(asdict(found))
    table = Table("", "", box=None, show_header=False)
    table.add_row("memory of the queue", _gb(found.memory))
    table.add_row("maxmemory (the mark above it)", _gb(found.maxmemory))
    table.add_row("memory of the machine, at least", f"{_gb(found.machine)} and the processes")
    table.add_row(
        "disk of the queue server", f"{_gb(found.disk + found.mark)}, queue.disk_mark_mb {found.mark >> 20:,} of it"
    )
    table.add_row("written there for these recipients", _gb(found.written))
    table.add_row("archive for these recipients", _gb(found.archive))
    table.add_row("cores at the peak", f"{found.cores:.2f}")
    table.add_row("network at the peak, each way", f"{found.bits_a_second / 1e6:,.0f} Mbit/s")
    Console(highlight=False).print(table)


def _gb(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
