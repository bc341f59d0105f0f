"""DSNs that are due: composed from their records, signed, and put into the queue in the step that forgets the records."""

from __future__ import annotations

import time

import structlog

from config.settings import Settings
from delivery.dsn import KINDS, compose, notification_envelope
from delivery.report import DsnRecord, mails_dsn
from mailqueue import keys
from mailqueue.content import Encoder
from mailqueue.errors import QueueDown
from mailqueue.message import Envelope, Message, State, new_id
from mailqueue.reaper import Notice, Reaper
from mailqueue.withdrawal import Record
from mailqueue.writer import Put, prepare
from signing.dkim import Signer

log = structlog.get_logger("delivery")


def record_of(envelope: Envelope, index: int, state: State, action: str, now: int) -> bytes:
    """What a DSN will say of an item that waits (``delayed``) or ran out of time (``failed``): the reaper's part."""
    if not mails_dsn(envelope, index, action):
        return b""
    text = state.reply or "not attempted yet"
    return DsnRecord(
        recipient=envelope.recipients[index],
        action=action,
        status="4.4.7" if action == "failed" else "4.0.0",
        diagnostic_code=f"smtp; {text}" if text[:3].isdigit() else f"x-tambo; {text}",
        last_attempt_at=state.at or envelope.received_at,
        arrived_at=envelope.received_at,
        retry_until=envelope.expires_at if action == "delayed" else 0,
        orcpt=envelope.orcpt[index] if envelope.orcpt else "",
    ).to_json()


def failed_by_hand(reason: str) -> Record:
    """What a DSN will say of recipients that an operator gives up."""

    def record(envelope: Envelope, index: int, state: State, action: str, now: int) -> bytes:
        if not mails_dsn(envelope, index, action):
            return b""
        return DsnRecord(
            recipient=envelope.recipients[index],
            action=action,
            status="5.3.0",  # RFC 3463 §3.4: the mail system, not the address
            diagnostic_code=f"x-tambo; given up by the operator: {reason}",
            last_attempt_at=state.at or now,
            arrived_at=envelope.received_at,
            orcpt=envelope.orcpt[index] if envelope.orcpt else "",
        ).to_json()

    return record


async def notify(reaper: Reaper, settings: Settings, signer: Signer | None = None) -> int:
    """Every DSN that is due now, signed where a key covers our host name. Returns how many were queued."""
    queued = 0
    while notices := await reaper.notices():
        for notice in notices:
            try:
                dsns = _compose(notice, settings, signer)
                if await reaper.notified(notice, dsns):
                    queued += len(dsns)
            except QueueDown:
                raise
            except Exception:  # its lease ends in a minute and it comes again; the others must not wait for it
                log.exception("DSN failed", id=notice.id)
    return queued


def _read(message_id: str, record: bytes) -> DsnRecord | None:
    """None for one that says nothing: the others must not wait for it."""
    try:
        return DsnRecord.from_json(record)
    except ValueError as error:
        log.error("DSN record damaged", id=message_id, why=str(error))
        return None


def _id_in(shard: int, shards: int) -> str:
    """An id that is looked for in the shard where the DSN is put: its message's."""
    while keys.shard_of(identity := new_id(), shards) != shard:
        continue
    return identity


def _compose(notice: Notice, settings: Settings, signer: Signer | None) -> list[Put]:
    """One DSN for the failures, one for the delays, one for what was relayed; none where nobody may be told."""
    if notice.message is None:
        log.error("DSN without its message", id=notice.id)
        return []
    records = [read for record in notice.records if (read := _read(notice.id, record)) is not None]
    now = int(time.time() * 1000)
    encoder = Encoder(dictionaries=False)
    found = []
    for kind in KINDS:
        mine = [record for record in records if record.action == kind]
        if not mine:
            continue
        identity = _id_in(notice.shard, settings.queue.shards)
        content = compose(
            notice.message.envelope,
            notice.message.content,
            mine,
            kind,
            reporting_mta=settings.delivery.hostname,
            now_ms=now,
            message_id=f"{identity}@{settings.delivery.hostname}",
        )
        if content is None:
            continue
        if signer is not None:
            content = signer.sign(content, settings.delivery.hostname.lower(), now / 1000) + content
        expires = now + int(settings.delivery.retry.expire_seconds * 1000)
        envelope = notification_envelope(
            notice.message.envelope, id=identity, now_ms=now, expires_at=expires, eight_bit=not content.isascii()
        )
        found.append(prepare(Message(envelope, content), encoder))
    return found
