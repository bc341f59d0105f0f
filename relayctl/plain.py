"""What others wrote, fit for an operator's terminal: control characters there are commands (ECMA-48), from whoever sent
them. What goes to a file or a pipe stays as it came."""

from __future__ import annotations

import sys

_KEPT = {ord("\n"), ord("\t")}


def plain(text: str) -> str:
    """One line in which nothing but printable characters stands; others are spelled as in Python: ``\\x1b``."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _spelled(char) for char in text)


def show(content: bytes) -> None:
    """A mail to standard output: as it came, but on a terminal without anything that the terminal would obey."""
    if sys.stdout.isatty():
        text = content.replace(b"\r\n", b"\n").decode("utf-8", "backslashreplace")
        content = "".join(char if ord(char) in _KEPT else plain(char) for char in text).encode()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode()
