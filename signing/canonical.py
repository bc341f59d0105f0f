"""The "relaxed" canonicalisation of DKIM (RFC 6376 §3.4.2 and §3.4.4), and where a header ends. Pure bytes.

Content has CRLF line ends only; what else is in it (8-bit octets, no empty line, no line end at the end) is taken as
it is. Work is in proportion to the content's length, whatever it contains.
"""

from __future__ import annotations

import hashlib
import re

_FIELD_ENDS = re.compile(rb"\r\n(?![ \t])")


def split(content: bytes) -> tuple[bytes, bytes]:
    """Header and body without the empty line between them; no empty line = all of it is header."""
    if content.startswith(b"\r\n"):
        return b"", content[2:]
    header, _, body = content.partition(b"\r\n\r\n")
    return header, body


def fields(header: bytes) -> list[tuple[bytes, bytes]]:
    """(name in lower case, value as it stands) from top to bottom; lines that are no field are left out."""
    found = []
    for field in _FIELD_ENDS.split(header):
        name, colon, value = field.partition(b":")
        if colon:
            found.append((name.rstrip(b" \t").lower(), value))
    return found


def relaxed_field(name: bytes, value: bytes) -> bytes:
    """One field with its CRLF; ``name`` in lower case."""
    value = value.replace(b"\r\n", b"")
    return b"%b:%b\r\n" % (name, _reduced(value).strip(b" "))


def body_hash(body: bytes) -> bytes:
    """SHA-256 of the body in relaxed form. An empty body, or one of empty lines only, is hashed as no octets."""
    body = _reduced(body).replace(b" \r\n", b"\r\n")
    if body.endswith(b" "):
        body = body[:-1]
    body = body.rstrip(b"\r\n")  # empty lines at the end, and the last line's end, which comes back
    digest = hashlib.sha256(body)
    if body:
        digest.update(b"\r\n")
    return digest.digest()


def _reduced(text: bytes) -> bytes:
    """Each run of spaces and tabs as one space. Replacing is five times as fast as a regular expression, and a run of
    n takes log n rounds; without tabs and runs nothing is copied."""
    text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"        ", b" ").replace(b"  ", b" ")
    return text
