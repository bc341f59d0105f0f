"""One mailbox out of the body of a header field, read so that every other reader finds the same one.

Narrower than RFC 5322 §3.4 on purpose. Programs differ in groups, routes, nested comments, backslashes, unquoted
specials, and in whether they decode encoded words (RFC 2047) before or after they look for the address. Where a
reader could come to another address than we do, there is no mailbox here.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import quopri
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from config.addresses import ascii_domain

LONGEST = 8192  # octets of a field body
LONGEST_LINE = (
    960  # of one of its lines: one over 998 is broken later (:mod:`relayd.lines`), perhaps inside the address
)
_LOCAL_PART_OCTETS = 64  # RFC 5321 §4.5.3.1.1
_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-"
_TOKEN = re.compile(
    rf"(?P<space>[ \t]+)|(?P<comment>\([^()\\<>@\"]*\))|(?P<quoted>\"(?:[^\"\\<>]|\\[^<>])*\")"
    rf"|(?P<literal>\[[0-9A-Za-z.:]+\])|(?P<word>[{_ATEXT}.]+)|(?P<mark>[<>@])"
)
_DOT_ATOM = re.compile(rf"[{_ATEXT}]+(?:\.[{_ATEXT}]+)*")
_ENCODED = re.compile(r"=\?([^?]*)\?([^?]*)\?([^?]*)\?=")
_NO_CHARSET = ("idna", "punycode", "unicode_escape", "raw_unicode_escape")  # Python's own
_LOOSE = frozenset({"space", "comment"})

Token = tuple[str, str]  # kind, text


@dataclass(frozen=True, slots=True)
class Mailbox:
    """``local_part`` without quotes; ``domain`` in lower-case A-labels, address literals in one spelling."""

    local_part: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local_part}@{self.domain}"


@lru_cache(maxsize=1024)  # whoever sends in masses has few authors, and reading one costs as much as all other steps
def in_field(body: bytes) -> Mailbox | None:
    """The only mailbox of a From, Sender or Resent-From field body (folded as it came); None when there is none, more
    than one, or doubt."""
    text = _unfolded(body)
    tokens = _tokens(text) if text is not None else None
    if text is None or tokens is None or _misleads(text, tokens):
        return None
    marks = [text for kind, text in tokens if kind == "mark"]
    if marks == ["@"]:
        return _addr_spec(_trimmed(tokens, _LOOSE))
    if marks != ["<", "@", ">"]:
        return None
    opening, closing = tokens.index(("mark", "<")), tokens.index(("mark", ">"))
    if any(kind == "literal" for kind, _ in tokens[:opening]):
        return None
    if any(kind not in _LOOSE for kind, _ in tokens[closing + 1 :]):
        return None
    return _addr_spec(_trimmed(tokens[opening + 1 : closing], frozenset({"space"})))


def of_path(address: str) -> Mailbox | None:
    """The mailbox of an SMTP path (without angle brackets); None for what is none. A local part in quotes may hold
    anything: no reader takes a path apart but by the last @."""
    local, _, domain = address.rpartition("@")
    if len(local) >= 2 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    elif not _DOT_ATOM.fullmatch(local):
        return None
    try:
        return Mailbox(local, ascii_domain(domain))
    except ValueError:
        return None


def _unfolded(body: bytes) -> str | None:
    """None for controls, for CR and LF that fold nothing, for what is too long, and for what is no UTF-8."""
    if len(body) > LONGEST or any(len(line) > LONGEST_LINE for line in body.split(b"\r\n")):
        return None
    try:
        text = body.removesuffix(b"\r\n").decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = re.sub(r"\r\n(?=[ \t])", "", text)
    return None if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text if char != "\t") else text


def _tokens(text: str) -> list[Token] | None:
    found, position = [], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        found.append((str(token.lastgroup), token[0]))
        position = token.end()
    return found


def _trimmed(tokens: list[Token], kinds: frozenset[str]) -> list[Token]:
    first, last = 0, len(tokens)
    while first < last and tokens[first][0] in kinds:
        first += 1
    while last > first and tokens[last - 1][0] in kinds:
        last -= 1
    return tokens[first:last]


def _addr_spec(tokens: list[Token]) -> Mailbox | None:
    if len(tokens) != 3 or tokens[1] != ("mark", "@"):
        return None
    (kind, local), _, (right, domain) = tokens
    if kind == "quoted":
        local = local[1:-1]
    elif kind != "word":
        return None
    if right not in ("word", "literal") or "=?" in local or "=?" in domain:
        return None
    if not _DOT_ATOM.fullmatch(local) or len(local.encode()) > _LOCAL_PART_OCTETS:
        return None
    if any(unicodedata.category(char)[0] in "CZ" for char in local):  # zero width, direction, other spaces
        return None
    try:
        return Mailbox(local, ascii_domain(domain))
    except ValueError:
        return None


def _misleads(text: str, tokens: list[Token]) -> bool:
    """Whether a display name or comment would give another address to who splits or decodes before reading."""
    quoted = (text for kind, text in tokens if kind == "quoted")
    return any("@" in name and ("," in name or ";" in name) for name in quoted) or any(
        "<" in word or ">" in word or ("@" in word and ("," in word or ";" in word)) or any(map(_control, word))
        for word in _decoded(text)
    )


def _control(char: str) -> bool:
    return unicodedata.category(char) == "Cc"


def _decoded(text: str) -> Iterator[str]:
    """What the encoded words hold, wherever they stand; octets of an unknown charset as Latin-1."""
    for charset, encoding, payload in _ENCODED.findall(text):
        raw = payload.encode("utf-8")
        if encoding in ("q", "Q"):
            raw = quopri.decodestring(raw, header=True)
        elif encoding in ("b", "B"):
            try:
                raw = base64.b64decode(raw + b"=" * (-len(raw) % 4))
            except (binascii.Error, ValueError):
                raw = b"\0"  # readers differ in what they make of it
        try:
            codec = codecs.lookup(charset.partition("*")[0]).name
            yield raw.decode("latin-1" if codec in _NO_CHARSET else codec, "replace")
        except (LookupError, ValueError):
            yield raw.decode("latin-1")
