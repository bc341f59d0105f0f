"""What comes back: whom mail is taken for, and how it is kept. The hooks behind an :class:`InboundSession`.

There is no account here, no queue and no way to send: a recipient is taken because we signed its address for a message
of ours, or because it is one of a few mailboxes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol, cast

import structlog
from aiosmtpd.smtp import Envelope as Transaction
from aiosmtpd.smtp import Session

from config.addresses import ascii_domain
from config.settings import InboundSettings
from mailqueue.inbound import Addressee, Returned
from mailqueue.logline import say
from mailqueue.message import new_id
from relayd import completion, policy, replies, trace
from relayd.commits import Commits
from relayd.metrics import ListenerMetrics
from relayd.policy import Client
from relayd.replies import Reply
from relayd.volume import Share
from signing.return_path import ReturnPaths

MOST_RECIPIENTS = 100  # RFC 5321 §4.5.3.1.8 wants no less; a returned mail has one

log = structlog.get_logger()


class Store(Protocol):
    """What the hooks need of :class:`mailqueue.inbound.InboundStore`."""

    @property
    def accepting(self) -> bool: ...
    async def keep(self, mail: Returned) -> str: ...


class Receiver(Protocol):
    """What the hooks need of a session."""

    client: Client
    share: Share


@dataclass(frozen=True, slots=True)
class Addresses:
    """Whom mail is taken for. Replaced whole on reload. ``paths`` None = no return path is ours."""

    domains: frozenset[str]
    mailboxes: tuple[str, ...]
    paths: ReturnPaths | None

    @classmethod
    def load(cls, inbound: InboundSettings, key: str | None) -> Addresses:
        """OSError or ValueError names the key file that does not serve."""
        domains = frozenset(domain.lower() for domain in inbound.domains)
        return cls(domains, inbound.mailboxes, ReturnPaths.load(key) if key and domains else None)

    def find(self, path: str, utf8: bool = False) -> Addressee | Reply:
        """The addressee, or why it is none. ``Postmaster`` without a domain is ours when we have one (RFC 5321 §4.5.1)."""
        if "@" not in path:
            own = [box for box in self.mailboxes if box.startswith("postmaster@")]
            return Addressee(own[0]) if own and path.lower() == "postmaster" else replies.NO_SUCH_MAILBOX
        if (refusal := policy.check_recipient(path, utf8)) is not None:
            return refusal
        if path.lower() in self.mailboxes:
            return Addressee(path)
        local, _, domain = path.rpartition("@")
        domain = domain.lower() if domain.isascii() else ascii_domain(domain)
        if domain in self.domains:
            found = self.paths.read(f"{local}@{domain}") if self.paths is not None else None
            return replies.NO_SUCH_MAILBOX if found is None else Addressee(path, found.id, found.index)
        known = any(domain == box.rpartition("@")[2] for box in self.mailboxes)
        return replies.NO_SUCH_MAILBOX if known else replies.RELAYING_DENIED


class InboundHandler:
    """One per process. ``addresses`` is replaced on reload; what is being kept outlives its session."""

    def __init__(self, store: Store, addresses: Addresses, hostname: str, metrics: ListenerMetrics) -> None:
        self._store = store
        self.addresses = addresses
        self.hostname = hostname
        self._metrics = metrics
        self._commits: Commits[str] = Commits()

    async def handle_MAIL(
        self, server: Receiver, session: Session, envelope: Transaction, address: str, options: list[str]
    ) -> Reply:
        refusal = policy.check_reverse_path(address, envelope.smtp_utf8)
        if refusal is None and not self._store.accepting:
            refusal = replies.NOT_ACCEPTING
        if refusal is not None:
            return refusal
        envelope.mail_from = address
        return replies.SENDER_OK

    async def handle_RCPT(
        self, server: Receiver, session: Session, envelope: Transaction, address: str, options: list[str]
    ) -> Reply:
        if len(envelope.rcpt_tos) >= MOST_RECIPIENTS:
            return replies.TOO_MANY_RECIPIENTS
        found = self.addresses.find(address, envelope.smtp_utf8)
        if isinstance(found, Reply):
            return found
        envelope.rcpt_tos.append(address)
        cast(list[Addressee], envelope.rcpt_options).append(found)  # who it was then: a reload may come between
        return replies.RECIPIENT_OK

    async def handle_DATA(self, server: Receiver, session: Session, envelope: Transaction) -> Reply:
        mail = self._mail(server.client, envelope, time.time())
        entry = await self._commits.outcome(self._store.keep(mail), server.share)
        if entry is None:
            return replies.QUEUE_DOWN
        if not entry:
            return replies.QUEUE_FULL
        self._metrics.messages.inc()
        for event in mail.events():
            say(log, event)
        return replies.taken(mail.id)

    def _mail(self, client: Client, transaction: Transaction, now: float) -> Returned:
        """As it came but for X-Tambo-* fields, with our trace field on top (RFC 5321 §4.4)."""
        assert isinstance(transaction.content, bytes) and transaction.mail_from is not None
        mail_id = new_id()
        client = policy.with_utf8(client) if transaction.smtp_utf8 else client
        return Returned(
            id=mail_id,
            at=int(now * 1000),
            reverse_path=transaction.mail_from,
            addressees=tuple(dict.fromkeys(cast(list[Addressee], transaction.rcpt_options))),
            client=client.address,
            content=trace.received(client, self.hostname, mail_id, now) + completion.from_outside(transaction.content),
        )

    async def settle(self, timeout: float) -> bool:
        """See :meth:`Commits.settle`."""
        return await self._commits.settle(timeout)

    def rejected(self, server: Receiver, transaction: Transaction, reply: Reply, recipient: str | None = None) -> None:
        """Refusals are counted where they are said. No events: anybody on the Internet may cause them."""
