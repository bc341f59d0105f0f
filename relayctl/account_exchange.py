"""``relayctl account import | export``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from config.accounts import AccountSettings
from config.schema import Problem, fit
from mailqueue.accounts import Change, plain
from mailqueue.queue import Queue
from relayctl import account_fields
from relayctl.account_change import lines
from relayctl.account_fields import HASHES, differences
from relayctl.account_register import Register, refuse, refuse_all
from relayctl.audit import Why
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import on_queue


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"


class Origin(StrEnum):
    QUEUE = "queue"
    FILE = "file"


def export(
    format: Annotated[
        Format, typer.Option(help="CSV: one column a field, an empty cell is the default.")
    ] = Format.JSON,
    with_hashes: Annotated[bool, typer.Option("--with-hashes", help="Password hashes, too: keep them secret.")] = False,
    origin: Annotated[
        Origin, typer.Option(help="Which accounts: those kept in the queue, or those of the file.")
    ] = Origin.QUEUE,
    config: PathOption = None,
) -> None:
    """Print accounts so that `import` makes the same ones."""
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        accounts: Sequence[AccountSettings] = register.stored.accounts
        if origin is Origin.FILE:
            accounts = loaded.settings.accounts
        if format is Format.CSV:
            typer.echo(account_fields.to_csv(accounts, with_hashes), nl=False)
        else:
            typer.echo(account_fields.to_json(accounts, with_hashes), nl=False)

    on_queue(loaded, work)


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON or CSV as `export` prints it; - = standard input.")
    ],
    format: Annotated[Format | None, typer.Option(help="Default: by the file's name, else JSON.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change accounts that are there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    reason: Why = "",
    config: PathOption = None,
) -> None:
    """Add (and with --replace change) accounts, all of them or none. Accounts that the file does not name stay; a row
    without a hash keeps the password that is there."""
    loaded = load_or_exit(config)
    rows = _rows(file, format or (Format.CSV if file.suffix == ".csv" else Format.JSON))

    async def work(queue: Queue) -> None:
        register = await Register.read(queue, loaded)
        accounts = _accounts(rows, register)
        changes, unchanged = [], 0
        for account in accounts.values():
            record = register.stored.get(account.name)
            if record and record.account == account:
                unchanged += 1
                continue
            changes.append(Change(account.name, record.revision if record else 0, account))
        known = [change.name for change in changes if change.revision]
        if known and not replace:
            refuse(f"there already, and different: {', '.join(known)}; --replace changes them")
        register.insist(accounts)
        if not dry_run:
            await register.commit(changes, "account import", reason)
        _tell(register, changes, unchanged, dry_run)

    on_queue(loaded, work)


def _rows(file: Path, format: Format) -> list[Mapping[str, Any]]:
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return account_fields.from_csv(content.decode()) if format is Format.CSV else account_fields.from_json(content)
    except OSError as error:
        refuse(f"{file}: {error.strerror}")
    except ValueError as error:
        refuse(f"{file}: {error}")


def _accounts(rows: Sequence[Mapping[str, Any]], register: Register) -> dict[str, AccountSettings]:
    """Place → account; exit 1 with everything that is wrong with any row."""
    accounts: dict[str, AccountSettings] = {}
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        at = f"[{index}]"
        record, kept = register.stored.get(str(row.get("name"))), {}
        if record and not any(key in row for key in HASHES):
            held = plain(record.account)
            kept = {key: held[key] for key in HASHES if key in held}
        account, wrong = fit(AccountSettings, {**row, **kept}, at)
        problems += wrong
        if account is not None and account.name in register.filed:
            problems.append(Problem(f"{at}.name", f"{account.name} is an account of the configuration file"))
        if account is not None:
            accounts[at] = account
    if problems:
        refuse_all(problems)
    return accounts


def _tell(register: Register, changes: Sequence[Change], unchanged: int, dry_run: bool) -> None:
    for change in changes:
        record = register.stored.get(change.name)
        typer.echo(f"{change.name}: {'changed' if record else 'added'}")
        for line in lines(differences(record.account if record else None, change.account)):
            typer.echo(line)
    added = sum(not change.revision for change in changes)
    typer.echo(
        f"{added} added, {len(changes) - added} changed, {unchanged} unchanged"
        + ("; dry run, nothing was done" if dry_run else "")
    )
