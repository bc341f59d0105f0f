"""DKIM signatures (RFC 6376, RFC 8463): relaxed/relaxed, RSA-SHA256 and Ed25519-SHA256 side by side.

What a signature covers. :data:`SEALED` fields are named in h= as often as they occur and once more, absent ones too:
nobody on the way can add a second From, an unsubscribe link or a MIME header without breaking the signature (RFC 6376
§5.4 and §8.15). They are what §5.4.1 recommends, the fields that decide how the body is read, and List-Unsubscribe
with List-Unsubscribe-Post, without which a one-click unsubscription does not count (RFC 8058 §4). :data:`COVERED`
fields are named as often as they occur: whoever resends a message or runs a list adds such fields rightly. Received,
Return-Path, Authentication-Results and the like are the way's own and are not covered.

No i=, no l=, no x=: mail that waits five days for its next hop must still verify on arrival.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from signing import canonical

SEALED = (
    "From",
    "Sender",
    "Reply-To",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Content-Disposition",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "Feedback-ID",
)
COVERED = (
    "Content-ID",
    "Content-Description",
    "Content-Language",
    "List-Id",
    "List-Help",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
    "Resent-Date",
    "Resent-From",
    "Resent-Sender",
    "Resent-To",
    "Resent-Cc",
    "Resent-Message-ID",
    "Auto-Submitted",
)
LINE = 76  # octets of a line of ours, its CRLF not counted
_PADDING = PKCS1v15()
_HASH = Prehashed(SHA256())
_SEALED = frozenset(SEALED)
_NAMES = {name.lower().encode("ascii"): name for name in SEALED + COVERED}

PrivateKey = RSAPrivateKey | Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Key:
    """One private key; it signs from ``since`` until ``until`` (Unix s). ``domain`` in lower-case A-labels."""

    domain: str
    selector: str
    private: PrivateKey = field(repr=False)
    since: float = 0.0
    until: float = math.inf

    @property
    def algorithm(self) -> str:
        """As a= spells it."""
        return "rsa-sha256" if isinstance(self.private, RSAPrivateKey) else "ed25519-sha256"

    @property
    def name(self) -> str:
        """Where its record stands."""
        return f"{self.selector}._domainkey.{self.domain}"

    def sign(self, data: bytes) -> bytes:
        """Both algorithms sign the SHA-256 hash of the data (RFC 8463 §3)."""
        digest = hashlib.sha256(data).digest()
        if isinstance(self.private, RSAPrivateKey):
            return self.private.sign(digest, _PADDING, _HASH)
        return self.private.sign(digest)


class Signer:
    """All keys of a process; immutable, replaced whole on reload. Any thread may call it."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        by_domain: dict[str, list[Key]] = {}
        for key in sorted(keys, key=lambda key: (-key.since, key.selector)):
            by_domain.setdefault(key.domain, []).append(key)
        self._keys: Mapping[str, tuple[Key, ...]] = {domain: tuple(found) for domain, found in by_domain.items()}

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(key for found in self._keys.values() for key in found)

    def keys_for(self, from_domain: str, now: float) -> tuple[Key, ...]:
        """What signs mail from that domain, RSA first: of each algorithm the key that began last.

        Keys of the domain itself, else of the nearest domain above it that has any at work: d= is then aligned with
        From in DMARC's relaxed mode (RFC 7489 §3.1.1). () = none.
        """
        domain = from_domain
        while domain:
            newest: dict[str, Key] = {}
            for key in self._keys.get(domain, ()):
                if key.since <= now < key.until:
                    newest.setdefault(key.algorithm, key)
            if newest:
                return tuple(newest[algorithm] for algorithm in sorted(newest, reverse=True))
            domain = domain.partition(".")[2]
        return ()

    def covers(self, from_domain: str, now: float) -> bool:
        """Whether mail from that domain gets a signature."""
        return bool(self.keys_for(from_domain, now))

    def sign(self, content: bytes, from_domain: str, now: float) -> bytes:
        """The DKIM-Signature fields to put on top of the content, each with its CRLF; b"" when no key covers it.

        ``content`` as it will be sent, CRLF line ends, not dot-stuffed; ``from_domain`` in lower-case A-labels;
        ``now`` in Unix seconds.
        """
        keys = self.keys_for(from_domain, now)
        if not keys:
            return b""
        header, body = canonical.split(content)
        named, data = covered(header)
        lines = (*named, f"bh={_base64(canonical.body_hash(body))};")
        return b"".join(_signature(key, lines, data, int(now)) for key in keys)


def covered(header: bytes) -> tuple[tuple[str, ...], bytes]:
    """The lines of h=, and the canonical fields that it names (of several of a name the lowest comes first: §5.4.2)."""
    present: dict[bytes, list[bytes]] = {}
    for lower, value in canonical.fields(header):
        if lower in _NAMES:
            present.setdefault(lower, []).append(value)
    data = [canonical.relaxed_field(lower, value) for lower, values in present.items() for value in reversed(values)]
    return _named(tuple((lower, len(values)) for lower, values in present.items())), b"".join(data)


@lru_cache(maxsize=1024)
def _named(present: tuple[tuple[bytes, int], ...]) -> tuple[str, ...]:
    """Lines of h= for (name, occurrences): one of each more where a field is sealed, then sealed ones that are absent.

    Kept, since the messages of one system mostly have the same fields in the same order.
    """
    words: list[str] = []
    for lower, count in present:
        words.extend([_NAMES[lower]] * (count + (_NAMES[lower] in _SEALED)))
    absent = _SEALED.difference(_NAMES[lower] for lower, _ in present)
    words.extend(name for name in SEALED if name in absent)
    return tuple(_folded(words, ":"))


def _signature(key: Key, lines: tuple[str, ...], data: bytes, now: int) -> bytes:
    """One field. Its folds are CRLF TAB, which relaxed form reads as one space; b= comes last and is empty when
    signed (§3.7)."""
    first = f" v=1; a={key.algorithm}; c=relaxed/relaxed;"
    where = _folded([f"d={key.domain};", f"s={key.selector};", f"t={now};"], " ", prefix="", last="")
    parts = [first, *where, *lines, "b="]
    own = f"dkim-signature:{' '.join(parts).strip()}".encode("ascii")
    signature = _base64(key.sign(data + own))
    step = LINE - 4
    parts[-1] = "b=" + "\r\n\t".join(signature[at : at + step] for at in range(0, len(signature), step))
    return ("DKIM-Signature:" + "\r\n\t".join(parts) + "\r\n").encode("ascii")


def _folded(words: Sequence[str], glue: str, prefix: str = "h=", last: str = ";") -> Iterator[str]:
    """Words in lines of at most LINE octets, the glue at their ends."""
    line = prefix
    for number, word in enumerate(words):
        end = last if number == len(words) - 1 else glue
        if line not in ("", prefix) and len(line) + len(word) + len(end) >= LINE - 1:
            yield line.rstrip(" ")
            line = ""
        line += word + end
    yield line


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
