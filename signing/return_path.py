"""Signed return paths: a reverse-path that says which recipient of which message a bounce is about, and cannot be made
up.

``b-<id><index and MAC>@domain``: 42 characters before the @, of RFC 5321's 64; the rest is room for a forwarder that
puts the address into one of its own (SRS). The alphabet is that of the ids, base32hex in lower case (RFC 4648 §7): the
id stands in the address as it stands in the log, and a host on the way that changes the case does no harm. The MAC is
HMAC-SHA256 cut to 84 bits, over version, domain, id and index; every character carries five bits and none is padding,
so each one that changes is seen.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from signing import private

PREFIX = "b-"
MAC_BITS = 84
KEY_OCTETS = 32
MOST_RECIPIENTS = 1 << 16
_VERSION = b"tambo return path 1"
_ID = re.compile(r"[0-9a-v]{20}")
_LOCAL = re.compile(PREFIX + r"([0-9a-v]{20})([0-9a-v]{20})")
_KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_OCTETS}}}")


@dataclass(frozen=True, slots=True)
class Reference:
    """One recipient of one message: the message's id, and the recipient's place in its envelope from 0."""

    id: str
    index: int


class ReturnPaths:
    """``keys``: the first makes addresses, all of them read."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) < KEY_OCTETS for key in keys):
            raise ValueError(f"return paths need at least one key of {KEY_OCTETS} octets")
        self._keys = tuple(keys)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a key file of mode 0600: a key a line, 64 hexadecimal digits; ``#`` begins a comment.

        OSError, or ValueError that names the file.
        """
        return cls(read_keys(Path(path)))

    def make(self, message_id: str, index: int, domain: str) -> str:
        """The reverse-path for that recipient. ValueError for an id or an index that does not fit."""
        if _ID.fullmatch(message_id) is None or not 0 <= index < MOST_RECIPIENTS:
            raise ValueError(f"no return path for recipient {index} of {message_id!r}")
        number = index << MAC_BITS | _mac(self._keys[0], message_id, index, domain)
        return f"{PREFIX}{message_id}{_spell(number)}@{domain}"

    def read(self, address: str) -> Reference | None:
        """What the address refers to; None when we did not make it. Upper and lower case are one."""
        local, _, domain = address.rpartition("@")
        found = _LOCAL.fullmatch(local.lower()) if local.isascii() else None
        if found is None:
            return None
        message_id = found[1]
        number = int(found[2], 32)
        index, mac = number >> MAC_BITS, number & ((1 << MAC_BITS) - 1)
        given = mac.to_bytes(11, "big")
        known = False
        for key in self._keys:
            known |= hmac.compare_digest(given, _mac(key, message_id, index, domain).to_bytes(11, "big"))
        return Reference(message_id, index) if known else None


def _mac(key: bytes, message_id: str, index: int, domain: str) -> int:
    place = domain.lower().rstrip(".").encode("utf-8", "backslashreplace")
    data = b"%b\0%b\0%b%b" % (_VERSION, place, message_id.encode("ascii"), index.to_bytes(2, "big"))
    return int.from_bytes(hmac.digest(key, data, hashlib.sha256), "big") >> (256 - MAC_BITS)


def _spell(number: int) -> str:
    """100 bits as 20 digits."""
    return base64.b32hexencode((number << 4).to_bytes(13, "big")).decode("ascii").lower()[:20]


def read_keys(path: Path) -> list[bytes]:
    """The keys of a file in order; OSError, or ValueError that names the file."""
    found = []
    for number, line in enumerate(private.read(path).decode("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip().lower()
        if text and _KEY.fullmatch(text) is None:
            raise ValueError(f"{path}: line {number} is no key; a key is {2 * KEY_OCTETS} hexadecimal digits")
        if text:
            found.append(bytes.fromhex(text))
    if not found:
        raise ValueError(f"{path}: holds no key; run: relayctl dkim return-path-key")
    return found


def add_key(path: Path, comment: str) -> int:
    """Puts a new key on top of the file, which is made if need be; how many keys it holds now."""
    before = private.read(path).decode("utf-8") if path.exists() else ""
    text = f"{secrets.token_hex(KEY_OCTETS)}  # {comment}\n{before}"
    private.write(path, text.encode("utf-8"))
    return len(read_keys(path))
