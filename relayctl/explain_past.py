"""What the events say of a message or an address: what became of it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from config.load import Loaded
from mailqueue.events import Event
from mailqueue.queue import Queue
from relayctl.sheets import clock
from streams.archive import Archive
from streams.history import history

MOST_EVENTS = 20_000
FINAL = ("delivered", "bounced", "expired", "unknown", "removed", "suppressed", "rejected", "late")
_QUOTA = {
    "quota": "; `relayctl account statement {account}` says what was used and what is left",
    "rate": "; its rates stand in `relayctl account show {account}`, the client may send it again later",
}


async def past(queue: Queue, loaded: Loaded, id: str, recipient: str) -> list[Event]:
    """Everything about it, oldest first; what the streams have, where the archive cannot be read. Raises QueueDown."""
    directory = loaded.settings.archive.directory
    wanted: dict[str, Any] = {"id": id, "recipient": recipient, "limit": MOST_EVENTS}
    try:
        return await history(queue.shards, Archive(Path(directory)) if directory else None, **wanted)
    except OSError as error:
        typer.echo(f"without the archive: {error}", err=True)
        return await history(queue.shards, None, **wanted)


def ended(events: Sequence[Event]) -> list[Event]:
    """The event that ended each recipient, by message and place; of one that was refused at the door, each refusal."""
    found: dict[tuple[str, int | None, str, int], Event] = {}
    for event in events:
        if event.kind in FINAL and event.kind != "late":
            found[event.id, event.index, event.recipient, event.at if event.kind == "rejected" else 0] = event
    return sorted(found.values(), key=lambda event: (event.id, -1 if event.index is None else event.index, event.at))


def outcome(event: Event) -> str:
    """One sentence: what became of it, when and by whom."""
    said = event.diagnostic_code.removeprefix("smtp; ").removeprefix("x-tambo; ")
    to = f" to {event.remote_mta}" if event.remote_mta else ""
    source = f" from {event.source}" if event.source else ""
    by = f" by {event.actor}" if event.actor else ""
    match event.kind:
        case "delivered":
            return f"delivered {clock(event.at)}{to}{source}, at attempt {event.attempt or 1}: {said}"
        case "bounced" if event.actor:
            return f"given up {clock(event.at)}{by}: {event.reason}"
        case "bounced":
            return f"refused for good {clock(event.at)}{to}{source}: {said}"
        case "expired":
            return f"given up {clock(event.at)}, its time was over (4.4.7); the last reply was: {said or 'none'}"
        case "removed":
            back = ", and given back to the quota" if event.refunded else ""
            return f"removed {clock(event.at)}{by}: {event.reason}{back}"
        case "unknown":
            return f"perhaps delivered {clock(event.at)}{to}: the reply to the final dot was lost ({event.reason})"
        case "suppressed":
            return f"not sent {clock(event.at)}: the address is on a suppression list ({event.reason})"
        case "rejected":
            more = _QUOTA.get(event.reason, "").format(account=event.account or "NAME")
            client = f" from {event.client}" if event.client else ""
            return f"refused at submission {clock(event.at)}{client}, so it never was in the queue: {said}{more}"
        case kind:
            return f"{kind} {clock(event.at)}"
