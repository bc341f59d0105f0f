"""Passwords of accounts: made, asked for, hashed."""

from __future__ import annotations

import getpass
import secrets
import sys

import typer
from argon2 import PasswordHasher, Type

SHORTEST = 12  # characters; machines use these passwords, nobody types them


def hasher() -> PasswordHasher:
    """argon2id with OWASP's smallest parameters (19 MiB, 2 passes, 1 lane): 20 ms a verification."""
    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)


def generated() -> str:
    """192 bits, in letters that no configuration file needs to quote."""
    return secrets.token_urlsafe(24)


def read_password(from_pipe: bool) -> str:
    """One line of standard input, or asked twice without echo; exit 1 when it is too short."""
    if from_pipe:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            typer.echo("The two are not the same.", err=True)
            raise typer.Exit(1)
    if len(password) < SHORTEST:
        typer.echo(f"A password has at least {SHORTEST} characters.", err=True)
        raise typer.Exit(1)
    return password
