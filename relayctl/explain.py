"""``relayctl explain``, ``relayctl queue explain``: why a recipient is not delivered yet, or what became of it.

Exit 0 when something is known of it, 1 when nothing is (or no queue server), 2 for what is no id and no address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from config.load import Loaded
from mailqueue.entries import Entries, Row
from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.selection import Selection
from relayctl.config import PathOption, load_or_exit
from relayctl.explain_facts import Facts, Witness
from relayctl.explain_past import ended, outcome, past
from relayctl.explain_words import Explained, explained, replies, reply
from relayctl.queue import JsonOption, app, on_queue, print_json
from relayctl.queue_list import plain_row
from relayctl.sheets import age, clock

MOST = 200  # recipients that are explained one by one


@app.command()
def explain(
    id: Annotated[str, typer.Argument(metavar="[ID]", help="Message id, as in `250 queued as`.")] = "",
    recipient: Annotated[
        str, typer.Option("--recipient", metavar="ADDRESS", help="Mail to this address, or that recipient of ID alone.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many recipients at most.")] = MOST,
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Per recipient: where it is, why it is not delivered yet, which limit binds, when it is tried next and what that
    waits for, from which source and why that one, and the last three replies."""
    if not id and not recipient:
        raise typer.BadParameter("say which message: ID, or --recipient ADDRESS")
    if (id and not (id.isascii() and id.isalnum())) or (recipient and "@" not in recipient):
        raise typer.BadParameter(f"{id or recipient!r} is no message id, or no address")
    loaded = load_or_exit(config)
    wanted = Selection((id,) if id else (), recipient)
    try:
        on_queue(loaded, lambda queue: _explain(queue, loaded, wanted, limit, json))
    except OSError as error:  # the certificate of a route's authority
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@dataclass(frozen=True, slots=True)
class Answer:
    """``open``: recipients in the queue; ``gone``: how the others ended, as far as the events are kept."""

    open: Sequence[tuple[Facts, Explained]]
    gone: Sequence[Event]
    events: Sequence[Event]
    more: bool

    def plain(self) -> list[dict[str, Any]]:
        return [_plain(*one) for one in self.open] + [_plain_gone(one, self.events) for one in self.gone]


async def answer(queue: Queue, loaded: Loaded, wanted: Selection, limit: int = MOST) -> Answer:
    """Raises QueueDown."""
    rows = await Entries(queue.shards, wanted).oldest(limit + 1)
    events = await past(queue, loaded, wanted.ids[0] if wanted.ids else "", wanted.recipient)
    witness = Witness(queue, loaded)
    open_: list[tuple[Facts, Explained]] = []
    for row in rows[:limit]:
        facts = await witness.facts(row, [one for one in events if _about(one, row)])
        open_.append((facts, explained(facts)))
    here = {(row.entry.id, row.entry.index) for row in rows}
    gone = [event for event in ended(events) if (event.id, event.index) not in here]
    return Answer(open_, gone, events, len(rows) > limit)


async def _explain(queue: Queue, loaded: Loaded, wanted: Selection, limit: int, json: bool) -> None:
    found = await answer(queue, loaded, wanted, limit)
    if json:
        print_json({"recipients": found.plain()})
    else:
        _tell(found)
    if not found.open and not found.gone:
        what = wanted.ids[0] if wanted.ids else wanted.recipient
        typer.echo(f"{what}: neither in the queue nor in the events that are kept", err=True)
        raise typer.Exit(1)


def _about(event: Event, row: Row) -> bool:
    return event.id == row.entry.id and event.index == row.entry.index


def _plain(facts: Facts, said: Explained) -> dict[str, Any]:
    return plain_row(facts.row) | said.plain(facts)


def _plain_gone(event: Event, events: Sequence[Event]) -> dict[str, Any]:
    mine = [one for one in events if (one.id, one.index, one.recipient) == (event.id, event.index, event.recipient)]
    about = {"id": event.id, "index": event.index, "recipient": event.recipient, "account": event.account}
    about |= {"campaign": event.campaign, "class": event.class_, "destination": event.destination}
    why = [{"code": event.kind, "text": outcome(event)}]
    last = [reply(one) for one in replies(mine)]
    return about | {"state": event.kind, "at": event.at, "why": why, "next_at": 0, "waits_for": "", "replies": last}


def _tell(found: Answer) -> None:
    for facts, said in found.open:
        typer.echo("\n".join([*lines(facts, said), ""]))
    gone = found.gone
    for event in gone[:MOST]:
        typer.echo(f"{event.recipient} – {event.kind}" + (f"  ({event.id}/{event.index})" if event.id else ""))
        typer.echo(f"  {outcome(event)}")
    if len(gone) > MOST:
        counts = Counter(event.kind for event in gone[MOST:])
        typer.echo("and " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    if found.more:
        typer.echo("there are more: --limit, or --recipient for one of them", err=True)


def lines(facts: Facts, said: Explained) -> list[str]:
    """One recipient for a terminal."""
    row, flow = facts.row, facts.row.entry.flow
    envelope = row.envelope
    since = f", {age((facts.now - envelope.received_at) / 1000)} old" if envelope is not None else ""
    head = f"{row.recipient or '?'} – {row.place}{since}  ({row.entry.id}/{row.entry.index})"
    about = f"account {flow.account}, " + (f"campaign {flow.campaign}, " if flow.campaign else "")
    found = [head, f"  {about}{flow.class_}, provider {row.entry.group}"]
    for place, reason in enumerate(said.reasons):
        found.append(f"  {'why' if not place else '   '}     {reason.text}")
    when = f"not before {clock(said.next_at)}" if said.next_at > facts.now else "now" if said.next_at else "not known"
    found.append(f"  next    {when}, waits for {said.waits_for}")
    if envelope is not None:
        found.append(f"  until   {clock(envelope.expires_at)}, then it is given up (expired)")
    found.append(f"  from    {said.source}")
    for place, event in enumerate(replies(facts.history)):
        text = event.diagnostic_code.removeprefix("smtp; ").removeprefix("x-tambo; ") or event.kind
        where = " ".join(filter(None, (event.remote_mta, event.source and f"from {event.source}")))
        found.append(
            f"  {'replies' if not place else '       '} {clock(event.at)} {event.kind}: {text} {where}".rstrip()
        )
    return found
