"""``relayctl account add | set | rotate``."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import orjson
import typer

from config.accounts import AccountSettings
from config.durations import seconds
from config.schema import fit
from mailqueue.accounts import Change, Record, plain
from mailqueue.queue import Queue
from relayctl.account_fields import FIELDS, differences, edited, is_flag, is_list, raw
from relayctl.account_register import Register, refuse, refuse_all
from relayctl.audit import Why
from relayctl.config import PathOption, load_or_exit
from relayctl.passwords import generated, hasher, read_password
from relayctl.queue import on_queue

Name = Annotated[str, typer.Argument(metavar="NAME", help="Account.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
FromPipe = Annotated[bool, typer.Option("--password-stdin", help="Read the password: one line of standard input.")]
Generate = Annotated[bool, typer.Option("--password", help="Make a password though there are networks.")]


def _with_fields(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb an option for every field of an account but its name; what was written reaches it as `fields`."""

    def called(**words: Any) -> None:
        fields = {key: words.pop(f"field_{key}") for key in FIELDS if key != "name"}
        verb(**words, fields={key: value for key, value in fields.items() if value not in (None, [])})

    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "fields"]
    added = []
    for key, field in FIELDS.items():
        if key == "name":
            continue
        flag = "--" + key.replace("_", "-")
        kind: Any = bool | None if is_flag(key) else list[str] | None if is_list(key) else str | None
        spelled = f"{flag}/--no-{flag[2:]}" if is_flag(key) else flag
        option = typer.Option(spelled, help=field.description or "", show_default=False)
        parameter = inspect.Parameter(
            f"field_{key}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
        )
        added.append(parameter)
    called.__doc__, called.__name__ = verb.__doc__, verb.__name__
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


@_with_fields
def add(
    name: Name,
    fields: dict[str, Any],
    password_stdin: FromPipe = False,
    password: Generate = False,
    reason: Why = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Make an account. Without networks it gets a password, which is printed once and never again."""
    loaded = load_or_exit(config)
    secret = ""
    if password_stdin:
        secret = read_password(True)
    elif password or not (fields.get("networks") or fields.get("password_hash")):
        secret = generated()
    data: dict[str, Any] = {key: _value(key, value) for key, value in fields.items()}
    if secret:
        data["password_hash"] = hasher().hash(secret)
    account, problems = fit(AccountSettings, {"name": name, **data}, name)
    if account is None or problems:
        refuse_all(problems)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        if name in register.filed or register.stored.get(name):
            where = "of the configuration file" if name in register.filed else "already"
            refuse(f"{name} is an account {where}")
        register.insist({name: account})
        version = await register.commit([Change(name, 0, account)], "account add", reason)
        shown = "" if password_stdin else secret
        _tell("added", None, account, version, json, shown)

    on_queue(loaded, work)


def set_(
    name: Name,
    assignments: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE…", help="key= is the default; lists += and -=.")
    ],
    reason: Why = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Change fields of an account; relayd takes them over at the next mail."""
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        old = register.changeable(name)
        new, problems = edited(old.account, assignments)
        if new is None or problems:
            refuse_all(problems)
        await change(register, old, new, ("account set", "changed", reason), json)

    on_queue(loaded, work)


def rotate(
    name: Name,
    overlap: Annotated[
        str, typer.Option(help="How long the old password counts beside the new one; 0 = not at all.")
    ] = "24h",
    password_stdin: FromPipe = False,
    reason: Why = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Give an account a new password, printed once; the old one counts for a while."""
    loaded = load_or_exit(config)
    try:
        length = float(str(seconds(overlap)))
        until = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=length)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from None
    secret = read_password(True) if password_stdin else generated()

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        old = register.changeable(name)
        if old.account.password_hash is None:
            refuse(f"{name} has no password; give it one: relayctl account set {name} password_hash=…")
        data = plain(old.account)
        if old.account.previous_hash and old.account.hashes(until.timestamp() - length)[1:]:
            typer.echo(f"{name}: the password before the old one stops now", err=True)
        data |= {
            "password_hash": hasher().hash(secret),
            "previous_hash": data["password_hash"],
            "previous_until": until,
        }
        if not length:
            del data["previous_hash"], data["previous_until"]
        new, problems = fit(AccountSettings, data, name)
        if new is None:
            refuse_all(problems)
        await change(register, old, new, ("account rotate", "rotated", reason), json, "" if password_stdin else secret)

    on_queue(loaded, work)


async def change(
    register: Register,
    old: Record,
    new: AccountSettings,
    what: tuple[str, str, str],
    json: bool = False,
    secret: str = "",
) -> None:
    """Puts the new account in the old one's place and says what became different; nothing happens without a difference.
    ``what``: the verb, what it has done ("changed"), and why."""
    verb, done, reason = what
    if new == old.account:
        _tell("unchanged", old.account, new, register.stored.version, json)
        return
    register.insist({new.name: new})
    version = await register.commit([Change(new.name, old.revision, new)], verb, reason)
    _tell(done, old.account, new, version, json, secret)


def _value(key: str, value: Any) -> object:
    if isinstance(value, list):
        return [part for each in value for part in raw(key, each)]  # type: ignore[attr-defined]
    return value


def _tell(
    done: str, old: AccountSettings | None, new: AccountSettings, version: int, json: bool, secret: str = ""
) -> None:
    found = differences(old, new)
    if json:
        changes = {key: {"before": before, "after": after} for key, (before, after) in found.items()}
        record = {"name": new.name, "done": done, "version": version, "changes": changes}
        typer.echo(orjson.dumps(record | ({"password": secret} if secret else {}), option=orjson.OPT_INDENT_2))
        return
    typer.echo(f"{new.name}: {done}")
    for line in lines(found):
        typer.echo(line)
    if secret:
        typer.echo(f"  password (shown once): {secret}")


def lines(found: dict[str, tuple[str, str]]) -> list[str]:
    return [f"  {key}: {before} → {after}" for key, (before, after) in found.items()]
