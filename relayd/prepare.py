"""What happens to content between the end of data and put: one transaction in, final bytes and envelope out.

The steps are pure functions in files of their own (``trace``, ``headers``); here stands their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aiosmtpd.smtp import Envelope as Transaction

from config.settings import AccountSettings
from mailqueue.message import Envelope, Message
from relayd import headers, policy, replies, trace
from relayd.dsn_parameters import dsn_fields
from relayd.policy import Client
from relayd.replies import Reply


@dataclass(frozen=True, slots=True)
class Terms:
    """What a submission is measured by; seconds."""

    hostname: str
    max_recipients: int
    max_hops: int
    expire_seconds: float
    notice_seconds: float  # 0 = no delay notices


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ready for put. `warnings`: what was accepted and flagged, for the event *received*."""

    message: Message
    idempotency_key: str | None = None
    warnings: tuple[str, ...] = ()


class Preparation:
    """All that preparing needs beside the transaction itself. Replaced whole on reload."""

    def __init__(self, terms: Terms, new_id: Callable[[str, str | None], str]) -> None:
        """`new_id`: message id for (account, idempotency key)."""
        self.terms = terms
        self._new_id = new_id

    def prepare(self, client: Client, transaction: Transaction, now: float) -> Prepared | Reply:
        """Final content and envelope; or the refusal. `now` in Unix seconds."""
        account = client.account
        assert account is not None and transaction.mail_from is not None and isinstance(transaction.content, bytes)
        content = trace.normalise(transaction.content)
        header = headers.parse(content)
        if header is None:
            return replies.HEADER_TOO_BIG
        if header.hops >= self.terms.max_hops:
            return replies.TOO_MANY_HOPS
        wanted = headers.directives(header, account)
        if isinstance(wanted, headers.Refused):
            return replies.header_refused(wanted.header, wanted.why)
        message_id = self._new_id(account.name, wanted.idempotency_key)
        trace_of = policy.with_utf8(client) if transaction.smtp_utf8 else client
        field = trace.received(trace_of, self.terms.hostname, message_id, now)
        content = field + headers.without_own(content, header)
        body = "7BIT" if content.isascii() else "8BITMIME"  # what it is, whatever BODY= said
        envelope = self._envelope(account, transaction, wanted, message_id=message_id, body=body, now=now)
        if transaction.smtp_utf8 and needs_utf8(envelope, content):
            envelope = replace(envelope, smtputf8=True)
        return Prepared(Message(envelope, content), wanted.idempotency_key)

    def _envelope(
        self,
        account: AccountSettings,
        transaction: Transaction,
        wanted: headers.Directives,
        *,
        message_id: str,
        body: str,
        now: float,
    ) -> Envelope:
        terms = self.terms
        dsn = dsn_fields(transaction.mail_options, transaction.rcpt_tos, transaction.rcpt_options)
        expire = account.expire_seconds if account.expire_seconds is not None else terms.expire_seconds
        return Envelope(
            id=message_id,
            account=account.name,
            reverse_path=transaction.mail_from or "",
            recipients=tuple(dict.fromkeys(transaction.rcpt_tos)),  # named twice is sent once
            received_at=int(now * 1000),
            expires_at=int((now + expire) * 1000),
            class_=wanted.class_ or account.class_,
            campaign=wanted.campaign,
            pool=account.pool,
            unknown=wanted.unknown or account.unknown,
            notify_after=int((now + terms.notice_seconds) * 1000) if terms.notice_seconds else 0,
            body=body,
            metadata=wanted.metadata,
            pays=account.metered,
            ret=dsn.ret,
            envid=dsn.envid,
            notify=dsn.notify,
            orcpt=dsn.orcpt,
        )


def needs_utf8(envelope: Envelope, content: bytes) -> bool:
    """Whether a message that came with SMTPUTF8 can only go on with it: many clients say it of everything.

    Multipart content is not searched for header fields of its parts (RFC 6532 §3.3): any 8-bit there counts.
    """
    head = content.partition(b"\r\n\r\n")[0]
    if not head.isascii() or (b"multipart/" in head.lower() and not content.isascii()):
        return True
    return not all(text.isascii() for text in (envelope.reverse_path, *envelope.recipients, *envelope.orcpt))
