"""The claiming side of one shard in one process: tickets, claims, settlements, and the lease they rest on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import structlog

from mailqueue import keys
from mailqueue.batch import Batch
from mailqueue.errors import LeaseLost, QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.logline import say
from mailqueue.message import Envelope, Message, QueueItem, State
from mailqueue.quota import Charge
from mailqueue.reading import Reader
from mailqueue.scripts import FOREIGN, Argument, Shard

TICKET_LEASES = 2  # a ticket is good for so many leases: what its holder left undone when it died is due again then
STEP_SECONDS = 5.0  # of the server's clock against ours: more than a slow answer explains
MOST_ROOM = 1 << 50
log = structlog.get_logger("queue")


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to claim from one flow's queue for one destination; good for two leases, or until it is given back."""

    shard: int
    class_: str
    group: str
    flow: str
    destination: str
    due: int  # items due when it was given
    pool: str = "default"


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """``transactions`` to be sent now with at most ``recipients`` each; 0 gives the ticket back."""

    ticket: Ticket
    transactions: int
    recipients: int = 1
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    items: tuple[QueueItem, ...]
    left: int  # items still due behind the ticket


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of an item. ``final``: closed · ``again``: back in the queue at ``due`` (ms) with ``state`` ·
    ``back``: as it was, never attempted · ``hold``: out of the way until released · ``suppressed``: closed, and ``charge``
    gets the recipient back · ``reaped``: see lua/settle.lua."""

    item: QueueItem
    kind: Literal["final", "again", "back", "hold", "suppressed", "reaped"]
    event: Event | None = None
    due: int = 0
    state: State | None = None
    record: bytes = b""  # what a DSN will say
    record_due: int = 0
    charge: Charge | None = None


_KIND = {"final": "d", "suppressed": "s", "again": "r", "back": "b", "hold": "h", "reaped": "p"}


def settle_arguments(settlement: Settlement) -> list[Argument]:
    item = settlement.item
    return [
        _KIND[settlement.kind],
        item.key,
        item.flow,
        item.destination,
        keys.CLASS_LETTER[item.message.envelope.class_],
        settlement.due,
        str(settlement.charge).encode()
        if settlement.charge
        else pack_state(settlement.state)
        if settlement.state
        else b"",
        settlement.event.to_json() if settlement.event else b"",
        settlement.record,
        settlement.record_due,
    ]


def pack_state(state: State) -> bytes:
    return orjson.dumps([state.attempts, state.unknowns, state.reply, state.source, state.at])


def unpack_state(data: bytes) -> State:
    return State(*orjson.loads(data)) if data else State()


class Worker:
    """One shard's worker. ``start`` joins; ``stop`` gives back what was claimed and not settled."""

    def __init__(self, shard: Shard, *, name: str, lease_seconds: float, bell: Shard) -> None:
        self.shard = shard
        self.epoch = ""
        self._name = name
        self._lease = lease_seconds
        self._ticket_ms = int(TICKET_LEASES * lease_seconds * 1000)
        self._bell_connection = bell
        self._until = 0.0  # monotonic end of the lease, counted from when it was asked for
        self._on_lost: Callable[[str], None] = lambda _epoch: None
        self.room: Callable[[], int] = lambda: MOST_ROOM  # bytes of content that may still be claimed
        self._held: dict[bytes, QueueItem] = {}
        self._marked: set[bytes] = set()
        self._losing = asyncio.Lock()
        self._ahead: float | None = None
        self._reader = Reader(shard)
        self._claimed_at = (-1, 0)  # the last claim's number, and when it was made
        self._rung = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._claims: Batch[ClaimRequest, Claimed] = Batch(self._claim, most=64)
        self._settlements: Batch[Settlement, str] = Batch(self._settle, most=200)
        self._marks: Batch[tuple[QueueItem, str], bool] = Batch(self._mark, most=200)

    # ── lease ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """Joins; ``on_lost(epoch)`` is called when a lease was lost: what it held must not be sent."""
        self._on_lost = on_lost
        await self._join()
        self._tasks = [asyncio.create_task(self._heartbeat()), asyncio.create_task(self._listen())]

    async def _join(self) -> None:
        asked = asyncio.get_running_loop().time()
        answer = await self.shard.run("worker", ["join", int(self._lease * 1000), self._name])
        self.epoch, self._until = _text(answer), asked + self._lease

    def holds(self, item: QueueItem) -> bool:
        """Whether the item is ours for another second or quarter of the lease, by this machine's monotonic clock."""
        margin = min(1.0, self._lease / 4)
        return item.epoch == self.epoch and asyncio.get_running_loop().time() + margin < self._until

    @property
    def alive(self) -> bool:
        """Whether the lease holds, by this machine's monotonic clock: a server that does not answer ends it."""
        return bool(self.epoch) and asyncio.get_running_loop().time() < self._until

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 4)
            asked, epoch = asyncio.get_running_loop().time(), self.epoch
            try:
                time_there = int(await self.shard.run("worker", ["extend", epoch, int(self._lease * 1000)]))
                if not time_there:
                    await self._lose(epoch)
                elif epoch == self.epoch:
                    self._until = asked + self._lease
                self._watch_clock(time_there / 1000 - asked)
            except (QueueDown, ServerAnswer) as down:
                log.warning("lease not extended", shard=self.shard.number, why=str(down))

    def _watch_clock(self, ahead: float) -> None:
        """``ahead``: the server's time minus our monotonic clock, in seconds. Who sleeps until something is due has
        reckoned with the clock before it stepped."""
        if ahead <= 0:  # the lease was lost: no time was said
            return
        step = ahead - self._ahead if self._ahead is not None else 0.0
        self._ahead = ahead
        if abs(step) > STEP_SECONDS:
            log.warning("the queue server's clock stepped", shard=self.shard.number, seconds=round(step, 1))
            self._rung.set()

    async def _lose(self, lost: str) -> None:
        """Joins anew, once for each lease: heartbeat and claim may notice at the same time."""
        async with self._losing:
            if lost != self.epoch:
                return
            self._until = 0.0  # others may have the items already: no further dot, however long joining takes
            log.warning("lease lost", shard=self.shard.number, epoch=lost, items=len(self._held))
            self._held.clear()
            self._marked.clear()
            await self._join()
            self._on_lost(lost)

    async def stop(self, patience: float = 10.0) -> None:
        """Settles what waits, returns what is still held, leaves. Raises nothing: the reaper does what this can't."""
        for task in self._tasks:
            task.cancel()
        self._until = 0.0  # what is given back may not be sent any more
        for key, item in list(self._held.items()):
            if key not in self._marked:  # perhaps sent: its policy decides, and that is the reaper's part
                self.settle(Settlement(item, "back"))
        await self._settlements.close(patience)
        await self._claims.close()
        await self._marks.close()
        with suppress(Exception):
            await asyncio.wait_for(self.shard.run("worker", ["leave", self.epoch]), 2.0)

    # ── wake-ups ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        pause = 0.05
        while True:
            channel = self._bell_connection.client.pubsub()
            try:
                await channel.subscribe(self.shard.prefix + "bell")
                while True:
                    if await channel.get_message(timeout=None) is not None:
                        self._rung.set()
                        pause = 0.05
            except FOREIGN as error:
                log.warning("bell lost", shard=self.shard.number, why=str(error))
            finally:
                with suppress(Exception):
                    await channel.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
            self._rung.set()  # whatever rang meanwhile was not heard

    async def rung(self, timeout: float | None) -> None:
        """Returns when the bell rang since the last ``due``, or after ``timeout`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._rung.wait()

    # ── verbs ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(
        self, wanted: Mapping[str, int], blocked: Collection[str] = (), silent: Collection[str] = (), quantum: int = 500
    ) -> tuple[list[Ticket], float | None, int]:
        """(tickets, seconds until the next look or None = the bell, version of the stops). ``blocked``: lanes
        ("b:google") without capacity; ``silent``: pools all of whose sources are stopped, or "<class letter> <pool>"
        where there is no capacity for mail of that class."""
        self._rung.clear()
        words: list[Argument] = [self._ticket_ms, quantum]
        words += [wanted.get(class_, 0) for class_ in keys.CLASS_LETTER]
        words += [len(blocked), *blocked, len(silent), *silent]
        wait, stops, *rows = await self.shard.run("due", words)
        tickets = [
            Ticket(
                self.shard.number,
                keys.CLASS_NAME[rows[at].decode()],
                rows[at + 1].decode(),
                rows[at + 2].decode(),
                rows[at + 3].decode(),
                int(rows[at + 4]),
                rows[at + 5].decode(),
            )
            for at in range(0, len(rows), 6)
        ]
        return tickets, None if int(wait) < 0 else int(wait) / 1000, int(stops)

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Raises LeaseLost (try again later)."""
        return await self._claims.add(request)

    def give_back(self, ticket: Ticket) -> None:
        future = self._claims.add(ClaimRequest(ticket, 0))
        future.add_done_callback(lambda done: done.exception() if not done.cancelled() else None)

    def settle(self, settlement: Settlement) -> asyncio.Future[str]:
        """Repeated until the server answers; the future's letter is explained in lua/settle.lua."""
        self._held.pop(settlement.item.key, None)
        self._marked.discard(settlement.item.key)
        future = self._settlements.add(settlement)
        future.add_done_callback(lambda done: done.exception() if not done.cancelled() else None)
        return future

    async def mark(self, item: QueueItem) -> bool:
        """Before the final dot of an item that must not go out twice: on disk when this returns True."""
        self._marked.add(item.key)
        return await self._marks.add((item, item.message.envelope.unknown))

    async def stop_sending(self, key: str, until: int, reason: str, event: Event | None = None) -> None:
        """Until Unix ms ``until``, or longer where somebody said so; see lua/stop.lua for the keys."""
        await self.shard.run("stop", ["away", key, until, reason, event.to_json() if event else b""])

    async def send_again(self, key: str, event: Event) -> None:
        """resume: the same key."""
        await self.shard.run("stop", ["resume", key, 0, "", event.to_json()])

    async def assign(self, destination: str, group: str) -> None:
        """The destination belongs to this provider group from now on."""
        await self.shard.run("stop", ["group", destination, group, "", b""])

    async def stops(self) -> dict[str, int]:
        answer = await self.shard.command("HGETALL", self.shard.prefix + "stop")
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return {key.decode(): int(value.split(b" ", 1)[0]) for key, value in pairs}

    # ── batches ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _claim(self, number: int, requests: list[ClaimRequest]) -> list[Claimed | Exception]:
        if self._claimed_at[0] != number:  # a repetition is the same claim
            self._claimed_at = (number, int(time.time() * 1000))
        claim = claim_number(*self._claimed_at)
        words: list[Argument] = [self.epoch, claim, self._ticket_ms, max(self.room(), 0), len(requests)]
        epoch = self.epoch
        for request in requests:
            ticket = request.ticket
            words += [keys.CLASS_LETTER[ticket.class_], ticket.flow, ticket.destination]
            words += [request.transactions, request.recipients, "1" if request.keep else "0"]
        try:
            answers, contents = await self.shard.run("claim", words)
        except LeaseLost:
            await self._lose(epoch)
            raise
        values = {contents[at].decode(): contents[at + 1] for at in range(0, len(contents), 2)}
        wanted = {keys.item_parts(answer[at])[0] for answer in answers for at in range(1, len(answer), 2)}
        messages = await self._reader.read(wanted, values)
        return [
            self._claimed(request, answer, messages, epoch) for request, answer in zip(requests, answers, strict=True)
        ]

    def _claimed(
        self, request: ClaimRequest, answer: list[Any], messages: Mapping[str, Message], epoch: str
    ) -> Claimed:
        items = []
        for at in range(1, len(answer), 2):
            message_id, index = keys.item_parts(answer[at])
            message = messages.get(message_id)
            ticket = request.ticket
            if message is None:
                self._hold_damaged(answer[at], ticket, epoch)
                continue
            state = unpack_state(answer[at + 1])
            item = QueueItem(message, index, ticket.flow, ticket.destination, state, ticket.shard, epoch)
            self._held[item.key] = item
            items.append(item)
        return Claimed(tuple(items), int(answer[0]))

    def _hold_damaged(self, key: bytes, ticket: Ticket, epoch: str) -> None:
        """What can't be read is kept for people to look at, not tried for ever and not lost."""
        message_id, index = keys.item_parts(key)
        item = QueueItem(
            damaged(message_id, ticket.class_, index),
            index,
            ticket.flow,
            ticket.destination,
            State(),
            ticket.shard,
            epoch,
        )
        event = Event(
            kind="held",
            at=int(time.time() * 1000),
            id=message_id,
            index=index,
            destination=ticket.destination,
            reason="stored message is damaged",
        )

        def told(done: asyncio.Future[str]) -> None:
            if not done.cancelled() and done.exception() is None and done.result() == "h":
                say(log, event)

        self.settle(Settlement(item, "hold", event)).add_done_callback(told)

    async def _settle(self, number: int, settlements: list[Settlement]) -> list[str | Exception]:
        epochs = dict.fromkeys(settlement.item.epoch for settlement in settlements)
        letters: dict[str, list[str]] = {}
        for epoch in epochs:
            mine = [settlement for settlement in settlements if settlement.item.epoch == epoch]
            words: list[Argument] = [epoch, number, len(mine)]
            for settlement in mine:
                words += settle_arguments(settlement)
            letters[epoch] = list(_text(await self.shard.run("settle", words)))
        return [letters[settlement.item.epoch].pop(0) for settlement in settlements]

    async def _mark(self, _number: int, entries: list[tuple[QueueItem, str]]) -> list[bool | Exception]:
        words: list[Argument] = ["mark", self.epoch]
        for item, policy in entries:
            words += [item.key, policy]
        answer = await self.shard.run("worker", words)
        return [bool(int(word)) for word in answer]


def claim_number(number: int, at_ms: int) -> int:
    """What stamps the items of a claim; it says since when they are leased (``Entry.leased_at``)."""
    return at_ms * 1_000_000 + number % 1_000_000


def damaged(message_id: str, class_: str, index: int) -> Message:
    """Stands for a message whose stored form can't be read."""
    return Message(Envelope(message_id, "", "", ("",) * (index + 1), 0, 0, class_), b"")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
