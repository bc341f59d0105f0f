"""``relayctl account hash``."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer
from argon2 import PasswordHasher, Type

app = typer.Typer(no_args_is_help=True)

SHORTEST = 12  # characters; machines use these passwords, nobody types them


@app.callback()
def account() -> None:
    """Accounts of submitting systems."""


def hasher() -> PasswordHasher:
    """argon2id with OWASP's smallest parameters (19 MiB, 2 passes, 1 lane): 20 ms a verification."""
    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)


@app.command("hash")
def hash_password(
    stdin: Annotated[bool, typer.Option("--stdin", help="Read one line from standard input, without asking.")] = False,
) -> None:
    """Print the argon2id hash of a password, for an account's password_hash."""
    password = read_password(stdin or not sys.stdin.isatty())
    if len(password) < SHORTEST:
        typer.echo(f"A password has at least {SHORTEST} characters.", err=True)
        raise typer.Exit(1)
    typer.echo(hasher().hash(password))


def read_password(from_pipe: bool) -> str:
    """One line of standard input, or asked twice without echo."""
    if from_pipe:
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        typer.echo("The two are not the same.", err=True)
        raise typer.Exit(1)
    return password
