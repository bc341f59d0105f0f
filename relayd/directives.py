"""X-Tambo-* fields: what a sender asks for within its account's grants. Pure; the table is in docs/headers.md."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any

import orjson

from config.durations import seconds
from config.settings import AccountSettings, unknown_policy
from relayd import headers
from relayd.headers import Field, Header

METADATA_LIMIT = 2048
METADATA_LEVELS = 32  # far below what writers and readers of JSON can nest
_PREFIX = b"x-tambo-"


@dataclass(frozen=True, slots=True)
class Directives:
    """What the sender asked for; None = nothing said, the account's own value holds."""

    campaign: str = ""
    class_: str | None = None
    pool: str | None = None
    unknown: str | None = None
    deadline: float | None = None  # Unix seconds
    idempotency_key: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    header: str  # spelled as documented
    why: str


_NOTHING = Directives()


def own(header: Header) -> list[Field]:
    """The X-Tambo-* fields, known or not, in their order."""
    found = [field for name, fields in header.by_name.items() if name.startswith(_PREFIX) for field in fields]
    found.sort(key=lambda field: field.start)
    return found


def read(content: bytes, asked: Iterable[Field], account: AccountSettings, now: float) -> Directives | Refused:
    """What the fields `asked` say; the first one that cannot count refuses the message. `now` in Unix seconds."""
    found: dict[str, Any] = {}
    for one in asked:
        name = one.name.decode("ascii")
        if name not in _READERS:
            return Refused(name.title(), "unknown header")
        attribute, reader = _READERS[name]
        if attribute in found:
            return Refused(name.title(), "given more than once")
        try:
            found[attribute] = reader(headers.body(content, one), account, now)
        except ValueError as error:
            return Refused(name.title(), str(error))
    return Directives(**found) if found else _NOTHING


_CAMPAIGN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_POOL = re.compile(rb"[a-z0-9-]{1,32}")
_KEY = re.compile(rb"[ -~]{1,128}")
_UNKNOWN = re.compile(rb"retry|never|once:[0-9a-z.]{1,16}")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,3})?(?:ms|s|m|h|d)){1,5}")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_RFC_5322 = re.compile(
    r"(?:[A-Za-z]{3}, ?)?\d{1,2} [A-Za-z]{3} \d{4} \d\d:\d\d(?::\d\d)? (?:[+-]\d{4}|[A-Za-z]{1,3})", re.ASCII
)


def _campaign(value: bytes, account: AccountSettings, now: float) -> str:
    if _CAMPAIGN.fullmatch(value) is None:
        raise ValueError("1 to 64 characters of A-Z a-z 0-9 . _ -")
    return value.decode("ascii")


def _class(value: bytes, account: AccountSettings, now: float) -> str:
    wanted = value.decode("ascii", "replace").lower()
    granted = {account.class_, *account.classes}
    if wanted not in ("emergency", "transactional", "bulk"):
        raise ValueError("one of emergency, transactional, bulk")
    if wanted not in granted:
        raise ValueError(f"class {wanted} is not granted to this account")
    return wanted


def _pool(value: bytes, account: AccountSettings, now: float) -> str:
    if _POOL.fullmatch(value) is None:
        raise ValueError("1 to 32 characters of a-z 0-9 -")
    wanted = value.decode("ascii")
    if wanted not in (account.pool, *account.pools):
        raise ValueError(f"pool {wanted} is not granted to this account")
    return wanted


def _deadline(value: bytes, account: AccountSettings, now: float) -> float:
    text = value.decode("ascii", "replace")
    try:
        at = _instant(text, now)
    except (ValueError, TypeError, IndexError, OverflowError):
        raise ValueError("an RFC 5322 date, an RFC 3339 time with its zone, or a duration like 2h") from None
    if at <= now:
        raise ValueError("lies in the past")
    return at


def _instant(text: str, now: float) -> float:
    if _DURATION.fullmatch(text):
        after = seconds(text)
        assert isinstance(after, float)
        return now + after
    if _RFC_3339.fullmatch(text):
        return datetime.fromisoformat(text.upper()).timestamp()
    if _RFC_5322.fullmatch(text):
        stamp = email.utils.parsedate_tz(text)
        if stamp is None or stamp[9] is None:
            raise ValueError
        datetime(*stamp[:6])  # the 30th of February is nobody's deadline
        return float(email.utils.mktime_tz(stamp))
    raise ValueError


def _unknown(value: bytes, account: AccountSettings, now: float) -> str:
    text = value.lower()
    if _UNKNOWN.fullmatch(text) is None:
        raise ValueError("one of retry, never, once:<duration> (for instance once:24h)")
    return unknown_policy(text.decode("ascii"))


def _idempotency_key(value: bytes, account: AccountSettings, now: float) -> str:
    if _KEY.fullmatch(value) is None:
        raise ValueError("1 to 128 printable ASCII characters")
    return value.decode("ascii")


def _metadata(value: bytes, account: AccountSettings, now: float) -> Mapping[str, Any]:
    if len(value) > METADATA_LIMIT:
        raise ValueError(f"at most {METADATA_LIMIT} octets")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError("a JSON object")
    if _deeper(parsed, METADATA_LEVELS):
        raise ValueError(f"objects and arrays of at most {METADATA_LEVELS} levels")
    return parsed


def _deeper(parsed: Any, levels: int) -> bool:
    """Whether JSON has more levels of objects and arrays than that."""
    level = [parsed]
    for _ in range(levels):
        within = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = list(chain.from_iterable(within))
    return any(isinstance(one, dict | list) for one in level)


_READERS: Mapping[str, tuple[str, Callable[[bytes, AccountSettings, float], Any]]] = {
    "x-tambo-campaign": ("campaign", _campaign),
    "x-tambo-class": ("class_", _class),
    "x-tambo-pool": ("pool", _pool),
    "x-tambo-deadline": ("deadline", _deadline),
    "x-tambo-unknown": ("unknown", _unknown),
    "x-tambo-idempotency-key": ("idempotency_key", _idempotency_key),
    "x-tambo-metadata": ("metadata", _metadata),
}
