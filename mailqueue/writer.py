"""put: messages into one shard, many at a time, each with its own verdict and its own deadline.

What a client must be able to rely on: 250 only after the server said the message is on disk; 451 only if the message
will not go out. The second is the harder half: when no answer came in time the message may be in the queue, or may
still come into it. So its client is told 451, and before this writer puts anything else it takes the message back
(a *void*); the batch number makes a late arrival of the old batch a no-op.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mailqueue import content, keys
from mailqueue.batch import Batch
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.message import Message, domain_of
from mailqueue.quota import Allotments, Charge
from mailqueue.scripts import Argument, Shard

MOST_WAITING = 5000  # messages that may wait for a commit in one process; beyond, put says QueueDown at once


@dataclass(frozen=True, slots=True)
class Verdict:
    """``queued``: on disk, ``skipped`` recipients were there already under the idempotency key. ``duplicate``: all
    were; ``id`` names the message that has them. ``full``: refused at the memory mark, nothing was kept.
    ``over_quota``: the account's quota has ``left`` recipients, which is too few; ``why`` is said when it does not run at
    all. ``over_rate``: ``limit`` ("1000/hour") has room again at ``until`` (Unix s; ``clock`` by the quota's time zone),
    0 = never for so many at once."""

    kind: Literal["queued", "duplicate", "full", "over_quota", "over_rate"]
    id: str
    queued: int = 0
    skipped: int = 0
    left: int = 0
    why: str = ""
    limit: str = ""
    until: int = 0
    clock: str = ""


def marker(account: str, key: str, reverse_path: str, recipient: str) -> bytes:
    """Idempotency marker: 16 bytes for (account, key, reverse-path, recipient)."""
    text = "\0".join((account, key, reverse_path, recipient)).encode()
    return hashlib.sha256(text).digest()[:16]


@dataclass(slots=True)
class Put:
    """One message on its way in; ``abandoned`` once its client has been told that it failed."""

    id: str
    stored: content.Stored
    flow: str
    destinations: tuple[str, ...]
    event: bytes
    look_at: int
    markers: tuple[bytes, ...] = ()
    due: int = 0
    charge: Charge | None = None
    abandoned: bool = False

    @property
    def size(self) -> int:
        return len(self.stored.value) + 200

    def arguments(self, dictionary: bytes) -> list[Argument]:
        """As lua/put.lua reads them; ``dictionary`` = its stored form where the server may not have it."""
        words: list[Argument] = [self.id, self.stored.value, self.flow, self.due, self.look_at]
        words += [self.stored.dictionary, dictionary, self.event, str(self.charge or "")]
        words.append(len(self.destinations))
        for index, destination in enumerate(self.destinations):
            words += [destination, self.markers[index] if self.markers else b""]
        return words


@dataclass(frozen=True, slots=True)
class Void:
    """A message whose client was told 451: to be taken back should it be there."""

    id: str
    flow: str
    destinations: tuple[str, ...]
    markers: tuple[bytes, ...] = ()
    charge: Charge | None = None

    def arguments(self) -> list[Argument]:
        words: list[Argument] = [self.id, self.flow, str(self.charge or ""), len(self.destinations)]
        for index, destination in enumerate(self.destinations):
            words += [destination, self.markers[index] if self.markers else b""]
        return words


def received_event(message: Message, client: str, warnings: tuple[str, ...] = ()) -> Event:
    envelope = message.envelope
    return Event(
        kind="received",
        at=envelope.received_at,
        id=envelope.id,
        account=envelope.account,
        campaign=envelope.campaign,
        class_=envelope.class_,
        metadata=envelope.metadata,
        reverse_path=envelope.reverse_path,
        recipients=envelope.recipients,
        size=len(message.content),
        received_at=envelope.received_at,
        client=client,
        origin=envelope.origin,
        envid=envelope.envid,
        warnings=warnings,
        pays=envelope.pays,
    )


def prepare(
    message: Message,
    encoder: content.Encoder,
    *,
    key: str | None = None,
    client: str = "",
    warnings: tuple[str, ...] = (),
    due: int = 0,
    charge: Charge | None = None,
) -> Put:
    envelope = message.envelope
    markers: tuple[bytes, ...] = ()
    if key:
        markers = tuple(marker(envelope.account, key, envelope.reverse_path, r) for r in envelope.recipients)
    soonest = [at for at in (envelope.notify_after, envelope.expires_at) if at]
    return Put(
        id=envelope.id,
        stored=encoder.encode(message),
        flow=keys.flow_name(envelope),
        destinations=tuple(domain_of(recipient) for recipient in envelope.recipients),
        event=received_event(message, client, warnings).to_json(),
        look_at=min(soonest),
        markers=markers,
        due=due,
        charge=charge,
    )


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Writer:
    """The writing side of one shard in one process."""

    def __init__(self, shard: Shard, *, marker_seconds: float, allotments: Allotments) -> None:
        self._shard = shard
        self._allotments = allotments
        self._name = os.urandom(6).hex()
        self._marker_ms = int(marker_seconds * 1000)
        self._known: set[bytes] = set()  # dictionaries the server is believed to have
        self._trouble: QueueDown | None = None
        self._batch: Batch[Put | Void, str] = Batch(
            self._call,
            most=64,
            weight=lambda entry: entry.size if isinstance(entry, Put) else 0,
            give_up=lambda entries: all(isinstance(entry, Put) and entry.abandoned for entry in entries),
            skip=lambda entry: isinstance(entry, Put) and entry.abandoned,
            on_trouble=self._note_trouble,
        )

    @property
    def down(self) -> bool:
        """The last call failed and none has worked since."""
        return self._trouble is not None

    async def put(self, entry: Put, patience: float) -> Verdict:
        """``patience`` seconds from now. Raises QueueDown: then the message is void."""
        if len(self._batch) >= MOST_WAITING:
            raise QueueDown("too many messages wait for the queue server")
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            answer = await self._answer(entry, deadline)
            if answer == "n":
                self._known.discard(entry.stored.dictionary)
            elif answer.startswith("a"):
                left = await self._refilled(entry, int(answer[2:]), deadline)
                if left is not None:
                    return Verdict("over_quota", entry.id, left=left)
            else:
                return self._verdict(entry, answer)

    async def _refilled(self, entry: Put, count: int, deadline: float) -> int | None:
        """None: the bag was filled. Else what is left anywhere; nothing was put, so nothing is to be taken back."""
        assert entry.charge is not None
        return await self._allotments.refill(self._shard.number, entry.charge, count, deadline)

    async def _answer(self, entry: Put, deadline: float) -> str:
        future = self._batch.add(entry)
        loop = future.get_loop()
        waiting: asyncio.Future[None] = loop.create_future()  # a timeout around a shield, in half its time
        alarm = loop.call_at(deadline, _end, waiting)
        future.add_done_callback(lambda _done: _end(waiting))
        try:
            await waiting
        except asyncio.CancelledError:
            self._abandon(entry, future)
            raise
        finally:
            alarm.cancel()
        if future.done():
            return future.result()
        self._abandon(entry, future)
        raise QueueDown(f"no answer from the queue server in time ({self._trouble or 'slow'})")

    def _abandon(self, entry: Put, future: asyncio.Future[str]) -> None:
        entry.abandoned = True
        future.add_done_callback(lambda done: self._take_back(entry, done))

    def _take_back(self, entry: Put, done: asyncio.Future[str]) -> None:
        """The batch of an abandoned put is over: unless it surely changed nothing, void it."""
        if done.cancelled() or (done.exception() is None and not done.result().startswith("q")):
            return
        if isinstance(done.exception(), ServerAnswer):
            return
        void = Void(entry.id, entry.flow, entry.destinations, entry.markers, entry.charge)
        self._batch.add(void).add_done_callback(lambda d: d.exception())

    @staticmethod
    def _verdict(entry: Put, answer: str) -> Verdict:
        kind, _, rest = answer.partition(":")
        if kind == "d":
            return Verdict("duplicate", rest or entry.id, 0, len(entry.destinations))
        skipped = int(rest or 0)
        return Verdict("queued", entry.id, len(entry.destinations) - skipped, skipped)

    async def _call(self, number: int, entries: list[Put | Void]) -> list[str | Exception]:
        puts = [entry for entry in entries if isinstance(entry, Put)]
        voids = [entry for entry in entries if isinstance(entry, Void)]
        words: list[Argument] = [self._name, number, self._marker_ms, len(voids)]
        for void in voids:
            words += void.arguments()
        words.append(len(puts))
        for put in puts:
            words += put.arguments(self._dictionary(put))
        try:
            answer: Sequence[bytes] = await self._shard.run("put", words)
        except ServerAnswer:
            self._trouble = None
            raise
        self._trouble = None
        texts = [word.decode() for word in answer]
        for put, text in zip(puts, texts, strict=False):
            if put.stored.dictionary and text.startswith("q"):
                self._known.add(put.stored.dictionary)
        by_put, by_void = iter(texts[: len(puts)]), iter(texts[len(puts) :])
        return [next(by_put) if isinstance(entry, Put) else next(by_void) for entry in entries]

    def _dictionary(self, put: Put) -> bytes:
        stored = put.stored
        if not stored.dictionary or stored.dictionary in self._known:
            return b""
        return content.shrink(stored.dictionary_bytes)

    def _note_trouble(self, trouble: QueueDown) -> None:
        self._trouble = trouble

    async def close(self, patience: float = 5.0) -> None:
        await self._batch.close(patience)
