"""The DNS record of a DKIM key (RFC 6376 §3.6.1): its text, how a zone file spells it, what is wrong with a found one."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signing.dkim import Key

STRING = 255  # octets of one character-string of a TXT record (RFC 1035 §3.3)
_SPACE = re.compile(r"[ \t\r\n]+")


def text(key: Key) -> str:
    """The value: ``v=DKIM1; k=…; p=…``."""
    kind = "rsa" if isinstance(key.private, RSAPrivateKey) else "ed25519"
    return f"v=DKIM1; k={kind}; p={public(key)}"


def public(key: Key) -> str:
    """p= of the key: SubjectPublicKeyInfo for RSA, the 32 octets themselves for Ed25519 (RFC 8463 §4.2)."""
    if isinstance(key.private, RSAPrivateKey):
        octets = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        octets = key.private.public_key().public_bytes_raw()
    return base64.b64encode(octets).decode("ascii")


def strings(value: str) -> list[str]:
    """The value cut into character-strings, which a reader joins again without anything between."""
    return [value[at : at + STRING] for at in range(0, len(value), STRING)]


def zone_line(key: Key, ttl: int = 3600) -> str:
    """Ready for a zone file: absolute name, parentheses where there are several strings."""
    quoted = [f'"{part}"' for part in strings(text(key))]
    value = quoted[0] if len(quoted) == 1 else "( " + "\n    ".join(quoted) + " )"
    return f"{key.name}. {ttl} IN TXT {value}"


def problems(key: Key, found: Sequence[str]) -> list[str]:
    """What is wrong with the TXT values found at ``key.name``, in words that say what to do; [] = mail verifies."""
    values = [value for value in found if "p=" in value or "DKIM1" in value]
    if not values:
        other = f" ({len(found)} TXT records there are no keys)" if found else ""
        return [f"no record at {key.name}{other}: publish what `relayctl dkim show {key.domain}` prints"]
    if len(values) > 1:
        return [f"{len(values)} records at {key.name}: a verifier may take either; leave one"]
    try:
        tags = _tags(values[0])
    except ValueError as error:
        return [str(error)]
    return _wrong_tags(key, tags)


def warnings(found: Sequence[str]) -> list[str]:
    """What does not stop verifiers but is hardly meant."""
    if any("y" in _flags(value, "t") for value in found):
        return ["t=y says that the domain only tests DKIM, and verifiers may ignore its signatures: remove it"]
    return []


def _wrong_tags(key: Key, tags: dict[str, str]) -> list[str]:
    wrong = []
    kind = "rsa" if isinstance(key.private, RSAPrivateKey) else "ed25519"
    if tags.get("v", "DKIM1") != "DKIM1" or ("v" in tags and next(iter(tags)) != "v"):
        wrong.append("v= must be DKIM1 and come first")
    if tags.get("k", "rsa") != kind:
        wrong.append(f"k={tags.get('k', 'rsa')} where the key is k={kind}")
    published = _SPACE.sub("", tags.get("p", ""))
    if "p" not in tags:
        wrong.append("p= is missing")
    elif not published:
        wrong.append("p= is empty, which says that the key is revoked")
    elif published != public(key):
        wrong.append(f"p= is another key than {key.selector}.pem; {_difference(published, public(key))}")
    if "h" in tags and "sha256" not in _split(tags["h"]):
        wrong.append(f"h={tags['h']} does not allow sha256")
    if "s" in tags and not {"*", "email"} & set(_split(tags["s"])):
        wrong.append(f"s={tags['s']} does not allow email")
    return wrong


def _difference(published: str, ours: str) -> str:
    if ours.startswith(published) or ours.endswith(published):
        return f"it is cut to {len(published)} of {len(ours)} characters: the strings were not all entered"
    if "\\" in published or '"' in published:
        return "it has quotes or backslashes in it: the zone file's spelling was entered as the value"
    return "publish the record again, or sign with the key that is published"


def _tags(value: str) -> dict[str, str]:
    """ValueError for what is no tag list, or names a tag twice (RFC 6376 §3.2)."""
    tags: dict[str, str] = {}
    for part in value.strip().rstrip(";").split(";"):
        name, equals, text = part.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"{part.strip()!r} in the record is no tag=value")
        if name in tags:
            raise ValueError(f"{name}= stands twice in the record")
        tags[name] = text.strip()
    return tags


def _flags(value: str, tag: str) -> list[str]:
    try:
        return _split(_tags(value).get(tag, ""))
    except ValueError:
        return []


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(":")]
