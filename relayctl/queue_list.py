"""``relayctl queue list``: selected recipients, the oldest first."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from mailqueue import keys
from mailqueue.entries import Entries, Row
from mailqueue.message import born
from mailqueue.queue import Queue
from mailqueue.selection import HELD, QUEUED, Selection
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, _console, app, on_queue, print_json
from relayctl.queue_select import known, selecting
from relayctl.sheets import age, clock

_PLACE = re.compile(r"([0-9a-z]{1,40})/(\d{1,5})")


@app.command("list")
@selecting
def list_(
    selection: Selection,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="So many at most.")] = 50,
    after: Annotated[
        str, typer.Option(metavar="ID/INDEX", help="Those behind this one: the next page, as the last one says.")
    ] = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Recipients in the queue, the oldest first; exit 1 when there are none."""
    loaded, start = load_or_exit(config), _key(after)
    known(selection, loaded)

    async def work(queue: Queue) -> None:
        rows = await Entries(queue.shards, selection).oldest(limit + 1, start)
        more, rows = rows[limit:], rows[:limit]
        following = f"{rows[-1].entry.id}/{rows[-1].entry.index}" if more else ""
        if json:
            print_json({"recipients": [plain_row(row) for row in rows], "after": following})
        elif rows:
            _console().print(table_of(rows))
        if following and not json:
            typer.echo(f"there are more: --after {following}", err=True)
        if not rows:
            typer.echo("nothing is selected", err=True)
            raise typer.Exit(1)

    on_queue(loaded, work)


def _key(text: str) -> bytes:
    found = _PLACE.fullmatch(text)
    if text and (found is None or int(found[2]) > 0xFFFF):
        raise typer.BadParameter(f"{text!r} is no place in the list; write ID/INDEX as the last page said")
    return keys.item(found[1], int(found[2])) if found else b""


def plain_row(row: Row) -> dict[str, Any]:
    """As JSON; times in Unix ms, ``next_at`` 0 = nobody knows: it is held or a worker has it."""
    entry, flow = row.entry, row.entry.flow
    return {
        "id": entry.id,
        "index": entry.index,
        "recipient": row.recipient,
        "received_at": received(row),
        "account": flow.account,
        "campaign": flow.campaign,
        "class": flow.class_,
        "destination": entry.destination,
        "provider": entry.group,
        "state": row.place,
        "attempts": row.state.attempts,
        "next_at": entry.due if entry.place == QUEUED else 0,
        "last_reply": row.state.reply,
        "last_source": row.state.source,
        "last_at": row.state.at,
    }


def received(row: Row) -> int:
    if row.envelope is not None:
        return row.envelope.received_at
    try:
        return born(row.entry.id)
    except ValueError:
        return 0


def table_of(rows: Sequence[Row]) -> Table:
    now = time.time()
    columns = ("id", "", "recipient", "age", "account", "campaign", "class", "provider", "state", "tries", "next")
    table = Table(*columns, "last reply", box=None, pad_edge=False)
    for row in rows:
        entry, flow = row.entry, row.entry.flow
        due = "–" if entry.place != QUEUED else "now" if entry.due <= now * 1000 else clock(entry.due)
        names = (entry.id, str(entry.index), row.recipient or "?", age(now - received(row) / 1000))
        about = (flow.account, flow.campaign or "–", flow.class_, entry.group, row.place)
        why = row.state.reply or (entry.note.decode(errors="replace").rpartition("\n")[2] if row.place == HELD else "")
        table.add_row(*map(Text, (*names, *about, str(row.state.attempts), due, why)))
    return table
