"""Three books of one run, compared recipient by recipient: the client's 250s, the next hop's receipts, the events."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from benchmarks.harness import Relay
from benchmarks.submit import Client
from config.settings import QueueSettings
from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.scripts import Shard
from sandbox.control import tell
from sandbox.receipts import Receipts
from tests.queue_kit import check_index, is_empty, places

FINAL = ("delivered", "unknown", "bounced", "expired", "removed")

Pair = tuple[str, str]  # Message-ID, recipient


@dataclass(frozen=True, slots=True)
class Books:
    """Times are Unix seconds by this machine's own clock, except that ``settled`` is the queue server's."""

    promised: dict[Pair, str]  # recipients of messages with a 250 → account
    receipts: dict[Pair, list[float]]  # of every recipient that the next hops know of, promised or not
    settled: dict[Pair, float]  # first final or late event
    fates: dict[Pair, list[str]]  # kinds of the final events
    events: list[tuple[float, Event]]
    left: list[str]  # keys and items in Redis that should be gone when all is final

    @property
    def kinds(self) -> Counter[str]:
        return Counter(event.kind for _, event in self.events)

    @property
    def unknown(self) -> set[Pair]:
        """Recipients of whom nobody knows, as their senders wished."""
        return {pair for pair in self.promised if "unknown" in self.fates.get(pair, ())}

    @property
    def lost(self) -> set[Pair]:
        """Promised, never received, and no event says why."""
        said = ("unknown", "bounced", "expired", "removed")
        return {
            pair
            for pair in self.promised
            if pair not in self.receipts and not any(fate in said for fate in self.fates.get(pair, ()))
        }

    @property
    def twice(self) -> set[Pair]:
        return {pair for pair in self.promised if len(self.receipts.get(pair, ())) > 1}

    @property
    def unaccounted(self) -> set[Pair]:
        """Without exactly one final event."""
        return {pair for pair in self.promised if len(self.fates.get(pair, ())) != 1}

    def open_at(self, moment: float, until: float = 0.0) -> set[Pair]:
        """Received by ``until`` (else by the moment itself) and not settled at the moment: these may come twice."""
        last = until or moment
        return {
            pair
            for pair in self.promised
            if self.receipts.get(pair, [last + 1])[0] <= last and self.settled.get(pair, moment + 1) > moment
        }


def read(relay: Relay, client: Client, since: float) -> Books:
    """As they stand; ``since``: when the run began."""
    tell(relay.control, cmd="flush")
    events, left = asyncio.run(_look(relay, since))
    receipts: dict[Pair, list[float]] = {}
    for record in Receipts(relay.directory / "sandbox" / "ledger.jsonl").records("message"):
        for recipient in record["to"]:
            receipts.setdefault((record["id"], recipient), []).append(record["t"])
    names = {accepted.queue_id: accepted.message_id for accepted in client.accepted.values()}
    promised = {(a.message_id, recipient): a.account for a in client.accepted.values() for recipient in a.recipients}
    settled: dict[Pair, float] = {}
    fates: dict[Pair, list[str]] = {}
    for at, event in events:
        if event.kind in (*FINAL, "late") and event.id in names:
            pair = (names[event.id], event.recipient)
            settled.setdefault(pair, at)
            if event.kind != "late" and not event.next_at:
                fates.setdefault(pair, []).append(event.kind)
    return Books(promised, receipts, settled, fates, events, left)


async def _look(relay: Relay, since: float) -> tuple[list[tuple[float, Event]], list[str]]:
    queue = await Queue.open(QueueSettings(url=relay.url, shards=relay.shards), "accept", patience=10)
    try:
        found: list[tuple[float, Event]] = []
        left: list[str] = []
        for shard in queue.shards:
            left += [key.decode() for key in await is_empty(shard)]
            await check_index(shard)
            found += await _events(shard, since)
        left += [f"{item!r} in {where}" for item, where in (await places(queue.shards)).items()]
        return sorted(found, key=lambda pair: pair[0]), left
    finally:
        await queue.close()


async def _events(shard: Shard, since: float) -> list[tuple[float, Event]]:
    found: list[tuple[float, Event]] = []
    start = str(int(since * 1000))
    while rows := await shard.command("XRANGE", shard.events, start, "+", "COUNT", 5000):
        for position, fields in rows:
            found.append((int(position.split(b"-")[0]) / 1000, Event.from_json(fields[1])))
        start = f"({rows[-1][0].decode()}"
    return found


def events(relay: Relay, since: float = 0.0) -> list[Event]:
    """What the queue has said so far."""
    return [event for _, event in asyncio.run(_look(relay, since))[0]]


class Load:
    """The client at work in a thread of its own, from now on."""

    def __init__(self, client: Client, messages: int) -> None:
        self._client = client
        self._wanted = len(client.accepted) + messages
        self._thread = threading.Thread(target=lambda: uvloop.run(client.run(messages)), daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float = 300.0) -> None:
        """Until all is accepted; RuntimeError when it is not in time."""
        self._thread.join(seconds)
        if not self.done:
            accepted, trouble = len(self._client.accepted), self._client.last_trouble
            raise RuntimeError(f"{accepted} of {self._wanted} accepted in {seconds:.0f} s; last trouble: {trouble}")


def await_that(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it was so; -1 when it was not in time."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            return -1.0
        time.sleep(0.02)
    return time.monotonic() - started
