"""The nouns of the queue: Envelope and Message (what relayd puts), QueueItem (what delivery claims). Frozen."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from config.addresses import ascii_domain

CLASSES = ("emergency", "transactional", "bulk")  # in order of precedence


def new_id() -> str:
    """A message id: 20 characters of base32hex in lower case, 48 bits of Unix milliseconds, 52 random; sorts by time."""
    number = (int(time.time() * 1000) << 52) | random.getrandbits(52)  # unlike others, not secret: no system call
    return base64.b32hexencode((number << 4).to_bytes(13, "big")).decode("ascii").lower()[:20]


def id_at(ms: int) -> str:
    """Behind every id that was made before this time (Unix ms), before every other."""
    return base64.b32hexencode((max(ms, 0) << 56).to_bytes(13, "big")).decode("ascii").lower()[:20]


def born(message_id: str) -> int:
    """When :func:`new_id` made it, Unix ms; ValueError for what it did not make."""
    if len(message_id) != 20 or not message_id.isascii():
        raise ValueError(f"{message_id!r} is no message id")
    return int.from_bytes(base64.b32hexdecode(message_id.upper() + "===="), "big") >> 48


def domain_of(address: str) -> str:
    """Recipient domain in lower-case A-labels, the unit of a destination; "" when there is none."""
    domain = address.rpartition("@")[2].lower().rstrip(".") if "@" in address else ""
    if domain.isascii():
        return domain
    try:
        return ascii_domain(domain)
    except ValueError:
        return domain


@dataclass(frozen=True, slots=True)
class Envelope:
    """Everything about a message but its bytes. Times are Unix milliseconds."""

    id: str
    account: str
    reverse_path: str  # "" = the null reverse-path
    recipients: tuple[str, ...]
    received_at: int
    expires_at: int
    class_: str = "bulk"
    campaign: str = ""  # always read together with the account
    pool: str = "default"
    unknown: str = "retry"  # retry | never | once:<seconds>
    notify_after: int = 0  # when a delay notice falls due; 0 = none
    body: str = "7BIT"  # 7BIT | 8BITMIME
    smtputf8: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "smtp"  # smtp | api | panel
    dsn: str = "mail"  # mail | stream: failures are told by events only
    ret: str = ""  # FULL | HDRS, "" = nothing said (RFC 3461 §4.3)
    envid: str = ""  # as it came, in xtext (§4.4)
    # One entry per recipient, or () when nothing was said of any.
    notify: tuple[str, ...] = ()  # NEVER, or of SUCCESS,FAILURE,DELAY in upper case; "" = nothing said (§4.1)
    orcpt: tuple[str, ...] = ()  # "rfc822;jo@example.org" as it came, in xtext (§4.2)
    return_paths: tuple[str, ...] = ()  # signed reverse-paths, fixed at put; () = reverse_path for all
    pays: bool = False  # taken from the account's quota

    def notifies(self, index: int, what: str) -> bool:
        """Whether recipient ``index`` wants a DSN about ``what``: SUCCESS | FAILURE | DELAY."""
        said = self.notify[index] if self.notify else ""
        return what in said.split(",") if said else what != "SUCCESS"

    def reverse_path_of(self, index: int) -> str:
        """What MAIL says for this recipient."""
        return self.return_paths[index] if self.return_paths else self.reverse_path

    @property
    def is_notification(self) -> bool:
        """A message that must never cause a DSN (RFC 3464 §2, RFC 5321 §4.5.5)."""
        return self.reverse_path == ""


@dataclass(frozen=True, slots=True)
class Message:
    """Envelope and final content: CRLF line ends, trace fields and signatures in place, not dot-stuffed."""

    envelope: Envelope
    content: bytes


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of an item between attempts."""

    attempts: int = 0
    unknowns: int = 0  # ends of data whose reply was lost
    reply: str = ""  # the last diagnostic
    source: str = ""
    at: int = 0  # time of the last attempt, Unix ms


@dataclass(frozen=True, slots=True)
class QueueItem:
    """One recipient of one message, claimed by this worker."""

    message: Message
    index: int
    flow: str
    destination: str
    state: State = State()
    shard: int = 0
    epoch: str = ""  # the lease it was claimed under

    @property
    def recipient(self) -> str:
        return self.message.envelope.recipients[self.index]

    @property
    def key(self) -> bytes:
        """The item's name in the queue: message id and a 2-byte big-endian index."""
        return self.message.envelope.id.encode("ascii") + self.index.to_bytes(2, "big")
