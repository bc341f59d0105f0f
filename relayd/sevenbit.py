"""8-bit content made 7-bit, for accounts that ask for it, before the signature (RFC 6152 §3, RFC 2045, RFC 2047).

Each leaf with 8-bit octets becomes quoted-printable or base64; what it decodes to stays the same. Enclosing entities
are declared 7bit. Signed parts are not touched: there, and where MIME or a field is not in order, the message is
refused. Pure.
"""

from __future__ import annotations

import base64
import binascii

from relayd import headers, mime, words
from relayd.headers import Field
from relayd.mime import Entity, Malformed

_DEPTH = 10
_MOST_ENTITIES = 10_000  # with 8-bit octets
_MOST_FIELD_OCTETS = 262_144  # of fields with 8-bit octets
_IDENTITY = (b"", b"7bit", b"8bit", b"binary")
_SEALED = (b"signed", b"encrypted")


def converted(content: bytes) -> bytes:
    """A whole message in 7-bit. Raises Malformed with the reason why not."""
    return content if content.isascii() else _Conversion().message(content, 0)


class _Conversion:
    """Of one message; bounded in what it takes on."""

    def __init__(self) -> None:
        self._entities = 0
        self._field_octets = 0

    def message(self, content: bytes, depth: int) -> bytes:
        """RFC 5322 with or without MIME: what gets an encoding has a MIME-Version too."""
        entity = mime.read(content)
        body = entity.body
        added = b""
        if not body.isascii() and b"mime-version" not in entity.header.by_name:
            added = b"MIME-Version: 1.0\r\n"
            if not entity.type:
                added += b"Content-Type: text/plain; charset=" + _charset(body) + b"\r\n"
        return self._entity(entity, depth, added)

    def _entity(self, entity: Entity, depth: int, added: bytes = b"") -> bytes:
        self._entities += 1
        if depth > _DEPTH or self._entities > _MOST_ENTITIES:
            raise Malformed("parts within parts without end")
        body = entity.body
        if body.isascii():
            return self._with_fields(entity, b"", added) + body
        if entity.encoding not in _IDENTITY:
            raise Malformed("8-bit content in a part that says it is encoded")
        if entity.type == b"multipart":
            return self._with_fields(entity, b"7bit", added) + self._multipart(entity, depth)
        if entity.type == b"message" and entity.subtype == b"rfc822":
            return self._with_fields(entity, b"7bit", added) + self.message(body, depth + 1)
        if entity.type == b"message" and entity.subtype != b"global":
            raise Malformed("8-bit content in a part of type message")
        encoding, encoded = _leaf(body, entity.type in (b"", b"text"))
        return self._with_fields(entity, encoding, added) + encoded

    def _multipart(self, entity: Entity, depth: int) -> bytes:
        if entity.subtype in _SEALED:
            raise Malformed("8-bit content in a signed part, which must not be changed")
        taken = mime.apart(entity)
        parts = set(taken.parts)
        for number, piece in enumerate(taken.pieces):
            if piece.isascii():
                continue
            if number not in parts:
                raise Malformed("8-bit content around the parts of a multipart")
            part = mime.read(piece)
            if entity.subtype == b"digest" and not part.type:
                raise Malformed("8-bit content in a digest")
            taken.pieces[number] = self._entity(part, depth + 1)
        return b"".join(taken.pieces)

    def _with_fields(self, entity: Entity, encoding: bytes, added: bytes) -> bytes:
        """The header with the empty line behind it; `encoding` b"" = as it was."""
        lines = []
        said = False
        for field in entity.header.fields:
            if encoding and field.name == b"content-transfer-encoding":
                lines.append(b"Content-Transfer-Encoding: " + encoding + b"\r\n")
                said = True
            else:
                lines.append(self._field(entity.content, field))
        lines.append(added)
        if encoding and not said and encoding != b"7bit":
            lines.append(b"Content-Transfer-Encoding: " + encoding + b"\r\n")
        return b"".join((*lines, b"\r\n"))

    def _field(self, content: bytes, field: Field) -> bytes:
        whole = content[field.start : field.end]
        if whole.isascii():
            return whole
        self._field_octets += len(whole)
        if self._field_octets > _MOST_FIELD_OCTETS:
            raise Malformed("too many 8-bit octets in header fields")
        body = words.converted(field.name, headers.body(content, field))
        if body is None:
            raise Malformed(f"{field.name.decode('ascii').title()}: 8-bit octets that cannot be encoded there")
        return whole.partition(b":")[0] + b": " + body + b"\r\n"


def _leaf(body: bytes, text: bool) -> tuple[bytes, bytes]:
    """The shorter of the two encodings; text stays readable unless that costs a quarter more."""
    quoted = binascii.b2a_qp(body, quotetabs=False, istext=True).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    based = base64.encodebytes(body).replace(b"\n", b"\r\n")
    fits = len(quoted) * 4 <= len(based) * 5 if text else len(quoted) <= len(based)
    # A soft break must not make a delimiter of what stood in the middle of a line.
    if fits and quoted.count(b"\n--") == body.count(b"\n--"):
        return b"quoted-printable", quoted
    return b"base64", based if body.endswith(b"\r\n") else based.removesuffix(b"\r\n")


def _charset(body: bytes) -> bytes:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return b"unknown-8bit"
    return b"utf-8"
