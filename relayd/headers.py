"""The header block of a message, as bytes: where it ends, how many hops it has made, what its X-Tambo-* fields ask for.

Pure. Expects CRLF line ends (:func:`relayd.trace.normalise` comes first). Field bodies are looked at only where a
field is ours; the rest passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from config.settings import AccountSettings, unknown_policy

HEADER_LIMIT = 1 << 20  # octets; far above what any next hop takes
METADATA_LIMIT = 2048
_PREFIX = b"x-tambo-"
_FTEXT = bytes(c for c in range(33, 127) if c != ord(":"))  # RFC 5322 §3.6.8
_WSP = (32, 9)


@dataclass(frozen=True, slots=True)
class Own:
    """One X-Tambo-* field: offsets in the content, name in lower case, body unfolded and stripped."""

    start: int
    end: int
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """`end` is the offset behind the last field; `closed` says whether an empty line stands there."""

    end: int
    closed: bool
    hops: int  # Received fields
    own: tuple[Own, ...]


@dataclass(frozen=True, slots=True)
class Directives:
    """What the sender asked for; None = nothing said, the account's own value holds."""

    campaign: str = ""
    class_: str | None = None
    unknown: str | None = None
    idempotency_key: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    header: str  # spelled as documented
    why: str


def parse(content: bytes) -> Header | None:
    """Walk the fields line by line; the first line that is neither field nor continuation ends them.

    None: more than HEADER_LIMIT octets of header.
    """
    position, hops, own = 0, 0, []
    start, name = -1, b""  # the field under way
    while position <= HEADER_LIMIT:
        eol = content.find(b"\r\n", position)
        line = content[position : eol if eol >= 0 else len(content)]
        if line and line[0] in _WSP and start >= 0:
            position = eol + 2 if eol >= 0 else len(content)
            continue
        if start >= 0 and name.startswith(_PREFIX):
            own.append(_own(content, start, position, name))
        colon = line.find(b":")
        name = line[:colon].rstrip(b" \t").lower() if colon > 0 else b""
        if not name or name.translate(None, _FTEXT):
            return Header(position, line == b"" and eol >= 0, hops, tuple(own))
        start = position
        hops += name == b"received"
        position = eol + 2 if eol >= 0 else len(content)
    return None


def _own(content: bytes, start: int, end: int, name: bytes) -> Own:
    body = content[start:end].partition(b":")[2].replace(b"\r\n", b"").strip(b" \t")
    return Own(start, end, name.decode("ascii"), body)


def without_own(content: bytes, header: Header) -> bytes:
    """Content free of X-Tambo-* fields, its header closed by an empty line if it was not.

    Without that line a field put on top (Received) would swallow a body that began without one.
    """
    if not header.own and header.closed:
        return content
    kept, position = [], 0
    for one in header.own:
        kept.append(content[position : one.start])
        position = one.end
    kept.append(content[position : header.end])
    if not header.closed:
        kept.append(b"\r\n")
    kept.append(content[header.end :])
    return b"".join(kept)


def directives(header: Header, account: AccountSettings) -> Directives | Refused:
    """Read the X-Tambo-* fields within the account's grants; the first one that cannot count refuses the message."""
    if not header.own:
        return _NOTHING
    found: dict[str, Any] = {}
    for one in header.own:
        if one.name not in _READERS:
            return Refused(one.name.title(), "unknown header")
        attribute, read = _READERS[one.name]
        if attribute in found:
            return Refused(one.name.title(), "given more than once")
        try:
            found[attribute] = read(one.value, account)
        except ValueError as error:
            return Refused(one.name.title(), str(error))
    return Directives(**found)


_CAMPAIGN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(rb"[ -~]{1,128}")
_UNKNOWN = re.compile(rb"retry|never|once:[0-9a-z.]{1,16}")
_NOTHING = Directives()


def _campaign(value: bytes, account: AccountSettings) -> str:
    if _CAMPAIGN.fullmatch(value) is None:
        raise ValueError("1 to 64 characters of A-Z a-z 0-9 . _ -")
    return value.decode("ascii")


def _class(value: bytes, account: AccountSettings) -> str:
    wanted = value.decode("ascii", "replace").lower()
    granted = {account.class_, *account.classes}
    if wanted not in ("emergency", "transactional", "bulk"):
        raise ValueError("one of emergency, transactional, bulk")
    if wanted not in granted:
        raise ValueError(f"class {wanted} is not granted to this account")
    return wanted


def _unknown(value: bytes, account: AccountSettings) -> str:
    text = value.lower()
    if _UNKNOWN.fullmatch(text) is None:
        raise ValueError("one of retry, never, once:<duration> (for instance once:24h)")
    return unknown_policy(text.decode("ascii"))


def _idempotency_key(value: bytes, account: AccountSettings) -> str:
    if _KEY.fullmatch(value) is None:
        raise ValueError("1 to 128 printable ASCII characters")
    return value.decode("ascii")


def _metadata(value: bytes, account: AccountSettings) -> Mapping[str, Any]:
    if len(value) > METADATA_LIMIT:
        raise ValueError(f"at most {METADATA_LIMIT} octets")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError("a JSON object")
    return parsed


_READERS = {
    "x-tambo-campaign": ("campaign", _campaign),
    "x-tambo-class": ("class_", _class),
    "x-tambo-unknown": ("unknown", _unknown),
    "x-tambo-idempotency-key": ("idempotency_key", _idempotency_key),
    "x-tambo-metadata": ("metadata", _metadata),
}
