"""The queue as its users see it: put for relayd, workers for delivery, stops and holds for operators."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Self

import redis.asyncio as aioredis
import structlog

from config.accounts import AccountSettings
from config.settings import QueueSettings, QuotaSettings
from mailqueue import calendar, content, inspect, keys, rates, scripts, server, traces
from mailqueue.accounts import AccountStore
from mailqueue.batch import Batch
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.intake import STOPPED, Intake
from mailqueue.logline import say
from mailqueue.marks import Marks, refusals
from mailqueue.message import Message, new_id
from mailqueue.pulse import Pulse
from mailqueue.quota import Allotments, Ledger, charge_of, outside_term, term_of
from mailqueue.rates import Rates, Take
from mailqueue.scripts import Shard
from mailqueue.worker import Worker
from mailqueue.writer import Put, Verdict, Writer, prepare

MOST_EVENTS_WAITING = 20_000
log = structlog.get_logger("queue")


class Queue:
    """Made by :meth:`open`. One per process; all shards live on one server (or one Redis Cluster)."""

    facts: server.ServerFacts

    def __init__(
        self, settings: QueueSettings, role: str, shards: list[Shard], bells: list[Shard], quota: QuotaSettings
    ) -> None:
        self.settings = settings
        self.quota = quota
        self.role = role
        self.shards = shards
        self._bells = bells
        self._encoder = content.Encoder(settings.dictionaries)
        slot = scripts.quota_slot(shards[0].client)
        self.ledger = Ledger(slot, shards)
        self._allotments = Allotments(self.ledger, quota.allotment)
        self._rates = Rates(slot)
        self._writers = [
            Writer(shard, marker_seconds=settings.idempotency_seconds, allotments=self._allotments) for shard in shards
        ]
        self.marks = Marks(shards[0], settings)
        self._events: Batch[Event, bytes] = Batch(self._emit, most=500)
        self._intake = Intake(shards[0])
        self._pulse = Pulse(shards, self._intake.look, self.marks.reached)
        self._closing = False

    @classmethod
    async def open(
        cls, settings: QueueSettings, role: str, *, patience: float = 30.0, quota: QuotaSettings | None = None
    ) -> Self:
        """Connects and inspects the server, waiting ``patience`` seconds for it to come up.

        Raises QueueRefused (a server that may not hold mail: what to change) or QueueDown (none there).
        """
        sources = scripts.load_sources()
        shards = [Shard(cls._client(settings), number, sources) for number in range(settings.shards)]
        bells = [Shard(cls._client(settings, timeout=None), number, {}) for number in range(settings.shards)]
        queue = cls(settings, role, shards, bells, quota or QuotaSettings())
        try:
            queue.facts = await server.await_server(shards[0], settings, patience)
        except BaseException:
            await queue._disconnect()
            raise
        return queue

    @staticmethod
    def _client(settings: QueueSettings, timeout: float | None = 10.0) -> aioredis.Redis:
        password = settings.password.get_secret_value() if settings.password else None
        return scripts.connect(settings.url, password, timeout=timeout)

    # ── relayd ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def accepting(self) -> bool:
        """False while the server is known to be down or full: say so before the client sends its content. Without
        :meth:`watch`, only a put finds out."""
        if self._closing or not self._pulse.felt or self.marks.full:
            return False
        return not any(writer.down for writer in self._writers)

    @property
    def stopped(self) -> str:
        """Why no new mail is to be taken, by an operator's word; "" = it is. Without :meth:`watch`, nobody looks."""
        return self._intake.stopped.reason if self._intake.stopped else ""

    @property
    def refusals(self) -> list[str]:
        """Why it takes no mail, each reason; [] while it does."""
        down = not self._pulse.felt or any(writer.down for writer in self._writers)
        reasons = refusals(not down, self.marks, "the queue server does not answer")
        return [*reasons, f"{STOPPED}: {self.stopped}"] if self.stopped else reasons

    async def watch(self) -> None:
        """From now on the server is asked every second whether it answers and has room and new mail is to be taken, until
        the queue is closed; the first answer is there when this returns."""
        with suppress(QueueDown):
            await self._intake.look()
        self._pulse.start()

    def new_id(self, account: str, idempotency_key: str | None = None) -> str:
        """An id for a message to be put. Messages of one account and key get ids of one shard, where their markers
        are: a repetition must find them."""
        found = new_id()
        if idempotency_key:
            while keys.shard_of(found, len(self.shards)) != self._home(account, idempotency_key):
                found = new_id()
        return found

    def _home(self, account: str, idempotency_key: str) -> int:
        return keys.shard_of(f"{account}/{idempotency_key}", len(self.shards))

    async def put(
        self,
        message: Message,
        idempotency_key: str | None = None,
        client: str = "",
        account: AccountSettings | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Verdict:
        """One message, on disk when this returns ``queued``. The id is the caller's and makes a repetition harmless.
        ``account``: whose rates, term and allowance count; without, there are none. ``warnings``: for its event.

        Raises QueueDown when the server did not answer within ``put_deadline_seconds``; the message is void then.
        """
        envelope, shards = message.envelope, len(self.shards)
        if idempotency_key and self._home(envelope.account, idempotency_key) != keys.shard_of(envelope.id, shards):
            raise ValueError("the id of a message with an idempotency key comes from new_id(account, key)")
        started = asyncio.get_running_loop().time()
        patience = self.settings.put_deadline_seconds
        if await self._full(len(message.content), patience):
            return Verdict("full", message.envelope.id)
        charge = charge_of(envelope, self.quota.timezone, account)
        if charge is not None and account is not None and outside_term(account, charge.day):
            return Verdict("over_quota", envelope.id, why=term_of(account))
        entry = prepare(message, self._encoder, key=idempotency_key, client=client, warnings=warnings, charge=charge)
        if account is not None and (limits := rates.limits(account)):
            at = calendar.moment(envelope.received_at / 1000, self.quota.timezone)
            return await self._put_at_rate(entry, Take(account.name, len(envelope.recipients), limits, at), started)
        return await self.put_prepared(entry, self._patience_left(started))

    def _patience_left(self, started: float) -> float:
        return self.settings.put_deadline_seconds - (asyncio.get_running_loop().time() - started)

    async def _put_at_rate(self, entry: Put, take: Take, started: float) -> Verdict:
        """Counted first and given back if it comes to nothing: a limit is never passed, and a crash leaves it too full."""
        try:
            async with asyncio.timeout(self._patience_left(started)):
                reached = await self._rates.take(take)
        except TimeoutError:
            raise QueueDown("no answer from the queue server in time") from None
        if reached is not None:
            clock = calendar.clock(reached.until, self.quota.timezone)
            return Verdict("over_rate", entry.id, limit=reached.limit, until=reached.until, clock=clock)
        queued = 0
        try:
            verdict = await self.put_prepared(entry, self._patience_left(started))
            queued = verdict.queued
            return verdict
        finally:
            if queued < take.count:
                self._rates.give_back(take, take.count - queued)

    async def put_prepared(self, entry: Put, patience: float) -> Verdict:
        writer = self._writers[keys.shard_of(entry.id, len(self.shards))]
        try:
            return await writer.put(entry, patience)
        except ServerAnswer as answer:
            if str(answer).startswith("OOM"):
                return Verdict("full", entry.id)
            raise

    async def _full(self, size: int, patience: float) -> bool:
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            try:
                return await self.marks.reached(size)
            except QueueDown:
                if asyncio.get_running_loop().time() + 0.1 >= deadline:
                    raise
                await asyncio.sleep(0.1)

    async def campaigns(self) -> dict[str, set[str]]:
        """Account → its campaigns with mail in the queue. Raises QueueDown."""
        return await inspect.campaigns(self.shards)

    def emit(self, event: Event) -> None:
        """An event that is no change of state. Dropped when 20,000 wait already."""
        if len(self._events) < MOST_EVENTS_WAITING:
            self._events.add(event).add_done_callback(lambda done: done.exception() if not done.cancelled() else None)

    async def _emit(self, number: int, events: list[Event]) -> list[bytes | Exception]:
        shard = self.shards[number % len(self.shards)]
        async with shard.client.pipeline(transaction=False) as pipe:
            for event in events:
                pipe.xadd(shard.events, {"e": event.to_json()})
            try:
                return list(await pipe.execute())
            except scripts.FOREIGN as error:
                raise scripts.translated(error) from error

    async def set_weights(self, weights: Mapping[str, int]) -> None:
        """Shares of accounts in each lane: an account of weight 2 gets twice the turns of one of weight 1."""
        for shard in self.shards:
            for account, weight in weights.items():
                number = await self._account_number(shard, account)
                await shard.command("HSET", shard.prefix + "weight", number, weight)

    @staticmethod
    async def _account_number(shard: Shard, account: str) -> str:
        flow, field = shard.prefix + "flow", f"a:{account}"
        number = await shard.command("HGET", flow, field)
        if number is None:
            await shard.command("HSETNX", flow, field, await shard.command("HINCRBY", flow, "#a", 1))
            number = await shard.command("HGET", flow, field)
        return number.decode() if isinstance(number, bytes) else str(number)

    def accounts(self) -> AccountStore:
        return AccountStore(self.shards[0], self._bells[0])

    # ── delivery ───────────────────────────────────────────────────────────────────────────────────────────────

    def workers(self) -> list[Worker]:
        """One per shard, not yet started."""
        name = f"{self.role}@{socket.gethostname()}:{os.getpid()}"
        lease = self.settings.lease_seconds
        return [
            Worker(shard, name=name, lease_seconds=lease, bell=bell)
            for shard, bell in zip(self.shards, self._bells, strict=True)
        ]

    # ── operators ──────────────────────────────────────────────────────────────────────────────────────────────

    async def suspend(self, key: str, seconds: float = 0.0, reason: str = "", audit: Event | None = None) -> None:
        """Stops sending for ``key`` (flow:, account:, campaign:<account>/<name>, provider:, source:, destination:, route:)
        without touching an item; ``seconds`` 0 = until resumed. ``audit`` is written with it."""
        until = int((time.time() + seconds) * 1000) if seconds else 0
        event = Event(kind="suspended", at=int(time.time() * 1000), reason=reason, destination=key, next_at=until)
        for shard in self.shards:
            said = event.to_json() if shard is self.shards[0] else b""
            trail = audit.to_json() if audit and said else b""
            await shard.run("stop", ["suspend", key, until, reason, said, trail])
            if said:
                say(log, event)

    async def resume(self, key: str, reason: str = "", audit: Event | None = None) -> bool:
        """False when ``key`` was not suspended; else ``audit`` is written with it."""
        event = Event(kind="resumed", at=int(time.time() * 1000), reason=reason, destination=key)
        changed = 0
        for shard in self.shards:
            said = event.to_json() if shard is self.shards[0] else b""
            trail = audit.to_json() if audit and said else b""
            lifted = int(await shard.run("stop", ["resume", key, 0, reason, said, trail]))
            changed += lifted
            if said and lifted:
                say(log, event)
        return changed > 0

    def trace(self, kind: traces.Kind, value: str, seconds: float) -> AsyncIterator[traces.Batch]:
        """What sessions of an account, a client or to a domain say, as they say it. Raises QueueDown."""
        return traces.listen(self.shards[0], self._bells[0], kind, value, seconds)

    async def close(self, patience: float = 5.0) -> None:
        self._closing = True
        await self._pulse.stop()
        for writer in self._writers:
            await writer.close(patience)
        await self._allotments.close()
        await self._rates.close()
        await self._events.close(min(patience, 2.0))
        await self._disconnect()

    async def _disconnect(self) -> None:
        for shard in (*self.shards, *self._bells):
            with suppress(Exception):
                await shard.client.aclose()
