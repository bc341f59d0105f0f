"""What must happen though no worker lives to do it: leases that ended, notices and expiries that fall due, tidying.

Each step is driven by an index, repeated until it finds nothing, and harmless when two maintenance processes do it
at once or one dies half-way. What a DSN says is not this room's business: it is passed in.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import structlog

from mailqueue import content, keys
from mailqueue.errors import QueueDown
from mailqueue.events import Event, about
from mailqueue.logline import say
from mailqueue.message import Envelope, Message, QueueItem, State
from mailqueue.quota import USE_DAYS, Charge
from mailqueue.reading import Reader
from mailqueue.scripts import Argument, Shard
from mailqueue.trimming import trim
from mailqueue.withdrawal import Record, Withdrawal, arguments
from mailqueue.worker import Settlement, damaged, settle_arguments, unpack_state
from mailqueue.writer import Put

LOOK_AGAIN_MS = 60_000
log = structlog.get_logger("queue")


@dataclass(frozen=True, slots=True)
class Notice:
    """A DSN that is due: about ``message``, saying ``records``; ``token`` proves the lease on it."""

    shard: int
    id: str
    token: str
    message: Message | None
    records: tuple[bytes, ...]


class Reaper:
    """Maintenance of one shard. ``told`` hears each event that went into the stream, once it is there."""

    def __init__(self, shard: Shard, record: Record, told: Callable[[Event], None] | None = None) -> None:
        self._shard = shard
        self._record = record
        self._told = told
        self._reader = Reader(shard)

    def _tell(self, event: Event) -> None:
        say(log, event)
        if self._told is not None:
            self._told(event)

    # ── dead workers ───────────────────────────────────────────────────────────────────────────────────────────

    async def reap(self) -> int:
        """Puts back what dead workers held; marked items follow their outcome-unknown policy. Returns the count."""
        total = 0
        while True:
            answer = await self._shard.run("reap", [200])
            if not answer:
                return total
            epoch, name = answer[0].decode(), answer[1].decode()
            rows = [answer[at : at + 6] for at in range(3, len(answer), 6)]
            settlements = [self._reaped(row, epoch) for row in rows]
            words: list[Argument] = [epoch, 0, len(settlements)]
            for settlement in settlements:
                words += settle_arguments(settlement)
            letters = (await self._shard.run("settle", words)).decode()
            for settlement, letter in zip(settlements, letters, strict=True):
                if settlement.event is not None and letter in "drh":  # not p, back in the queue, nor -, another's
                    self._tell(settlement.event)
            total += len(rows)
            log.warning("worker reaped", worker=name, epoch=epoch, items=len(rows), shard=self._shard.number)

    def _reaped(self, row: list[bytes], epoch: str) -> Settlement:
        key, letter, stamp, poison, value, state = row
        _, flow, destination, *policy = stamp.decode().split("\n")
        message_id, index = keys.item_parts(key)
        now = int(time.time() * 1000)
        envelope = self._envelope(message_id, value) if value else None
        message = Message(envelope, b"") if envelope else damaged(message_id, keys.CLASS_NAME[letter.decode()], index)
        item = QueueItem(message, index, flow, destination, unpack_state(state), self._shard.number, epoch)
        if policy and envelope is not None and policy[0] != "retry":
            return self._unknown(item, policy[0], now)
        if envelope is not None and int(poison) >= 4:
            reason = "five claims ended without a result"
            return Settlement(item, "reaped", event_of(item, "held", now, reason=reason))
        return Settlement(item, "reaped")

    @staticmethod
    def _unknown(item: QueueItem, policy: str, now: int) -> Settlement:
        """The worker died between the final dot and its reply."""
        event = event_of(item, "unknown", now, reason="the worker died after the final dot", phase="end-of-data")
        if policy.startswith("once:") and item.state.unknowns == 0:
            due = now + int(policy[5:]) * 1000
            state = replace(item.state, attempts=item.state.attempts + 1, unknowns=1, at=now)
            return Settlement(item, "again", event, due, state)
        return Settlement(item, "final", event)

    @staticmethod
    def _envelope(message_id: str, value: bytes) -> Envelope | None:
        """None when it is damaged: who claims the item will hold it, maintenance must go on."""
        try:
            return content.unpack_envelope(message_id, value)
        except ValueError as error:
            log.error("message damaged", id=message_id, why=str(error))
            return None

    # ── delay notices and expiry ───────────────────────────────────────────────────────────────────────────────

    async def look(self) -> int:
        """Messages whose delay notice or expiry is due. Returns how many were looked at."""
        total = 0
        while True:
            rows = await self._shard.run("look_at", [100, LOOK_AGAIN_MS])
            for at in range(0, len(rows), 2):
                try:
                    await self._look_at(rows[at].decode(), rows[at + 1])
                except QueueDown:
                    raise
                except Exception:  # one message must not keep the others: it is looked at again in a minute
                    log.exception("message not looked at", id=rows[at].decode())
            total += len(rows) // 2
            if len(rows) < 200:
                return total

    async def _look_at(self, message_id: str, value: bytes) -> None:
        envelope = self._envelope(message_id, value)
        if envelope is None:
            return
        now = int(time.time() * 1000)
        if now >= envelope.expires_at:
            await self.withdraw(envelope, "close", "expired", "delivery time expired", "failed")
        elif envelope.notify_after and now >= envelope.notify_after:
            await self.withdraw(envelope, "delay", "", "", "delayed", look_at=envelope.expires_at)
        # else the server's clock is ahead of ours: looked at again in a minute

    async def withdraw(
        self,
        envelope: Envelope,
        verb: str,
        kind: str,
        reason: str,
        action: str = "",
        *,
        look_at: int = 0,
        only: set[int] | None = None,
        charge: Charge | None = None,
    ) -> int:
        """close | suppress | delay | hold | release | retry the recipients (``only`` these indexes) that no worker holds;
        see lua/withdraw.lua. ``charge``: what suppress gives back. Returns how many it applied to."""
        now = int(time.time() * 1000)
        indexes = [i for i in range(len(envelope.recipients)) if only is None or i in only]
        states = await self._states(envelope.id, indexes)
        status = "4.4.7" if kind == "expired" else ""
        withdrawal = Withdrawal(verb, kind, reason, action, status)
        words, told = arguments(withdrawal, envelope, states, now, self._record, look_at=look_at, charge=charge)
        applied = [int(entry) for entry in await self._shard.run("withdraw", words)]
        for entry in applied:
            if (event := told[entry]) is not None:
                self._tell(event)
        return len(applied)

    async def _states(self, message_id: str, indexes: list[int]) -> dict[int, State]:
        if not indexes:
            return {}
        names = [self._shard.prefix.encode() + b"s:" + keys.item(message_id, index) for index in indexes]
        return dict(zip(indexes, map(unpack_state, await self._shard.command("MGET", *names)), strict=True))

    # ── DSNs ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def notices(self, most: int = 50) -> list[Notice]:
        rows = await self._shard.run("notices", [most, LOOK_AGAIN_MS])
        return [await self._notice(row) for row in rows]

    async def _notice(self, row: list[bytes]) -> Notice:
        message_id, token, value, *records = row
        message = None
        if value:
            try:
                message = await self._reader.decode(message_id.decode(), value)
            except ValueError as error:
                log.error("message damaged", id=message_id.decode(), why=str(error))
                envelope = self._envelope(message_id.decode(), value)
                message = Message(envelope, b"") if envelope else None
        return Notice(self._shard.number, message_id.decode(), token.decode(), message, tuple(records))

    async def notified(self, notice: Notice, dsns: list[Put]) -> bool:
        """Queues the DSNs and forgets their records in one step; False when another process did so."""
        words: list[Argument] = [notice.id, notice.token, len(notice.records), len(dsns)]
        for dsn in dsns:
            words += dsn.arguments(b"")
        return bool(await self._shard.run("notified", words))

    # ── tidying ────────────────────────────────────────────────────────────────────────────────────────────────

    async def tidy(self, events_keep: int | None) -> None:
        """Old answers of writers and workers (a day), suspensions whose time is over, the event stream's tail (None: it is
        the archive's to trim), and which day quotas were used more than :data:`USE_DAYS` ago."""
        if events_keep is not None:
            await trim(self._shard, events_keep)
        now = time.time() * 1000
        for name in ("put", "settled"):
            async for rows in self._pages(name):
                old = [field for field, value in rows if float(value.split(b" ", 2)[1]) < now - 86_400_000]
                if old:
                    await self._shard.command("HDEL", self._shard.prefix + name, *old)
        for name in ("sus", "stop"):
            async for rows in self._pages(name):
                over: list[Argument] = []
                for field, value in rows:
                    if 0 < float(value.split(b" ", 1)[0]) < now:
                        over += [name, field, value]
                if over:  # the script looks again: it may have been suspended anew
                    await self._shard.run("stop", ["forget", *over])

        oldest = (datetime.date.fromtimestamp(now / 1000) - datetime.timedelta(USE_DAYS)).isoformat().encode()
        for account in await self._shard.command("SMEMBERS", self._shard.prefix + "bags"):
            async for rows in self._pages("bag:" + account.decode()):
                if old := [field for field, _ in rows if field.startswith(b"u:") and field[2:12] < oldest]:
                    await self._shard.command("HDEL", f"{self._shard.prefix}bag:{account.decode()}", *old)

    async def _pages(self, name: str) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """A hash's (field, value) pairs, page by page."""
        cursor: bytes = b"0"
        while True:
            cursor, page = await self._shard.command("HSCAN", self._shard.prefix + name, cursor, "COUNT", 500)
            yield list(zip(page[::2], page[1::2], strict=True))
            if int(cursor) == 0:
                return


def event_of(item: QueueItem, kind: str, now: int, *, reason: str = "", phase: str = "") -> Event:
    """An event about a recipient that no session speaks of."""
    return about(
        item,
        kind,
        now,
        diagnostic_code=f"smtp; {item.state.reply}" if item.state.reply else "",
        source=item.state.source,
        attempt=item.state.attempts,
        phase=phase,
        reason=reason,
    )
