"""``relayctl account``: hash, list, show, disable, enable, remove here; the verbs that write fields and files beside."""

from __future__ import annotations

import sys
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.accounts import AccountSettings
from mailqueue.accounts import Change, Record, plain
from mailqueue.queue import Queue
from relayctl import quota
from relayctl.account_change import JsonOption, Name, add, change, rotate, set_
from relayctl.account_exchange import export, import_
from relayctl.account_fields import FIELDS, spelled, value
from relayctl.account_register import Register, refuse
from relayctl.audit import Why
from relayctl.config import PathOption, load_or_exit
from relayctl.passwords import hasher, read_password
from relayctl.queue import on_queue
from relayctl.sheets import clock
from relayd.accounts import Accounts

app = typer.Typer(no_args_is_help=True)
app.command("add")(add)
app.command("set")(set_)
app.command("rotate")(rotate)
app.command("import")(import_)
app.command("export")(export)
quota.mount(app)


@app.callback()
def account() -> None:
    """Accounts of submitting systems."""


@app.command("hash")
def hash_password(
    stdin: Annotated[bool, typer.Option("--stdin", help="Read one line from standard input, without asking.")] = False,
) -> None:
    """Print the argon2id hash of a password, for an account's password_hash."""
    typer.echo(hasher().hash(read_password(stdin or not sys.stdin.isatty())))


@app.command("list")
def list_(config: PathOption = None, json: JsonOption = False) -> None:
    """All accounts, those of the configuration file first."""
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        everybody = [(one, None) for one in loaded.settings.accounts] + [
            (r.account, r) for r in register.stored.records
        ]
        states = _states(register)
        if json:
            rows = [_facts(one, record, states) for one, record in everybody]
            typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
            return
        table = Table("account", "origin", "state", "class", "pool", "comes from", "senders", box=None, pad_edge=False)
        for one, record in everybody:
            ways = [*one.networks, *([f"AUTH {one.login}"] if one.login else [])]
            origin = "queue" if record else "file"
            state = states.get(one.name, "") if record else ""
            words = (one.name, origin, state or ("disabled" if one.disabled else "active"), one.class_, one.pool)
            table.add_row(*map(Text, (*words, ", ".join(ways) or "–", ", ".join(one.senders) or "any")))
        console().print(table)

    on_queue(loaded, work)


@app.command()
def show(name: Name, config: PathOption = None, json: JsonOption = False) -> None:
    """One account: every field, where it is kept, who changed it last."""
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        record = None if name in register.filed else register.changeable(name)
        one = record.account if record else register.filed[name]
        facts = _facts(one, record, _states(register))
        if json:
            typer.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
            return
        table = Table.grid(padding=(0, 2))
        for key in FIELDS:
            written = value(one, key) != value(None, key)
            table.add_row(Text(key, style="bold" if written else "dim"), Text(spelled(value(one, key))))
        for key in ("origin", "left_out", "changed_at", "changed_by"):
            if key in facts:
                table.add_row(Text(key, style="bold"), Text(str(facts[key])))
        table.add_row(Text("queued", style="bold"), Text(f"{await register.queued(name)} recipients"))
        console().print(table)

    on_queue(loaded, work)


@app.command()
def disable(name: Name, reason: Why = "", config: PathOption = None, json: JsonOption = False) -> None:
    """Take nothing more from an account: AUTH fails, open sessions are refused at their next mail. What is queued
    goes on."""
    _switch(name, True, reason, config, json)


@app.command()
def enable(name: Name, reason: Why = "", config: PathOption = None, json: JsonOption = False) -> None:
    """Take mail from an account again."""
    _switch(name, False, reason, config, json)


@app.command()
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Though mail is queued, or other accounts name it as parent.")
    ] = False,
    reason: Why = "",
    config: PathOption = None,
) -> None:
    """Forget an account kept in the queue; its queued mail, if any, is still delivered."""
    loaded = load_or_exit(config)
    if not yes:
        typer.confirm(f"Remove account {name}?", abort=True)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        record = register.changeable(name, removing=True)
        queued, children = await register.queued(name), register.children(name)
        if queued and not force:
            refuse(f"{name}: {queued} recipients are queued; disable it until they are done, or --force")
        if children and not force:
            refuse(f"{name} is the parent of {', '.join(children)}; change them first, or --force")
        await register.commit([Change(name, record.revision, None)], "account remove", reason)
        typer.echo(f"{name}: removed" + (f"; {queued} queued recipients go on" if queued else ""))

    on_queue(loaded, work)


def _switch(name: str, disabled: bool, reason: str, config: PathOption, json: bool) -> None:
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        old = register.changeable(name)
        new = old.account.model_copy(update={"disabled": disabled})
        what = ("account disable", "disabled", reason) if disabled else ("account enable", "enabled", reason)
        await change(register, old, new, what, json)
        queued = await register.queued(name) if disabled else 0
        if queued:
            typer.echo(
                f"{queued} queued recipients go on; `relayctl queue suspend account:{name}` stops them", err=True
            )

    on_queue(loaded, work)


def _states(register: Register) -> dict[str, str]:
    """Accounts of the queue that contradict the file or an earlier one → why."""
    index = Accounts(register.loaded.settings.accounts)
    index.keep(register.stored.accounts)
    return {name: f"left out: {why}" for name, why in index.left_out.items()}


def _facts(one: AccountSettings, record: Record | None, states: dict[str, str]) -> dict[str, object]:
    """Secrets are told only as there or not."""
    facts: dict[str, object] = plain(one, secrets=False)
    facts |= {
        "password": one.password_hash is not None,
        "disabled": one.disabled,
        "class": one.class_,
        "pool": one.pool,
    }
    if record is None:
        return facts | {"origin": "file"}
    if one.name in states:
        facts["left_out"] = states[one.name].removeprefix("left out: ")
    changed = {"revision": record.revision, "changed_at": clock(record.changed_at), "changed_by": record.changed_by}
    return facts | {"origin": "queue"} | changed


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=400, highlight=False)
