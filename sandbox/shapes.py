"""The shapes of mail that comes back, as data (``returns*.toml``): pure, from what is known of a message to octets.

What goes back must not be a way into the relay by another's words: values are cut to one line where a line is meant.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field

from config.settings import Section

FILES = ("returns.toml", "returns_loose.toml", "returns_answers.toml")
_VARIABLE = re.compile(rb"\$([a-z_]+)")
_MESSAGE_ID = re.compile(rb"^message-id:\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_SUBJECT = re.compile(rb"^subject:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class Shape(Section):
    """One entry of the file, the defaults filled in."""

    what: str
    sender: str
    reverse_path: str
    to: Literal["reverse-path", "complaints"]
    charset: str
    status: str = Field(pattern=r"^[245]\.\d{1,3}\.\d{1,3}$")
    reply: str
    text: str


@dataclass(frozen=True, slots=True)
class About:
    """The message that something goes back for. ``at``: when it came, Unix seconds."""

    reverse_path: str
    recipient: str
    host: str
    source: str
    content: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Back:
    """A mail ready to go: MAIL FROM, RCPT TO, octets."""

    sender: str
    to: str
    content: bytes


@cache
def shapes() -> Mapping[str, Shape]:
    """All of them by name; ValueError when a file is damaged."""
    trees = [tomllib.loads(resources.files("sandbox").joinpath(name).read_text(encoding="utf-8")) for name in FILES]
    usual = trees[0]["defaults"]
    return {name: Shape.model_validate(usual | given) for tree in trees for name, given in tree["shapes"].items()}


def names() -> list[str]:
    return sorted(shapes())


def named(name: str) -> Shape:
    """ValueError that lists the shapes."""
    found = shapes().get(name)
    if found is None:
        raise ValueError(f"no shape {name!r}; there are: {', '.join(names())}")
    return found


def render(name: str, about: About, to: str, now: float) -> Back:
    """Goes back in that shape, to an address; ValueError that lists the shapes."""
    shape = named(name)
    header, _, body = about.content.partition(b"\r\n\r\n")
    local, _, domain = about.recipient.rpartition("@")
    stamp = f"{int(now * 1000):x}.{_number(about):x}"
    words: dict[bytes, bytes] = {
        b"to": _line(to),
        b"from": _line(about.reverse_path),
        b"recipient": _line(about.recipient),
        b"local": _line(local),
        b"domain": _line(domain),
        b"host": _line(about.host),
        b"source": _line(about.source),
        b"date": formatdate(now).encode(),
        b"arrived": formatdate(about.at).encode(),
        b"stamp": stamp.encode(),
        b"boundary": f"=_{stamp}".encode(),
        b"subject": _first(_SUBJECT, header),
        b"message_id": _first(_MESSAGE_ID, header),
        b"header": header + b"\r\n",
        b"original": header + b"\r\n\r\n" + body,
        b"status": _line(shape.status),
    }
    for each in ("reply", "sender", "reverse_path"):  # may speak of those before
        words[each.encode()] = _filled(getattr(shape, each).encode(shape.charset), words)
    text = shape.text.lstrip("\n").replace("\n", "\r\n").encode(shape.charset)
    return Back(words[b"reverse_path"].decode("utf-8", "replace"), to, _filled(text, words))


def _number(about: About) -> int:
    """A number that is the message's: the same for the same message and recipient."""
    return zlib.crc32(about.content[:4096] + about.recipient.encode("utf-8", "replace"))


def _filled(text: bytes, words: Mapping[bytes, bytes]) -> bytes:
    return _VARIABLE.sub(lambda found: words[found[1]], text)


def _line(text: str) -> bytes:
    return " ".join(text.split()).encode("utf-8", "surrogateescape")


def _first(pattern: re.Pattern[bytes], header: bytes) -> bytes:
    found = pattern.search(header)
    return found[1].strip() if found else b""
