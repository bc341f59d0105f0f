"""``relayctl top``: the relay as it works."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from mailqueue.errors import QueueDown
from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.overview import Looker, plain
from relayctl.queue import JsonOption, on_queue
from relayctl.top_sheet import sheet


def top(
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    every: Annotated[float, typer.Option(min=0.5, metavar="SECONDS", help="Between two looks.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, help="Of each table.")] = 10,
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Rates, backlog and when it will be done, queue by provider, account and campaign, sources, processes, alarms."""

    async def showing(queue: Queue) -> None:
        looker = Looker(queue)
        if once or json:
            await _tell(looker, rows, every, once=once, json=json)
            return
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                try:
                    live.update(sheet(await looker.look(), rows), refresh=True)
                except QueueDown as down:  # whoever watches wants to see it come back
                    live.update(Text(f"the queue server does not answer: {down}", "bold red"), refresh=True)
                await asyncio.sleep(every)

    async def work(queue: Queue) -> None:
        task = asyncio.ensure_future(showing(queue))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    on_queue(load_or_exit(config), work)


async def _tell(looker: Looker, rows: int, every: float, *, once: bool, json: bool) -> None:
    """To standard output: one look or, as JSON lines, one after the other."""
    while True:
        seen = await looker.look()
        if json:
            typer.echo(orjson.dumps(plain(seen, rows), option=orjson.OPT_INDENT_2 if once else None))
        else:
            console = Console(highlight=False)
            (console if console.is_terminal else Console(width=200, highlight=False)).print(sheet(seen, rows))
        if once:
            return
        await asyncio.sleep(every)
