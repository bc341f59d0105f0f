"""The header block of a message, as bytes: where it ends, which fields it has, and how it is edited.

Pure. Expects CRLF line ends (:func:`relayd.trace.normalise` comes first). Field bodies are looked at only by those who
ask; what nobody edits passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

HEADER_LIMIT = 1 << 20  # octets; far above what any next hop takes
FIELDS_LIMIT = 10_000

# One field with its continuation lines (RFC 5322 §2.2). The colon stands within the first 998 octets: a line broken
# there must stay a field. Nothing follows the last group, so it need not be possessive; and must not: before 3.11.5
# Python loses its place where such a group fails half-way.
_NAME = rb"([!-9;-~]{1,990}+)[ \t]{0,7}+:"
_FIELD = re.compile(_NAME + rb"[^\n]*+\n(?:[ \t][^\n]*+\n)*")
_FIELD_BEGINS = re.compile(_NAME)
_COLON = ord(":")


class Field(NamedTuple):
    """Offsets in the content; `name` in lower case."""

    name: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """`end` is the offset behind the last field; `closed` says whether an empty line stands there."""

    end: int
    closed: bool
    fields: tuple[Field, ...]
    by_name: Mapping[bytes, list[Field]]

    @property
    def hops(self) -> int:
        return len(self.by_name.get(b"received", ()))


def parse(content: bytes) -> Header | None:
    """The first line that is neither field nor continuation ends the header.

    None: more than HEADER_LIMIT octets or FIELDS_LIMIT fields of it.
    """
    fields: list[Field] = []
    by_name: dict[bytes, list[Field]] = {}
    end = 0
    match = _FIELD.scanner(content, 0, HEADER_LIMIT).match  # type: ignore[attr-defined]  # anchored, as typeshed forgot
    for found in islice(iter(match, None), FIELDS_LIMIT + 1):
        start, end = found.span()
        field = Field(found[1].lower(), start, end)
        fields.append(field)
        by_name.setdefault(field.name, []).append(field)
        if len(fields) > FIELDS_LIMIT:
            return None
    cut = end > 0 and content[end : end + 1] in (b" ", b"\t")  # in the middle of a field
    if cut or (len(content) > HEADER_LIMIT and _FIELD_BEGINS.match(content, end)):
        return None
    return Header(end, content.startswith(b"\r\n", end), tuple(fields), by_name)


def raw_body(content: bytes, field: Field) -> bytes:
    """What stands behind the colon, folds and all."""
    return content[field.start : field.end].partition(b":")[2]


def body(content: bytes, field: Field) -> bytes:
    """Unfolded (§2.2.3) and stripped."""
    return raw_body(content, field).replace(b"\r\n", b"").strip(b" \t")


def blanks(content: bytes, fields: Iterable[Field]) -> list[Field]:
    """The blanks between a name and its colon, for :func:`edited`. RFC 5322 §4.5 has them to be read only: some readers
    take such a line for the end of the header, and verifiers of DKIM give up on it."""
    return [
        Field(b"", at, content.index(b":", at))
        for name, start, _ in fields
        if content[(at := start + len(name))] != _COLON
    ]


def edited(content: bytes, header: Header, unwanted: Iterable[Field] = (), added: bytes = b"") -> bytes:
    """Content without `unwanted` (fields or parts of them, apart and in their order) and with the lines `added` at the end of its header,
    which is closed by an empty line if it was not.

    Without that line a field put on top (Received) would swallow a body that began without one.
    """
    if not unwanted and not added and header.closed:
        return content
    kept, position = [], 0
    for field in unwanted:
        kept.append(content[position : field.start])
        position = field.end
    kept += (content[position : header.end], added, b"" if header.closed else b"\r\n", content[header.end :])
    return b"".join(kept)
