"""The files that routes name: the smarthost's password, and the authorities of its certificate."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from config.schema import Problem
from config.settings import RouteSettings

MOST_PASSWORD = 4096  # bytes


def read(routes: Sequence[RouteSettings]) -> tuple[Mapping[str, SecretStr], list[Problem]]:
    """Route → its password, and what is wrong with any of the files."""
    passwords, problems = {}, []
    for index, route in enumerate(routes):
        at = f"routes[{index}]"
        if route.password_file:
            try:
                passwords[route.name] = SecretStr(_password(route.password_file))
            except (OSError, ValueError) as error:
                why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
                problems.append(Problem(f"{at}.password_file", f"{route.password_file}: {why}"))
        if route.ca_file:
            try:
                trust(route.ca_file)
            except OSError as error:
                problems.append(Problem(f"{at}.ca_file", f"{route.ca_file}: no authorities can be read: {error}"))
    return passwords, problems


def trust(ca_file: str | None) -> ssl.SSLContext:
    """Verifies the peer's certificate and name; 20 ms with the system's authorities. Raises OSError (SSLError)."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _password(path: str) -> str:
    """ValueError says what is wrong with the file, never what is in it."""
    with Path(path).open("rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("no regular file")
        if not _is_credential(path):
            if facts.st_mode & 0o077:
                raise ValueError(f"mode {stat.S_IMODE(facts.st_mode):04o}; only its owner may read it (chmod 600)")
            if os.geteuid() != 0 and facts.st_uid not in (0, os.geteuid()):
                raise ValueError("belongs to another user")
        content = file.read(MOST_PASSWORD + 1)
    try:
        text = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text or not text.isprintable() or len(content) > MOST_PASSWORD:
        raise ValueError("write the password alone, in one line")
    return text


def _is_credential(path: str) -> bool:
    """Given to this process by systemd, which sees to who may read it."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and Path(path).resolve().is_relative_to(Path(str(directory)).resolve())
