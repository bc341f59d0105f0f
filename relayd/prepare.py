"""What happens to content between the end of data and put: one transaction in, final bytes and envelope out.

Here stands the order of the steps; the steps are pure functions in files of their own. Line ends (``trace``) → header
(``headers``) → hops → what the sender asks for (``directives``) → as whom (``senders``) → fields out and in
(``completion``) → 7-bit where the account wants it (``sevenbit``) → long lines (``lines``) → our Received field and DKIM
signatures on top. From there on the bytes do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aiosmtpd.smtp import Envelope as Transaction

from config.routes import for_sender, site_of
from config.settings import AccountSettings, RouteSettings
from mailqueue.message import Envelope, Message
from relayd import completion, directives, headers, lines, policy, replies, senders, sevenbit, trace
from relayd.completion import Identity
from relayd.directives import Directives, Refused
from relayd.dsn_parameters import dsn_fields
from relayd.headers import Header
from relayd.mime import Malformed
from relayd.policy import Client
from relayd.replies import UNSIGNED, Reply
from relayd.senders import Author, NotAllowed
from signing.dkim import Signer
from signing.return_path import ReturnPaths

_AUTHORS = (b"from", b"sender", b"resent-from", b"resent-sender")  # what senders look at


@dataclass(frozen=True, slots=True)
class Terms:
    """What a submission is measured by; seconds."""

    hostname: str
    max_recipients: int
    max_hops: int
    expire_seconds: float
    notice_seconds: float  # 0 = no delay notices
    feedback_id: str | None = None  # SenderId; None = no Feedback-ID is added
    routes: tuple[RouteSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ready for put. `warnings`: what was accepted and flagged, for the event *received*."""

    message: Message
    idempotency_key: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a message when its bytes are final."""

    id: str
    body: str
    smtputf8: bool
    wanted: Directives
    author: Author
    now: float


@dataclass(frozen=True, slots=True)
class Keys:
    """Key material, read at start and on reload. `return_paths` None: no signed return paths."""

    signer: Signer = field(default_factory=Signer)
    return_paths: ReturnPaths | None = None


class Preparation:
    """All that preparing needs beside the transaction itself. Replaced whole on reload."""

    def __init__(self, terms: Terms, keys: Keys, new_id: Callable[[str, str | None], str]) -> None:
        """`new_id`: message id for (account, idempotency key)."""
        self.terms = terms
        self._keys = keys
        self._new_id = new_id
        self._identity = Identity(terms.hostname, terms.feedback_id)

    def prepare(self, client: Client, transaction: Transaction, now: float) -> Prepared | Reply:
        """Final content and envelope; or the refusal. `now` in Unix seconds."""
        account, content = client.account, transaction.content
        assert account is not None and transaction.mail_from is not None and isinstance(content, bytes)
        if account.max_message_bytes is not None and len(content) > account.max_message_bytes:
            return replies.TOO_BIG
        content = trace.normalise(content)
        header = headers.parse(content)
        if header is None:
            return replies.HEADER_TOO_BIG
        if header.hops >= self.terms.max_hops:
            return replies.TOO_MANY_HOPS
        own = directives.own(header)
        wanted = directives.read(content, own, account, now)
        if isinstance(wanted, Refused):
            return replies.header_refused(wanted.header, wanted.why)
        author = _author(content, header, account)
        if isinstance(author, Reply):
            return author
        unsigned = not self._keys.signer.covers(author.domain, now)
        if unsigned and account.unsigned == "refuse":
            return replies.NOT_SIGNED
        message_id = self._new_id(account.name, wanted.idempotency_key)
        content = completion.completed(
            content, header, own, wanted, account, self._identity, message_id=message_id, now=now
        )
        if account.seven_bit:
            try:
                content = sevenbit.converted(content)
            except Malformed as error:
                return replies.not_seven_bit(str(error))
        content = lines.broken(content)
        signatures = b"" if unsigned else self._keys.signer.sign(content, author.domain, now)
        needs = _needs(content, transaction)
        trace_of = policy.with_utf8(client) if transaction.smtp_utf8 else client
        content = b"".join((trace.received(trace_of, self.terms.hostname, message_id, now), signatures, content))
        envelope = self._envelope(account, transaction, _Known(message_id, *needs, wanted, author, now))
        return Prepared(Message(envelope, content), wanted.idempotency_key, (UNSIGNED,) if unsigned else ())

    def _envelope(self, account: AccountSettings, transaction: Transaction, known: _Known) -> Envelope:
        terms, wanted, now = self.terms, known.wanted, known.now
        expire = account.expire_seconds if account.expire_seconds is not None else terms.expire_seconds
        dsn = dsn_fields(transaction.mail_options, transaction.rcpt_tos, transaction.rcpt_options)
        recipients = tuple(dict.fromkeys(transaction.rcpt_tos))  # named twice is sent once
        expires_at = now + expire if wanted.deadline is None else min(now + expire, wanted.deadline)
        return Envelope(
            id=known.id,
            account=account.name,
            reverse_path=transaction.mail_from or "",
            recipients=recipients,
            received_at=int(now * 1000),
            expires_at=int(expires_at * 1000),
            class_=wanted.class_ or account.class_,
            campaign=wanted.campaign,
            pool=self._route(account, transaction, known.author) or wanted.pool or account.pool,
            unknown=wanted.unknown or account.unknown,
            notify_after=int((now + terms.notice_seconds) * 1000) if terms.notice_seconds else 0,
            body=known.body,
            smtputf8=known.smtputf8,
            metadata=wanted.metadata,
            dsn=account.dsn,
            ret=dsn.ret,
            envid=dsn.envid,
            notify=dsn.notify,
            orcpt=dsn.orcpt,
            return_paths=self._return_paths(account, transaction, known.id, len(recipients)),
            pays=account.metered,
        )

    def _route(self, account: AccountSettings, transaction: Transaction, author: Author) -> str:
        """Pool of mail that goes by its sender's smarthost, whatever pool was asked for; "" = by MX."""
        domain = author.domain or (transaction.mail_from or "").rpartition("@")[2]
        route = for_sender(self.terms.routes, account.name, domain)
        return site_of(route) if route is not None else ""

    def _return_paths(
        self, account: AccountSettings, transaction: Transaction, message_id: str, recipients: int
    ) -> tuple[str, ...]:
        """One signed reverse-path per recipient; () when the sender's own serves. Notifications keep their null one."""
        domain, make = account.return_path, self._keys.return_paths
        if domain is None or make is None or not transaction.mail_from:
            return ()
        return tuple(make.make(message_id, index, domain) for index in range(recipients))


def _author(content: bytes, header: Header, account: AccountSettings) -> Author | Reply:
    """Whose message it is, when the account may send as them."""
    refused = completion.ambiguous(header)
    if refused is not None:
        return replies.header_refused(refused.header, refused.why)
    fields = [one for name in _AUTHORS for one in header.by_name.get(name, ())]
    for one in fields:
        if lines.long_line(content[one.start : one.end]) >= 0:  # a break would come into it after it was looked at
            return replies.header_refused(one.name.decode("ascii").title(), f"a line over {lines.LIMIT} octets")
    author = senders.check(account, ((one.name, headers.raw_body(content, one)) for one in fields))
    return replies.author_refused(author.header, author.why) if isinstance(author, NotAllowed) else author


def _needs(content: bytes, transaction: Transaction) -> tuple[str, bool]:
    """BODY and SMTPUTF8 that the message needs of its next hops, by what it is: many clients say both of everything.

    Raw UTF-8 in the header is an internationalized message (RFC 6532) even when the client did not say so; other 8-bit
    octets there are in nobody's character set and travel as they came. Multipart content that came with SMTPUTF8 is
    not searched for header fields of its parts (§3.3): any 8-bit there counts.
    """
    said = [transaction.mail_from or "", *transaction.rcpt_tos]
    for options in transaction.rcpt_options:
        said += options  # ORCPT
    utf8 = not all(map(str.isascii, said))
    if content.isascii():
        return "7BIT", utf8
    header = content[: content.find(b"\r\n\r\n") + 2]
    if header.isascii():
        return "8BITMIME", utf8 or (transaction.smtp_utf8 and b"multipart/" in header.lower())
    return "8BITMIME", utf8 or transaction.smtp_utf8 or _is_utf8(header)


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
