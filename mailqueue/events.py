"""The event schema (version 1): one flat JSON object per event, the only account of what became of a recipient.

Names follow RFC 3464 (action, status, diagnostic code, remote MTA) and RFC 5598 (reverse-path, recipient).
A ``received`` event speaks of all recipients of a message, every other one of a single recipient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

import orjson

from mailqueue.message import QueueItem

VERSION = 1
SOURCES_REST = "sources-rest"  # reason of `deferred`: the site has lately refused every source that could send
KINDS = (
    "received",
    "deferred",
    "delivered",
    "bounced",
    "expired",
    "held",
    "released",
    "unknown",
    "late",
    "rejected",
    "removed",
    "suspended",
    "resumed",
    "suppressed",  # not sent, for the address is on a suppression list
    "returned",  # mail came back to a signed return path
    "unverified",  # mail came back that proves nothing
    "audit",  # somebody changed something by hand
    "alarm",  # a watch of maintenance found something, or found it over
)


@dataclass(frozen=True, slots=True)
class Event:
    """Times are Unix milliseconds; empty fields are left out of the JSON form."""

    kind: str
    at: int
    id: str = ""  # message id
    account: str = ""
    campaign: str = ""
    class_: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    reverse_path: str | None = None  # "" = null reverse-path
    recipient: str = ""
    recipients: tuple[str, ...] = ()  # received only
    skipped: tuple[int, ...] = ()  # received only: recipients queued before under the idempotency key
    index: int | None = None
    action: str = ""  # RFC 3464 §2.3.3: failed | delayed | delivered | relayed
    status: str = ""  # RFC 3463
    diagnostic_code: str = ""  # remote reply, "smtp; 550 5.1.1 …"
    remote_mta: str = ""  # host name [address]
    source: str = ""
    provider: str = ""
    destination: str = ""
    attempt: int = 0
    phase: str = ""  # where the dialogue stood
    tls: str = ""  # protocol and cipher, "" = clear
    size: int = 0
    received_at: int = 0
    next_at: int = 0  # next attempt
    reason: str = ""
    client: str = ""  # submitting address
    origin: str = ""  # received only: smtp | api | panel
    envid: str = ""  # RFC 3461 §4.4, as it came
    orcpt: str = ""  # §4.2, as it came
    warnings: tuple[str, ...] = ()  # received only: what was accepted and flagged, for instance "unsigned"
    pays: bool = False  # received only: recipients were taken from the account's quota
    refunded: int = 0  # removed, suppressed: recipients given back to it
    actor: str = ""  # audit: who, "user@host"
    verb: str = ""  # audit: what was done, as relayctl spells it: "queue hold"
    subject: str = ""  # audit: to what; alarm: its name
    before: Any = None  # audit: what was, JSON without secrets
    after: Any = None  # audit: what is; alarm: "on" | "off"
    count: int = 0  # audit: how many items it applied to; alarm: how many it is about
    v: int = VERSION

    def to_json(self) -> bytes:
        record = {}
        for name in _NAMES:
            value = getattr(self, name)
            if value or (value is not None and name in _EMPTY_SAYS):
                record[_SPELLING.get(name, name)] = value
        return orjson.dumps(record)

    @classmethod
    def from_json(cls, data: bytes | str, **beside: Any) -> Self:
        """Unknown fields of a later version are ignored; a missing ``kind`` or ``at`` is a ValueError. ``beside``: all
        fields that a subclass has besides."""
        record = orjson.loads(data)
        if not isinstance(record, dict) or "kind" not in record or "at" not in record:
            raise ValueError("an event needs kind and at")
        record.setdefault("metadata", {})
        for name in ("recipients", "skipped", "warnings"):
            if name in record:
                record[name] = tuple(record[name])
        # Past the constructor of a frozen dataclass, which takes twice as long: consumers read millions of them.
        event, said = cls.__new__(cls), record.get
        for set_, spelled, default in _SLOTS:
            set_(event, said(spelled, default))
        for name, value in beside.items():
            object.__setattr__(event, name, value)
        return event


_NAMES = tuple(f.name for f in fields(Event))
_SPELLING = {"class_": "class"}
_EMPTY_SAYS = frozenset({"reverse_path", "index", "before", "after"})  # "", 0 and {} are values here, None is none
_SLOTS = tuple(
    (Event.__dict__[f.name].__set__, _SPELLING.get(f.name, f.name), None if f.default is MISSING else f.default)
    for f in fields(Event)
)


def about(item: QueueItem, kind: str, at: int, **said: Any) -> Event:
    """An event about one recipient: who it is comes from the item, what became of it from ``said``."""
    envelope = item.message.envelope
    return Event(
        kind=kind,
        at=at,
        id=envelope.id,
        account=envelope.account,
        campaign=envelope.campaign,
        class_=envelope.class_,
        metadata=envelope.metadata,
        reverse_path=envelope.reverse_path,
        recipient=item.recipient,
        index=item.index,
        destination=item.destination,
        received_at=envelope.received_at,
        envid=envelope.envid,
        orcpt=envelope.orcpt[item.index] if envelope.orcpt else "",
        **said,
    )
