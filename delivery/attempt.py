"""From claimed items to mail transactions, and from what the next hop said to settlements."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from config.replies import Rules
from config.settings import RetrySettings
from delivery.outcome import Outcome, Via, judged
from delivery.report import Report, report
from delivery.retry import Done, Fail, Retry, Unknown, decide
from delivery.transaction import Transaction, TransactionResult
from mailqueue.message import QueueItem
from mailqueue.worker import Settlement, Worker


@dataclass(frozen=True, slots=True)
class Parcel:
    """Items of one message that go in one mail transaction; one alone where each recipient has a return path."""

    worker: Worker
    items: tuple[QueueItem, ...]

    def transaction(self) -> Transaction:
        """RFC 5321 §3.3; the lease is asked for before MAIL and before the final dot."""
        envelope, content = self.items[0].message.envelope, self.items[0].message.content
        indexes = [item.index for item in self.items]
        return Transaction(
            reverse_path=envelope.reverse_path_of(indexes[0]),
            recipients=tuple(item.recipient for item in self.items),
            content=content,
            body=envelope.body,
            smtputf8=envelope.smtputf8,
            ret=envelope.ret,
            envid=envelope.envid,
            notify=tuple(envelope.notify[index] for index in indexes) if envelope.notify else (),
            orcpt=tuple(envelope.orcpt[index] for index in indexes) if envelope.orcpt else (),
            before_mail=self._ours,
            before_dot=self._commit,
        )

    def _ours(self) -> bool:
        return self.worker.holds(self.items[0])

    async def _commit(self) -> bool:
        """What must not go out twice is marked on disk first; a mark that does not succeed stops the dot."""
        if self.items[0].message.envelope.unknown != "retry":
            marked = await asyncio.gather(*(self.worker.mark(item) for item in self.items))
            if not all(marked):
                return False
        return self.worker.holds(self.items[0])


def parcels(worker: Worker, items: Iterable[QueueItem], most: int) -> list[Parcel]:
    """Neighbours of one message together, at most ``most`` recipients each, in the order claimed.

    Groups are counted as lua/claim.lua counts them, so that what was granted is what was claimed.
    """
    found: list[Parcel] = []
    group: list[QueueItem] = []
    for item in items:
        alone = bool(item.message.envelope.return_paths)  # MAIL says one reverse-path
        if group and (alone or item.message is not group[0].message or len(group) >= most):
            found.append(Parcel(worker, tuple(group)))
            group = []
        group.append(item)
    if group:
        found.append(Parcel(worker, tuple(group)))
    return found


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns outcomes into settlements: rules, schedule, and how long failures of a message are gathered for its DSN."""

    rules: Rules
    retry: RetrySettings
    dsn_window_ms: int
    rng: random.Random = field(default_factory=random.Random)

    def verdicts(
        self, parcel: Parcel, result: TransactionResult, via: Via, provider: str
    ) -> list[tuple[Outcome, Settlement]]:
        """One per item, in order."""
        now = int(time.time() * 1000)
        if result.dsn:
            via = replace(via, dsn=True)
        return [
            (outcome := judged(told, self.rules, via), self.settlement(item, outcome, provider, now))
            for item, told in zip(parcel.items, result.recipients, strict=True)
        ]

    def settlement(self, item: QueueItem, outcome: Outcome, provider: str, now: int, due: int = 0) -> Settlement:
        """``due`` (ms) overrides the schedule where the whole destination waits."""
        decision = decide(outcome, item.state, item.message.envelope, now_ms=now, settings=self.retry, rng=self.rng)
        if due and isinstance(decision, Retry):
            decision = Retry(max(min(due, item.message.envelope.expires_at), now + 1), decision.state)
        told = report(item, outcome, decision, now_ms=now, provider=provider)
        return self._settlement(item, decision, told, now)

    def _settlement(self, item: QueueItem, decision: object, told: Report, now: int) -> Settlement:
        record = told.record.to_json() if told.record else b""
        after = decision.then if isinstance(decision, Unknown) else decision
        if isinstance(after, Retry):
            return Settlement(item, "again", told.event, after.due_ms, after.state)
        assert isinstance(after, Done | Fail)
        return Settlement(item, "final", told.event, record=record, record_due=now + self.dsn_window_ms)
