"""``relayctl queue hold | release | retry | bounce | remove``: one thing done to all recipients that are selected.

Exit 0 when it was done to at least one (with --dry-run: when there is one), 1 when to none, when an id is not in the
queue or the server went away, 2 for what cannot be meant.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from delivery.notify import failed_by_hand, record_of
from mailqueue.entries import Entries
from mailqueue.message import Envelope
from mailqueue.queue import Queue
from mailqueue.quota import Charge, charge_of
from mailqueue.reading import envelopes
from mailqueue.selection import HELD, QUEUED, STATES, Selection
from mailqueue.withdrawal import IN_HAND, Hand, Withdrawal
from relayctl.account_register import Register
from relayctl.asking import interruptible
from relayctl.audit import actor, audited, record
from relayctl.config import PathOption, load_or_exit
from relayctl.progress import progress
from relayctl.queue import JsonOption, Reason, _console, app, on_queue, print_json, said
from relayctl.queue_list import plain_row, table_of
from relayctl.queue_select import known, selecting
from relayctl.spans import span

ASK_ABOVE = 1000
SAMPLE = 10
PAUSE_SECONDS = 0.5  # before what workers had in hand is looked for again

DryRun = Annotated[bool, typer.Option("--dry-run", help="Count, show some, change nothing.")]
Wait = Annotated[
    str, typer.Option("--wait", metavar="DURATION", help="Look again for what workers have in hand, for so long.")
]
Yes = Annotated[bool, typer.Option("--yes", help=f"Do not ask, though there are more than {ASK_ABOVE:,}.")]
All = Annotated[bool, typer.Option("--all", help="Everything in the queue, where nothing else is said.")]


@dataclass(frozen=True, slots=True)
class Order:
    """What the operator wants done, to what, and how careful to be."""

    withdrawal: Withdrawal
    selection: Selection
    all: bool
    dry_run: bool
    wait: float  # seconds
    yes: bool
    json: bool
    config: Path | None
    refund: bool = False

    @property
    def verb(self) -> str:
        return _NAMES[self.withdrawal.kind or self.withdrawal.verb][0]

    @property
    def done(self) -> str:
        return _NAMES[self.withdrawal.kind or self.withdrawal.verb][1]


_NAMES = {
    "held": ("hold", "held"),
    "released": ("release", "released"),
    "retry": ("retry", "made due"),
    "bounced": ("bounce", "bounced"),
    "removed": ("remove", "removed"),
}


@app.command()
@selecting
def hold(
    selection: Selection,
    reason: Reason,
    all_: All = False,
    dry_run: DryRun = False,
    wait: Wait = "",
    yes: Yes = False,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Take recipients out of delivery and keep them until they are released; their time to live goes on."""
    withdrawal = Withdrawal("hold", "held", said(reason), actor=actor())
    _carry_out(Order(withdrawal, selection, all_, dry_run, patience(wait), yes, json, config))


@app.command()
@selecting
def release(
    selection: Selection,
    reason: Reason,
    all_: All = False,
    dry_run: DryRun = False,
    wait: Wait = "",
    yes: Yes = False,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Put held recipients back, due at once."""
    withdrawal = Withdrawal("release", "released", said(reason), actor=actor())
    _carry_out(Order(withdrawal, selection, all_, dry_run, patience(wait), yes, json, config))


@app.command()
@selecting
def retry(
    selection: Selection,
    reason: Reason,
    all_: All = False,
    dry_run: DryRun = False,
    wait: Wait = "",
    yes: Yes = False,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Make recipients due now. What is suspended stays so, and it is said: resume it, too."""
    withdrawal = Withdrawal("retry", reason=said(reason), actor=actor())
    _carry_out(Order(withdrawal, selection, all_, dry_run, patience(wait), yes, json, config))


@app.command()
@selecting
def bounce(
    selection: Selection,
    reason: Reason,
    all_: All = False,
    dry_run: DryRun = False,
    wait: Wait = "",
    yes: Yes = False,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Give recipients up: event `bounced` with 5.3.0 and the reason, and a DSN where the account wants any."""
    why = said(reason)
    diagnostic = f"x-tambo; given up by the operator: {why}"
    withdrawal = Withdrawal("close", "bounced", why, "failed", "5.3.0", diagnostic, actor())
    _carry_out(Order(withdrawal, selection, all_, dry_run, patience(wait), yes, json, config))


@app.command()
@selecting
def remove(
    selection: Selection,
    reason: Reason,
    refund: Annotated[
        bool, typer.Option("--refund", help="Give what was taken for them back to their account's quota.")
    ] = False,
    all_: All = False,
    dry_run: DryRun = False,
    wait: Wait = "",
    yes: Yes = False,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Forget recipients: event `removed`, no DSN. They stay paid for unless --refund."""
    withdrawal = Withdrawal("suppress" if refund else "close", "removed", said(reason), actor=actor())
    _carry_out(Order(withdrawal, selection, all_, dry_run, patience(wait), yes, json, config, refund))


# ── what they share ────────────────────────────────────────────────────────────────────────────────────────────────


def patience(text: str) -> float:
    """Seconds of --wait; BadParameter for what is no duration."""
    return span(text) if text else 0.0


def _carry_out(order: Order) -> None:
    selection = order.selection
    if selection == Selection() and not order.all:
        raise typer.BadParameter("say which: ids, options like --destination or --campaign, or --all")
    if selection != Selection() and order.all:
        raise typer.BadParameter("--all and a selection contradict each other")
    if order.verb == "release" and not selection.looks_at(HELD):
        raise typer.BadParameter("only what is held can be released: leave --state away")
    loaded = load_or_exit(order.config)
    known(selection, loaded)

    async def work(queue: Queue) -> None:
        missing = await _missing(queue, selection.ids)
        entries = Entries(queue.shards, selection)
        with progress("counting", None) as seen:
            count = await entries.counted(seen)
        if order.dry_run:
            await _rehearse(order, entries, count)
        elif count:
            _ask(order, count)
            charge = await _charges(queue, loaded) if order.refund else (lambda _envelope: None)
            missing += not await _do(queue, order, entries, count, charge)
        else:
            typer.echo("nothing is selected", err=True)
        if missing or not count:
            raise typer.Exit(1)

    on_queue(loaded, work)


async def _do(queue: Queue, order: Order, entries: Entries, count: int, charge: Any) -> int:
    """Said before, done page by page, said after: see :mod:`relayctl.audit`."""
    verb, subject, why = f"queue {order.verb}", str(order.selection), order.withdrawal.reason
    hand = Hand(order.withdrawal, failed_by_hand(why) if order.verb == "bounce" else record_of, charge)
    await record(queue, audited(verb, subject, why, {"selected": count}, count=count))
    try:
        with progress(verb, count) as seen:
            await _pass(order, hand, entries, seen)
        await _again(queue, order, hand, count)
    finally:
        _tell(order, hand, count)
    after = {order.done: hand.done, **({"left": dict(hand.left)} if hand.left else {})}
    await record(queue, audited(verb, subject, why, {"selected": count}, after, hand.done))
    return hand.done


async def _pass(order: Order, hand: Hand, entries: Entries, seen: Callable[[int], None]) -> None:
    async for rows in entries.rows(last=QUEUED if order.verb == "hold" else HELD):
        await hand.apply(rows)
        seen(len(rows))


async def _again(queue: Queue, order: Order, hand: Hand, count: int) -> None:
    """What workers had in hand comes back, or is final; the first pass has counted the others that were left. One that
    came back during the pass may have been met nowhere (:mod:`mailqueue.scan`): then there were fewer than counted."""
    missed = hand.done + hand.left.total() < count
    deadline, left = asyncio.get_running_loop().time() + order.wait, Counter(hand.left)
    where = order.selection.states or frozenset(STATES)
    rest = replace(order.selection, states=where - {HELD} if order.verb == "hold" else where)
    while (left[IN_HAND] or missed) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(PAUSE_SECONDS)
        hand.left.clear()
        before = hand.done
        await _pass(order, hand, Entries(queue.shards, rest), lambda _count: None)
        left[IN_HAND] = hand.left[IN_HAND]
        missed = hand.done > before
        hand.left = +left


def _tell(order: Order, hand: Hand, count: int) -> None:
    """The summary; also of what was done before the server went away."""
    stops = sorted(hand.stops, key=lambda stop: stop.key)
    if order.json:
        facts = {"verb": order.verb, "selected": count, "done": hand.done, "left": dict(hand.left)}
        waiting = [{"key": stop.key, "until": stop.until, "reason": stop.reason} for stop in stops]
        print_json(facts | {"suspended": hand.suspended, "stops": waiting, "dry_run": False})
        return
    typer.echo(f"{order.done} {hand.done:,} of {count:,} recipients")
    for why, number in sorted(hand.left.items()):
        typer.echo(f"  left as they are: {number:,} {why}")
    if hand.suspended:
        keys = ", ".join(stop.key for stop in stops)
        typer.echo(f"  {hand.suspended:,} of them still wait: suspended {keys}; `relayctl queue resume` ends that")


async def _rehearse(order: Order, entries: Entries, count: int) -> None:
    rows = await entries.oldest(SAMPLE)
    if order.json:
        facts = {"verb": order.verb, "selected": count, "done": 0, "dry_run": True}
        print_json(facts | {"sample": [plain_row(row) for row in rows]})
        return
    typer.echo(
        f"would be {order.done}: {count:,} recipients, as far as no worker has them" + (", for example" * bool(count))
    )
    if rows:
        _console().print(table_of(rows))


def _ask(order: Order, count: int) -> None:
    if count > ASK_ABOVE and not order.yes and _at_a_terminal():
        with interruptible():
            typer.confirm(f"{order.verb} {count:,} recipients?", abort=True, err=True)


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


async def _missing(queue: Queue, ids: tuple[str, ...]) -> int:
    """How many of the ids are not in the queue, each said."""
    if not ids:
        return 0
    found = {one for shard in queue.shards for one in await envelopes(shard, ids)}
    for one in ids:
        if one not in found:
            typer.echo(f"{one}: not in the queue; the events say what became of it", err=True)
    return len(ids) - len(found)


async def _charges(queue: Queue, loaded: Any) -> Any:
    """Message → whose quota gets a recipient back."""
    register = await Register.read(queue, loaded)
    accounts = {one.name: one for one in (*register.stored.accounts, *register.filed.values())}

    def charge(envelope: Envelope) -> Charge | None:
        return charge_of(envelope, queue.quota.timezone, accounts.get(envelope.account))

    return charge
