"""``relayctl account credit | debit | transfer | replenish | test | statement`` and ``relayctl quota reconcile``."""

from __future__ import annotations

import asyncio
import csv
import datetime
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.table import Table
from rich.text import Text

from config.accounts import AccountSettings
from config.schema import nearest
from mailqueue.accounts import Change
from mailqueue.errors import QueueDown
from mailqueue.queue import Queue
from mailqueue.quota import Grant, IncidentSeen, Kind, Short, new_token
from mailqueue.statement import LAST_DAY, Reconciled, campaign_use, reconcile, statement
from relayctl.account_register import Register, refuse
from relayctl.audit import Why, actor, audited, record
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, Reason, _console, on_queue, said
from relayctl.quota_sheets import COLUMNS, plain, rows
from streams.connect import archive_of
from streams.past import ArchivedPast

PATIENCE_SECONDS = 10.0  # for an answer; a verb whose answer was lost is repeated under its token
T = TypeVar("T")
Work = Callable[[Queue, Register], Awaitable[None]]

Name = Annotated[str, typer.Argument(metavar="NAME", help="Account.")]
Amount = Annotated[int, typer.Argument(metavar="N", min=1, help="Recipients.")]
Day = Annotated[str, typer.Option(metavar="DAY", help="2026-11-25, by the clock of quota.timezone.")]

app = typer.Typer(no_args_is_help=True)
test_app = typer.Typer(no_args_is_help=True)


@app.callback()
def quota() -> None:
    """Quotas of all accounts."""


@test_app.callback()
def test() -> None:
    """Test mode: nothing is taken from the quota."""


def mount(account: typer.Typer) -> None:
    """The verbs of ``relayctl account`` that stand here."""
    for name, verb in (("credit", credit), ("debit", debit), ("transfer", transfer), ("replenish", replenish)):
        account.command(name)(verb)
    account.command("statement")(print_statement)
    account.add_typer(test_app, name="test")


def credit(name: Name, amount: Amount, reason: Reason, config: PathOption = None) -> None:
    """Add recipients to an account's quota."""
    _enter(name, "credit", amount, said(reason), config)


def debit(name: Name, amount: Amount, reason: Reason, config: PathOption = None) -> None:
    """Take recipients off an account's quota; exit 1 when it has fewer left."""
    _enter(name, "debit", -amount, said(reason), config)


def transfer(
    giver: Annotated[str, typer.Argument(metavar="FROM", help="Account.")],
    taker: Annotated[str, typer.Argument(metavar="TO", help="Its parent, child or sibling.")],
    amount: Amount,
    reason: Reason,
    config: PathOption = None,
) -> None:
    """Move recipients between two accounts of one family; both entries or none."""
    why = said(reason)

    async def work(queue: Queue, register: Register) -> None:
        one, other = find(register, giver), find(register, taker)
        if not family(one, other):
            refuse(f"{giver} and {taker} are not of one family: neither is the other's parent, nor have they the same")
        token = new_token()
        about = {"origin": "cli", "who": actor(), "reason": why}
        had = await _left(queue, giver), await _left(queue, taker)
        await repeat(lambda: queue.ledger.transfer(_grant(queue, one), _grant(queue, other), amount, token, **about))
        left = await _left(queue, giver), await _left(queue, taker)
        before, after = ({giver: one, taker: two} for one, two in (had, left))
        await record(queue, audited("account transfer", f"account:{giver}", why, before, after, amount))
        typer.echo(f"{giver}: {amount} recipients to {taker}, {left[0]} left")

    _on_register(config, work)


def replenish(
    name: Name,
    incident: Annotated[str, typer.Option(metavar="ID", help="What is made good; each once an account.")],
    amount: Annotated[int, typer.Argument(metavar="N", min=0, help="Recipients.", show_default=False)] = 0,
    all_: Annotated[bool, typer.Option("--all", help="All that was sent: of --from/--to, or of --campaign.")] = False,
    from_: Annotated[str, typer.Option("--from", metavar="DAY")] = "",
    to: Day = LAST_DAY,
    campaign: Annotated[str, typer.Option(metavar="NAME")] = "",
    reason: Reason = "incident",
    config: PathOption = None,
) -> None:
    """Give back what an incident cost: N recipients, or --all that was sent in a period or a campaign."""
    if bool(amount) == all_:
        refuse("say how many recipients, or --all")
    if campaign and (from_ or to != LAST_DAY):
        refuse("a period or a campaign, not both")
    first, last, why = _day(from_), _day(to), said(reason)

    async def work(queue: Queue, register: Register) -> None:
        one, count = find(register, name), amount
        if all_ and campaign:
            past = ArchivedPast(archive_of(register.loaded.settings))
            sent = await campaign_use(queue.ledger, name, campaign, past)
            if sent is None:
                refuse(f"{name}: the events of its campaigns are not all kept any more; say how many recipients")
            count = sent
        elif all_:
            count = (await statement(queue.ledger, name, queue.quota.timezone, first, last)).used
        if not count:
            refuse(f"{name} sent nothing there")
        await _entered(queue, one, "replenish", count, incident=" ".join(incident.split()), reason=why)

    _on_register(config, work)


@test_app.command("on")
def test_on(name: Name, reason: Why = "", config: PathOption = None) -> None:
    """From now on nothing is taken."""
    _test(name, True, reason, config)


@test_app.command("off")
def test_off(name: Name, reason: Why = "", config: PathOption = None) -> None:
    """From now on recipients are taken again."""
    _test(name, False, reason, config)


def _test(name: str, on: bool, reason: str, config: PathOption) -> None:
    async def work(queue: Queue, register: Register) -> None:
        record = register.changeable(name)
        new = record.account.model_copy(update={"test": on})
        verb = "test on" if on else "test off"
        await register.commit([Change(name, record.revision, new)], f"account {verb}", reason)
        await _entered(queue, new, "test", 0, reason=verb)

    _on_register(config, work)


def print_statement(
    name: Name,
    from_: Annotated[str, typer.Option("--from", metavar="DAY")] = "",
    to: Day = LAST_DAY,
    json: JsonOption = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Rows: day, kind, recipients, what is left, and why.")] = False,
    config: PathOption = None,
) -> None:
    """Entries and use between two days, with what was left before and after."""
    first, last = _day(from_), _day(to)

    async def work(queue: Queue, register: Register) -> None:
        find(register, name)
        found = await statement(queue.ledger, name, queue.quota.timezone, first, last)
        if json:
            typer.echo(orjson.dumps(plain(found), option=orjson.OPT_INDENT_2))
        elif csv_:
            csv.writer(sys.stdout, lineterminator="\n").writerows([COLUMNS, *rows(found)])
        else:
            table = Table(*COLUMNS, box=None, pad_edge=False)
            for row in rows(found):
                table.add_row(*map(Text, row))
            _console().print(table)

    _on_register(config, work)


@app.command("reconcile")
def reconcile_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Account; all without.")] = "",
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Compare entries, ledger, bags, use and events of each account; exit 1 when they differ."""

    loaded = load_or_exit(config)
    past = ArchivedPast(archive_of(loaded.settings))

    async def work(queue: Queue) -> None:
        found = await reconcile(queue.ledger, [name] if name else await queue.ledger.accounts(), past)
        if json:
            typer.echo(orjson.dumps([_figures(one) for one in found], option=orjson.OPT_INDENT_2))
        elif found:
            table = Table(*_figures(found[0]), box=None, pad_edge=False)
            for one in found:
                table.add_row(*("–" if figure is None else str(figure) for figure in _figures(one).values()))
            _console().print(table)
        if not all(one.agrees for one in found):
            raise typer.Exit(1)

    on_queue(loaded, work)


def _figures(one: Reconciled) -> dict[str, Any]:
    facts = {slot: getattr(one, slot) for slot in one.__slots__ if slot != "sum"}
    return facts | {"difference": one.difference, "agrees": one.agrees}


def find(register: Register, name: str) -> AccountSettings:
    """The account, of the file or of the queue; exit 1 when there is none."""
    everybody = {record.account.name: record.account for record in register.stored.records} | register.filed
    if name not in everybody:
        refuse(f"no account {name}{nearest(name, list(everybody))}")
    return everybody[name]


def family(one: AccountSettings, other: AccountSettings) -> bool:
    """Parent and child, or children of one parent."""
    if one.name == other.name:
        return False
    siblings = one.parent is not None and one.parent == other.parent
    return siblings or one.parent == other.name or other.parent == one.name


async def repeat(verb: Callable[[], Awaitable[T]]) -> T:
    """Until there is an answer: every verb of the ledger may be repeated."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await verb()
        except QueueDown:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(0.2)


def _enter(name: str, kind: Kind, amount: int, reason: str, config: PathOption) -> None:
    async def work(queue: Queue, register: Register) -> None:
        await _entered(queue, find(register, name), kind, amount, reason=reason)

    _on_register(config, work)


async def _entered(queue: Queue, account: AccountSettings, kind: Kind, amount: int, **about: str) -> None:
    if account.quota == "none" and kind != "test":
        typer.echo(f'{account.name} has no quota: set quota = "bag" or "monthly"', err=True)
    token = new_token()
    words = {"origin": "cli", "who": actor(), **about}
    had = await _left(queue, account.name)
    await repeat(lambda: queue.ledger.enter(_grant(queue, account), kind, amount, token, **words))
    left = await _left(queue, account.name)
    if kind != "test":  # the account's own change has said it
        before, after = {"left": had}, {"left": left, **{key: about[key] for key in ("incident",) if key in about}}
        await record(
            queue, audited(f"account {kind}", f"account:{account.name}", about["reason"], before, after, abs(amount))
        )
    typer.echo(f"{account.name}: {kind} {amount:+}, {left} recipients left")


def _grant(queue: Queue, account: AccountSettings) -> Grant:
    return Grant.of(account, time.time(), queue.quota.timezone)


async def _left(queue: Queue, name: str) -> int:
    """Wherever they lie."""
    return (await statement(queue.ledger, name, queue.quota.timezone)).closing


def _day(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no day; write 2026-11-25") from None


def _on_register(config: PathOption, work: Work) -> None:
    loaded = load_or_exit(config)

    async def session(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        try:
            await work(queue, register)
        except Short as short:
            refuse(f"nothing was changed: {short}")
        except IncidentSeen:
            refuse("nothing was changed: the account was given back what this incident cost")

    on_queue(loaded, session)
