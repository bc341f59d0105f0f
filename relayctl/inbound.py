"""``relayctl inbound list | show``: mail that came back."""

from __future__ import annotations

import re
import time
from typing import Annotated

import orjson
import typer
from rich.table import Table
from rich.text import Text

from mailqueue import inbound as returned
from mailqueue.inbound import Returned
from mailqueue.queue import Queue
from relayctl.config import PathOption, load_or_exit
from relayctl.plain import show as print_mail
from relayctl.queue import JsonOption, _console, on_queue

app = typer.Typer(no_args_is_help=True)

_ENTRY = re.compile(r"\d{1,20}-\d{1,20}")


@app.command("list")
def list_(
    count: Annotated[int, typer.Option("--count", min=1, help="How many, the newest first.")] = 50,
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """The mails kept, the newest first."""

    async def work(queue: Queue) -> None:
        table = Table("entry", "at", "client", "from", "to", "refers to", "octets", box=None)
        async for mail in returned.newest(queue.shards[0], count):
            if json:
                typer.echo(orjson.dumps(_row(mail)))
            for one in mail.addressees:
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mail.at / 1000))
                refers = f"{one.id} {one.index}" if one.index is not None else "–"
                words = (mail.entry, at, mail.client, f"<{mail.reverse_path}>", one.recipient, refers)
                table.add_row(*map(Text, words), str(len(mail.content)))
        if not json:
            _console().print(table)

    on_queue(load_or_exit(config), work)


@app.command()
def show(
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="As `relayctl inbound list` has it.")],
    config: PathOption = None,
) -> None:
    """One mail as it came, header and all."""
    if _ENTRY.fullmatch(entry) is None:
        raise typer.BadParameter(f"{entry!r} is no entry; write one of `relayctl inbound list`")

    async def work(queue: Queue) -> None:
        mail = await returned.find(queue.shards[0], entry)
        if mail is None:
            typer.echo(f"{entry}: not kept, or not any more", err=True)
            raise typer.Exit(1)
        print_mail(mail.content)

    on_queue(load_or_exit(config), work)


def _row(mail: Returned) -> dict[str, object]:
    return {
        "entry": mail.entry,
        "id": mail.id,
        "at": mail.at,
        "client": mail.client,
        "reverse_path": mail.reverse_path,
        "addressees": [{"recipient": one.recipient, "id": one.id, "index": one.index} for one in mail.addressees],
        "size": len(mail.content),
    }
