"""From an accepted transaction to a durable message: the hooks behind MAIL, RCPT and the end of data.

Thin on purpose: ``policy`` decides, ``prepare`` makes content final, the queue keeps. Each hook returns the reply to
say. The signature is aiosmtpd's (server, session, envelope, …), the server being our session.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol, cast

import structlog
from aiosmtpd.smtp import Envelope as Transaction
from aiosmtpd.smtp import Session

from config.accounts import AccountSettings
from mailqueue.errors import QueueDown
from mailqueue.events import Event
from mailqueue.logline import say
from mailqueue.message import Message
from mailqueue.writer import Verdict, received_event
from relayd import policy, replies
from relayd.campaigns import OpenCampaigns
from relayd.commits import Commits
from relayd.metrics import ListenerMetrics
from relayd.policy import Client
from relayd.prepare import Preparation
from relayd.replies import Reply
from relayd.volume import Share

REJECTED_EVENTS = 100  # per session; a broken list must not become a flood of events
_TEXT_LIMIT = 320

log = structlog.get_logger()


class Submission(Protocol):
    """What the listener needs of the queue."""

    @property
    def accepting(self) -> bool: ...
    @property
    def stopped(self) -> str: ...
    def new_id(self, account: str, idempotency_key: str | None = None) -> str: ...
    async def put(
        self,
        message: Message,
        *,
        idempotency_key: str | None = None,
        client: str = "",
        account: AccountSettings | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Verdict: ...
    async def campaigns(self) -> Mapping[str, set[str]]: ...
    def emit(self, event: Event) -> None: ...


class Submitter(Protocol):
    """What the hooks need of a session."""

    client: Client
    share: Share
    rejected_events: int

    def renew(self) -> Reply | None: ...


class SubmissionHandler:
    """One per process. `preparation` is replaced on reload; commits under way outlive their sessions."""

    def __init__(self, queue: Submission, preparation: Preparation, metrics: ListenerMetrics) -> None:
        self._queue = queue
        self.preparation = preparation
        self._metrics = metrics
        self._campaigns = OpenCampaigns(queue.campaigns, time.monotonic)
        self._commits: Commits[Verdict] = Commits()

    async def handle_MAIL(
        self, server: Submitter, session: Session, envelope: Transaction, address: str, options: list[str]
    ) -> Reply:
        gone, client = server.renew(), server.client
        refusal = gone or policy.may_submit(client) or policy.check_reverse_path(address, envelope.smtp_utf8)
        refusal = refusal or policy.may_send_as(client.account, address)
        if refusal is None and self._queue.stopped:
            refusal = replies.INTAKE_STOPPED
        if refusal is None and not self._queue.accepting:
            refusal = replies.NOT_ACCEPTING
        if refusal is not None:
            return refusal
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return replies.SENDER_OK

    async def handle_RCPT(
        self, server: Submitter, session: Session, envelope: Transaction, address: str, options: list[str]
    ) -> Reply:
        account, most = server.client.account, self.preparation.terms.max_recipients
        if account is not None and account.max_recipients is not None:
            most = min(most, account.max_recipients)
        if len(envelope.rcpt_tos) >= most:
            return replies.TOO_MANY_RECIPIENTS
        refusal = policy.check_recipient(address, envelope.smtp_utf8)
        if refusal is not None:
            self.rejected(server, envelope, refusal, recipient=address)
            return refusal
        envelope.rcpt_tos.append(address)
        cast(list[list[str]], envelope.rcpt_options).append(options)  # ours: a list per recipient
        return replies.RECIPIENT_OK

    async def handle_DATA(self, server: Submitter, session: Session, envelope: Transaction) -> Reply:
        prepared = self.preparation.prepare(server.client, envelope, time.time())
        if isinstance(prepared, Reply):
            self.rejected(server, envelope, prepared)
            return prepared
        message = prepared.message
        refused = await self._beyond_campaigns(server.client, message.envelope.campaign)
        if refused is not None:
            self.rejected(server, envelope, refused)
            return refused
        put = self._queue.put(
            message,
            idempotency_key=prepared.idempotency_key,
            client=server.client.address,
            account=server.client.account,
            warnings=prepared.warnings,
        )
        verdict = await self._commits.outcome(put, server.share)
        if verdict is None:
            return replies.QUEUE_DOWN
        if verdict.kind == "full":
            return replies.QUEUE_FULL
        if verdict.kind in ("over_quota", "over_rate"):
            refusal = self._refusal(verdict, len(message.envelope.recipients))
            self.rejected(server, envelope, refusal, message_id=verdict.id)
            return refusal
        self._metrics.messages.inc()
        self._metrics.paces.add("accepted", verdict.queued)
        if verdict.kind == "queued":
            say(log, received_event(message, server.client.address, prepared.warnings))
            for warning in prepared.warnings:
                self._metrics.flagged(warning)
        else:
            log.info("duplicate", id=verdict.id, account=message.envelope.account, client=server.client.address)
        return replies.duplicate(verdict.id) if verdict.kind == "duplicate" else replies.queued(verdict.id)

    async def _beyond_campaigns(self, client: Client, campaign: str) -> Reply | None:
        assert client.account is not None
        try:
            admitted = await self._campaigns.admits(client.account, campaign)
        except QueueDown as error:
            log.warning("queue down", text=str(error)[:_TEXT_LIMIT])
            return replies.QUEUE_DOWN
        return None if admitted else replies.too_many_campaigns(client.account.max_campaigns)

    @staticmethod
    def _refusal(verdict: Verdict, count: int) -> Reply:
        """Of a message with ``count`` recipients."""
        if verdict.kind == "over_quota":
            return replies.outside_term(verdict.why) if verdict.why else replies.over_quota(verdict.left, count)
        if not verdict.until:
            return replies.above_rate(verdict.limit, count)
        return replies.over_rate(verdict.limit, verdict.clock)

    async def settle(self, timeout: float) -> bool:
        """See :meth:`Commits.settle`."""
        return await self._commits.settle(timeout)

    def rejected(
        self,
        server: Submitter,
        transaction: Transaction,
        reply: Reply,
        recipient: str | None = None,
        message_id: str = "",
    ) -> None:
        """Events for a refusal after MAIL, one per recipient concerned; bounded per session."""
        client = server.client
        for one in (recipient,) if recipient is not None else dict.fromkeys(transaction.rcpt_tos):
            if server.rejected_events >= REJECTED_EVENTS:
                return
            server.rejected_events += 1
            event = Event(
                kind="rejected",
                at=int(time.time() * 1000),
                id=message_id,
                account=client.account.name if client.account is not None else "",
                reverse_path=transaction.mail_from,
                recipient=one[:_TEXT_LIMIT],
                action="failed",
                status=reply.status,
                diagnostic_code=f"smtp; {reply}"[:_TEXT_LIMIT],
                reason=reply.reason,
                client=client.address,
            )
            self._queue.emit(event)
            say(log, event)
