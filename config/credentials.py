"""What the service manager hands down beside the environment (systemd.exec(5), LoadCredential=).

A credential ``tambo.<section>.<key>`` is the value of that key, as text: ``tambo.queue.password``. Any other is a file
that the configuration may name as ``"credential:<name>"`` wherever it takes a path, whatever directory it lies in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

PREFIX = "tambo."
SCHEME = "credential:"
VARIABLE = "CREDENTIALS_DIRECTORY"
MOST_BYTES = 4096

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def values(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Dotted key → its text, the line's end taken off; and what cannot be read."""
    directory = environ.get(VARIABLE, "")
    found: dict[str, str] = {}
    problems: list[str] = []
    try:
        names = sorted(os.listdir(directory)) if directory else []
    except OSError as error:
        return {}, [f"{VARIABLE}: {directory}: {error.strerror}"]
    for name in names:
        if not name.startswith(PREFIX):
            continue
        try:
            found[name.removeprefix(PREFIX)] = _text(Path(directory) / name)
        except (OSError, ValueError) as error:
            problems.append(f"credential {name}: {error.strerror if isinstance(error, OSError) else error}")
    return found, problems


def path_of(text: str, environ: Mapping[str, str]) -> str:
    """ "credential:<name>" → the path of its file. ValueError says why there is none."""
    name = text.removeprefix(SCHEME)
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f'"{text}": a credential\'s name has letters, digits, ".", "-" and "_"')
    directory = environ.get(VARIABLE, "")
    if not directory:
        raise ValueError(f'"{text}": no credentials here; the unit needs LoadCredential={name}')
    return str(Path(directory) / name)


def _text(path: Path) -> str:
    """ValueError says what is wrong with the file, never what is in it."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES} bytes")
    try:
        text = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text.isprintable():
        raise ValueError("write the value alone, in one line")
    return text
