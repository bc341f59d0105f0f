"""MIME structure as bytes, as far as re-encoding needs it: the fields of an entity, and a multipart taken apart.

Pure. Stricter than readers of mail are: what could be read in two ways is :class:`Malformed`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from relayd import headers
from relayd.headers import Field, Header

_TYPE = re.compile(rb"[ \t]*([!#$&.+^_A-Za-z0-9-]+)/([!#$&.+^_A-Za-z0-9-]+)[ \t]*(?:;|\(|\Z)")
_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"([^"\\]{1,70})"|([^\s";,()<>@\\\[\]]{1,70}))', re.IGNORECASE)
MOST_PARTS = 10_000
_COMMENT = re.compile(rb"\([^()\\]*\)")


class Malformed(ValueError):
    """What is wrong, for the sender to read."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A message or a part. `type`, `subtype`, `encoding` in lower case, "" when not said."""

    content: bytes
    header: Header
    type: bytes
    subtype: bytes
    encoding: bytes
    boundary: bytes | None

    @property
    def body(self) -> bytes:
        return self.content[self.header.end + 2 :]


def read(content: bytes) -> Entity:
    """Raises Malformed for a header that does not end, and for fields doubled or unreadable."""
    header = headers.parse(content)
    if header is None or not header.closed:
        raise Malformed("a header that does not end in an empty line")
    kind = _only(header, b"content-type")
    value = headers.body(content, kind) if kind else b""
    found = _TYPE.match(value) if kind else None
    if kind and found is None:
        raise Malformed("a Content-Type that cannot be read")
    boundary = _BOUNDARY.search(value)
    transfer = _only(header, b"content-transfer-encoding")
    encoding = _COMMENT.sub(b"", headers.body(content, transfer)).strip(b" \t").lower() if transfer else b""
    return Entity(
        content,
        header,
        found[1].lower() if found else b"",
        found[2].lower() if found else b"",
        encoding,
        (boundary[1] or boundary[2]).rstrip(b" \t") if boundary else None,
    )


def _only(header: Header, name: bytes) -> Field | None:
    fields = header.by_name.get(name, ())
    if len(fields) > 1:
        raise Malformed(f"{name.decode('ascii').title()} given more than once")
    return fields[0] if fields else None


@dataclass(frozen=True, slots=True)
class Multipart:
    """Its body in pieces; `parts` are the numbers of those that are parts, the others are delimiters and what stands
    before the first and behind the last one."""

    pieces: list[bytes]
    parts: tuple[int, ...]


def apart(entity: Entity) -> Multipart:
    """Raises Malformed without boundary, without parts, or without the closing delimiter (RFC 2046 §5.1.1)."""
    if not entity.boundary:
        raise Malformed("a multipart without boundary")
    delimiter = re.compile(rb"\r\n--" + re.escape(entity.boundary) + rb"(--)?[ \t]*(?=\r\n|\Z)")
    body = entity.content[entity.header.end :]  # with the CRLF before it: the first line may be a delimiter
    pieces: list[bytes] = []
    parts: list[int] = []
    at = 0  # what stands before is in the pieces
    for found in delimiter.finditer(body):
        if len(pieces) > 2 * MOST_PARTS:
            raise Malformed(f"more than {MOST_PARTS} parts")
        if not pieces:
            pieces.append(body[2 : found.start()])
            at = max(found.start(), 2)
        elif at <= found.start():  # else this delimiter follows the other at once: no part there
            parts.append(len(pieces))
            pieces.append(body[at : found.start()])
            at = found.start()
        if found[1] is not None:
            if not parts:
                break
            return Multipart([*pieces, body[at:]], tuple(parts))
        pieces.append(body[at : found.end() + 2])
        at = found.end() + 2
    raise Malformed("a multipart without parts, or without its closing delimiter")
