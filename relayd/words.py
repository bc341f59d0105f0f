"""Raw 8-bit text of header fields as encoded words (RFC 2047). Pure.

Unstructured fields are converted word by word, address fields in their display names and comments. Octets that are not
UTF-8 are named unknown-8bit (RFC 1428).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

_ADDRESSES = frozenset(
    (b"from", b"sender", b"reply-to", b"to", b"cc", b"resent-from", b"resent-sender", b"resent-reply-to", b"resent-to",
     b"resent-cc", b"disposition-notification-to", b"list-id")
)  # fmt: skip
_STRUCTURED = re.compile(
    rb"date|resent-date|message-id|resent-message-id|in-reply-to|references|received|return-path|mime-version|"
    rb"content-(?!description).*|dkim-signature|authentication-results|arc-.*|list-.*|auto-submitted|feedback-id"
)
_WORD_LIMIT = 75  # §2
_LINE_LIMIT = 76
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")  # §5 (3): fit for a phrase
_QUOTED = [b"_" if octet == 32 else bytes([octet]) if octet in _PLAIN else b"=%02X" % octet for octet in range(256)]
_ENCODED = re.compile(rb"=\?[^?\s]+\?[^?\s]+\?[^?\s]*\?=")
_TOKEN = re.compile(
    rb'(?P<space>[ \t]+)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<comment>\((?:[^()\\]|\\.)*\))|(?P<angle><[^<>]*>)'
    rb'|(?P<mark>[,:;@\[\]])|(?P<word>[^ \t"(),:;<>@\[\]]+)'
)


def converted(name: bytes, body: bytes) -> bytes | None:
    """The field body in ASCII, folded, without the last CRLF; None where raw 8-bit has no encoded form. `name` in lower
    case, `body` unfolded."""
    if name in _ADDRESSES:
        pieces = _phrases(body)
    elif _STRUCTURED.fullmatch(name):
        return None
    else:
        pieces = _text(body)
    return _folded(len(name) + 2, pieces) if pieces is not None else None


Piece = tuple[bytes, bytes]  # blanks before, and text; encoded words are a piece each


def _text(body: bytes) -> list[Piece]:
    return _run_together([(space, word, not word.isascii()) for space, word in _split(body)])


def _split(body: bytes) -> Iterator[Piece]:
    for found in re.finditer(rb"([ \t]*)([^ \t]+)", body):
        yield found[1], found[2]


def _run_together(words: list[tuple[bytes, bytes, bool]]) -> list[Piece]:
    """Neighbours that must be encoded become one text: a reader drops the blanks between encoded words (§6.2)."""
    pieces: list[Piece] = []
    at = 0
    while at < len(words):
        space, text, raw = words[at]
        at += 1
        if not raw:
            pieces.append((space, text))
            continue
        run = [text]
        while at < len(words) and words[at][2]:
            run += words[at][:2]
            at += 1
        text = b"".join(run)
        if pieces and space and _ENCODED.fullmatch(pieces[-1][1]):
            text = b" " + text
        if at < len(words) and _ENCODED.fullmatch(words[at][1]):
            text += b" "
        encoded = list(_encoded(text))
        pieces.append((space, encoded[0]))
        pieces += ((b" ", word) for word in encoded[1:])
    return pieces


def _phrases(body: bytes) -> list[Piece] | None:
    tokens: list[tuple[str, bytes]] = []
    position = 0
    while position < len(body):
        found = _TOKEN.match(body, position)
        if found is None:
            return None
        tokens.append((str(found.lastgroup), found[0]))
        position = found.end()
    solid = [token for token in tokens if token[0] != "space"]
    for before, token, behind in zip([("", b""), *solid], solid, [*solid[1:], ("", b"")], strict=False):
        if not token[1].isascii() and (token[0] in ("angle", "mark") or b"@" in (before[1], behind[1])):
            return None
    words: list[tuple[bytes, bytes, bool]] = []
    space = b""
    for kind, text in tokens:
        if kind == "space":
            space = text
            continue
        raw = not text.isascii()
        inner = re.sub(rb"\\(.)", rb"\1", text[1:-1], flags=re.DOTALL) if raw and kind != "word" else text
        if raw and kind == "comment":
            words.append((space, b"(" + b"\r\n ".join(_encoded(inner)) + b")", False))
        else:
            if (raw or (words and words[-1][2])) and not space and words and kind != "mark":
                space = b" "  # an encoded word stands by itself (§5)
            words.append((space, inner, raw))
        space = b""
    return _run_together(words)


def _encoded(text: bytes) -> Iterator[bytes]:
    """Encoded words of at most 75 characters, never breaking a character of UTF-8. Quoted where one word holds it all
    and is not longer for it."""
    utf8 = _is_utf8(text)
    charset = b"utf-8" if utf8 else b"unknown-8bit"
    room = _WORD_LIMIT - len(b"=?" + charset + b"?q??=")
    quoted = b"".join(map(_QUOTED.__getitem__, text[:room]))
    if len(text) <= room and len(quoted) <= min(room, 4 * ((len(text) + 2) // 3)):
        yield b"=?" + charset + b"?q?" + quoted + b"?="
        return
    start, most = 0, room // 4 * 3
    while start < len(text):
        end = min(start + most, len(text))
        while utf8 and end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield b"=?" + charset + b"?b?" + base64.b64encode(text[start:end]) + b"?="
        start = end


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _folded(column: int, pieces: list[Piece]) -> bytes:
    """Folds before what would pass the limit of a line."""
    out = []
    for number, (space, text) in enumerate(pieces):
        if number and space and column + len(space) + len(text) > _LINE_LIMIT:
            out.append(b"\r\n")
            column = 0
        out += (space, text)
        column += len(space) + len(text)
    return b"".join(out)
