"""The queue against whatever order of verbs: after every step each open recipient lies in exactly one place and all the
books agree; at the end everything drains and nothing is left.

Every call of a script that may be repeated is repeated now and then, as after a lost answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mailqueue import keys
from mailqueue.content import ZSTD_DICTIONARY, Encoder, header
from mailqueue.errors import LeaseLost
from mailqueue.events import Event
from mailqueue.message import QueueItem, State, domain_of
from mailqueue.queue import Queue
from mailqueue.reaper import Reaper
from mailqueue.scripts import Shard
from mailqueue.server import inspect_server
from mailqueue.worker import Claimed, ClaimRequest, Settlement, Ticket, Worker
from mailqueue.writer import Void, Writer, marker, prepare
from tests.queue_kit import DAY, id_in, is_empty, message, now_ms
from tests.queue_kit import events as events_of

ALL = {"emergency": 100, "transactional": 100, "bulk": 100}
DOMAINS = ("x.test", "y.test", "z.test")
GROUPS = ("google", "default", "yahoo")
TEMPLATE = random.Random(7).randbytes(700).hex().encode()
PICK = st.integers(0, 1000)  # modulo what there is to choose from, which depends on the time of day
LABOUR = ("work", "work", "due", "claim", "settle", "settle", "settle", "late", "mark", "mark", "lease_ends", "reap")
OPERATION = ("hold", "release", "release", "remove", "suspend", "resume", "resume", "assign", "look", "notify", "void")
OPERATION += ("lose_answers",)
T = TypeVar("T")


def one(pick: int, of: Sequence[T]) -> T:
    return of[pick % len(of)]


WAIT, PARK = 1e15, 4e15  # as lua/prelude.lua has them

DUMP = """
local rows = {}
for _, name in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  local kind, value = redis.call('TYPE', name).ok, nil
  if kind == 'string' then value = redis.call('GET', name)
  elseif kind == 'hash' then value = redis.call('HGETALL', name)
  elseif kind == 'zset' then value = redis.call('ZRANGE', name, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then value = redis.call('LRANGE', name, 0, -1)
  else value = redis.call('SMEMBERS', name) end
  rows[#rows + 1] = { name, kind, redis.call('TTL', name), value }
end
return rows
"""


class Snapshot:
    """All keys of a shard at one moment, by their name behind the prefix."""

    def __init__(self, rows: list[Any], prefix: str) -> None:
        self.values: dict[bytes, Any] = {}
        self.seconds: dict[bytes, int] = {}
        for name, kind, ttl, value in rows:
            short = name[len(prefix) :]
            if kind in (b"hash", b"zset"):
                pairs = zip(value[::2], value[1::2], strict=True)
                value = {k: float(v) if kind == b"zset" else v for k, v in pairs}
            self.values[short], self.seconds[short] = value, ttl

    def get(self, name: str) -> Any:
        return self.values.get(name.encode(), {})

    def all(self, start: str) -> list[tuple[bytes, Any]]:
        cut = len(start)
        return [(name[cut:], value) for name, value in self.values.items() if name.startswith(start.encode())]


def record(envelope: Any, index: int, _state: Any, action: str, _now: int) -> bytes:
    return f"{envelope.id}:{index}:{action}".encode() if envelope.reverse_path else b""


class Repeating:
    """Stands before a shard's ``run``: with ``on`` each repeatable script is run twice, its first answer is lost."""

    def __init__(self, shard: Shard) -> None:
        self._run = shard.run
        self.on = False

    async def __call__(self, verb: str, arguments: Any) -> Any:
        if self.on and verb in ("put", "claim", "settle"):
            await self._run(verb, arguments)
        return await self._run(verb, arguments)


class QueueMachine(RuleBasedStateMachine):
    """``url`` and ``shards`` are set on a subclass."""

    url = ""
    shards = 1

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.open: dict[bytes, str] = {}  # item → flow name
        self.recipients: dict[str, int] = {}  # message → recipients put
        self.envelopes: dict[str, Any] = {}
        self.ended: dict[bytes, str] = {}  # item → the kind of its last event, "" = none is due
        self.unknowns: Counter[bytes] = Counter()
        self.poison: Counter[bytes] = Counter()
        self.marked: set[bytes] = set()
        self.held: dict[str, dict[bytes, QueueItem]] = {}  # epoch → items in its hash
        self.workers: list[Worker] = []
        self.dead: list[tuple[Worker, dict[bytes, QueueItem]]] = []
        self.tickets: list[Ticket] = []
        self.markers: dict[bytes, str] = {}
        self.records: Counter[bytes] = Counter()
        self.said: Counter[bytes] = Counter()
        self.queue: Queue = self.do(self._open())

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def _open(self) -> Queue:
        from config.settings import QueueSettings

        queue = await Queue.open(QueueSettings(url=self.url, shards=self.shards), "test", patience=5)
        await queue.shards[0].command("FLUSHALL")
        await inspect_server(queue.shards[0], queue.settings)
        self.repeating = []
        for shard in queue.shards:
            repeating = Repeating(shard)
            shard.run = repeating  # type: ignore[method-assign]
            self.repeating.append(repeating)
        self.reapers = [Reaper(shard, record) for shard in queue.shards]
        for _ in range(2):
            for worker in queue.workers():
                await self._join(worker)
        return queue

    async def _join(self, worker: Worker) -> None:
        await worker._join()
        self.workers.append(worker)
        self.held[worker.epoch + f"/{worker.shard.number}"] = {}

    def holding(self, worker: Worker) -> dict[bytes, QueueItem]:
        return self.held[worker.epoch + f"/{worker.shard.number}"]

    def end(self, item: bytes, kind: str) -> None:
        del self.open[item]
        self.ended[item] = kind
        self.poison.pop(item, None)

    @initialize(shapes=st.lists(st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=5), min_size=2, max_size=4))
    def begin(self, shapes: list[list[str]]) -> None:
        for to in shapes:
            self.put(to, "bulk", "a", "c", "", "", "retry", False)

    @rule(verb=st.sampled_from(LABOUR), pick=PICK, more=PICK)
    def labour(self, verb: str, pick: int, more: int) -> None:
        """What workers do, the dead ones included."""
        kinds = ("final", "again", "hold", "record", "back", "again")
        match verb:
            case "work":
                self.work(pick, 1 + more % 4, 1 + pick % 3)
            case "due":
                self.due(pick, 1 + more % 6, one(more, ("", "b:google", "b:default")))
            case "claim":
                self.claim(pick, more % 4, 1 + pick % 3, more % 2 == 0)
            case "settle":
                for number in range(1 + more % 3):
                    self.settle(pick + number, one(more + number, kinds), more % 20)
            case "late":
                self.late(pick, one(more, ("final", "record", "again", "back")))
            case "mark":
                self.mark(pick)
            case "lease_ends":
                self.lease_ends(pick)
            case "reap":
                self.reap()

    @rule(verb=st.sampled_from(OPERATION), pick=PICK, more=PICK)
    def operation(self, verb: str, pick: int, more: int) -> None:
        """What operators and maintenance do, and the network."""
        match verb:
            case "hold" | "release" | "remove":
                self.withdraw(pick, verb)
            case "suspend":
                self.suspend(one(pick, self.STOPS), one(more, (0.01, 0.0, 0.02, 60.0)))
            case "resume":
                self.resume(one(pick, self.STOPS))
            case "assign":
                self.assign(pick, one(pick, DOMAINS), one(more, GROUPS))
            case "look":
                self.look()
            case "notify":
                self.notify(pick % 2 == 0, more % 2 == 0)
            case "void":
                self.void(pick)
            case "lose_answers":
                self.lose_answers(pick % 2 == 0)

    # ── put and void ───────────────────────────────────────────────────────────────────────────────────────────

    def lose_answers(self, twice: bool) -> None:
        for repeating in self.repeating:
            repeating.on = twice

    @rule(
        to=st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=5),
        class_=st.sampled_from(["bulk", "transactional", "emergency"]),
        account=st.sampled_from(["a", "b"]),
        campaign=st.sampled_from(["", "c"]),
        key=st.sampled_from(["", "", "k"]),
        fate=st.sampled_from(["", "", "", "late", "late", "doomed"]),
        unknown=st.sampled_from(["retry", "never", "once:0"]),
        null=st.booleans(),
    )
    def put(
        self, to: Any, class_: str, account: str, campaign: str, key: str, fate: str, unknown: str, null: bool
    ) -> None:
        sent = message(
            *(f"u{number}@{domain}" for number, domain in enumerate(to)),
            content=TEMPLATE + str(len(self.recipients)).encode(),
            class_=class_,
            id=self.queue.new_id(account, key or None),
            account=account,
            campaign=campaign,
            unknown=unknown,
            reverse_path="" if null else "r@x.test",
            notify_after=1 if fate == "late" else 0,
            expires_at=1 if fate == "doomed" else now_ms() + DAY,
        )
        verdict = self.do(self.queue.put(sent, key or None))
        fresh = self._fresh(sent.envelope, key)
        if not fresh:
            assert verdict.kind == "duplicate"
            return
        assert (verdict.kind, verdict.queued, verdict.skipped) == ("queued", len(fresh), len(to) - len(fresh))
        self._note(sent.envelope, fresh)

    def _fresh(self, envelope: Any, key: str) -> list[int]:
        """Recipients that are not queued yet under the key."""
        if not key:
            return list(range(len(envelope.recipients)))
        found = []
        for index, recipient in enumerate(envelope.recipients):
            mark = marker(envelope.account, key, envelope.reverse_path, recipient)
            if mark not in self.markers:
                self.markers[mark] = envelope.id
                found.append(index)
        return found

    def _note(self, envelope: Any, indexes: list[int]) -> None:
        self.envelopes[envelope.id] = envelope
        self.recipients[envelope.id] = len(envelope.recipients)
        for index in indexes:
            self.open[keys.item(envelope.id, index)] = keys.flow_name(envelope)

    def void(self, pick: int) -> None:
        """The client was told 451: what a worker does not have yet is taken back, with its markers."""
        if not self.open:
            return
        message_id = keys.item_parts(one(pick, sorted(self.open)))[0]
        envelope = self.envelopes[message_id]
        marks = tuple(marker(envelope.account, "k", envelope.reverse_path, r) for r in envelope.recipients)
        writer = self.queue._writers[keys.shard_of(message_id, self.shards)]
        destinations = tuple(domain_of(r) for r in envelope.recipients)
        self.do(self._void(writer, Void(message_id, keys.flow_name(envelope), destinations, marks)))
        for index in range(len(envelope.recipients)):
            item = keys.item(message_id, index)
            if item in self.open and not self._in_flight(item):
                self.end(item, "")
                if self.markers.get(marks[index]) == message_id:
                    del self.markers[marks[index]]

    @staticmethod
    async def _void(writer: Writer, void: Void) -> None:
        await writer._batch.add(void)

    def _in_flight(self, item: bytes) -> bool:
        return any(item in items for items in self.held.values())

    # ── tickets, claims, results ───────────────────────────────────────────────────────────────────────────────

    def _worker(self, pick: int) -> Worker:
        return one(pick, self.workers)

    def _busy(self, pick: int) -> Worker | None:
        busy = [worker for worker in self.workers if self.holding(worker)]
        return one(pick, busy) if busy else None

    def due(self, pick: int, most: int, blocked: str) -> None:
        worker = self._worker(pick)
        tickets, _, _ = self.do(worker.due(dict.fromkeys(ALL, most), [blocked] if blocked else []))
        for ticket in tickets:
            assert blocked != keys.lane_name(ticket.class_, ticket.group)
        self.tickets += tickets

    def claim(self, pick: int, transactions: int, recipients: int, keep: bool) -> None:
        if not self.tickets:
            return
        ticket = one(pick, self.tickets)
        worker = next(w for w in self.workers if w.shard.number == ticket.shard)
        claimed = self.do(worker.claim(ClaimRequest(ticket, transactions, recipients, keep)))
        if not (keep and claimed.left):
            self.tickets.remove(ticket)
        self._claimed(worker, claimed, transactions)

    def work(self, pick: int, transactions: int, recipients: int) -> None:
        """What a worker does all day: everything that is due."""
        worker = self._worker(pick)
        for ticket in self.do(worker.due(dict.fromkeys(ALL, 4)))[0]:
            claimed = self.do(worker.claim(ClaimRequest(ticket, transactions, recipients)))
            assert claimed.items
            self._claimed(worker, claimed, transactions)

    def _claimed(self, worker: Worker, claimed: Claimed, transactions: int) -> None:
        assert len({item.message.envelope.id for item in claimed.items}) <= transactions
        for item in claimed.items:
            assert item.key in self.open
            assert not self._in_flight(item.key), "claimed twice"
            self.holding(worker)[item.key] = item

    def settle(self, pick: int, kind: str, after: int) -> None:
        worker = self._busy(pick)
        if worker is None:
            return
        key = one(pick, sorted(self.holding(worker)))
        item = self.holding(worker).pop(key)
        self._settled(item, kind, self.do(self._say(worker, self._settlement(item, kind, after))), alive=True)

    @staticmethod
    async def _say(worker: Worker, settlement: Settlement) -> str:
        return await worker.settle(settlement)

    def _settlement(self, item: QueueItem, kind: str, after: int) -> Settlement:
        def event(name: str) -> Event:
            return Event(kind=name, at=now_ms(), id=item.message.envelope.id, index=item.index)

        if kind == "record":
            said = record(item.message.envelope, item.index, None, "bounce", 0)
            return Settlement(item, "final", event("bounced"), record=said, record_due=now_ms() + DAY)
        if kind == "again":
            state = State(item.state.attempts + 1, item.state.unknowns, "451 later", "", now_ms())
            return Settlement(item, "again", event("deferred"), now_ms() + after, state)
        names = {"final": "delivered", "hold": "held"}
        return Settlement(item, kind, event(names[kind]) if kind in names else None)  # type: ignore[arg-type]

    def _settled(self, item: QueueItem, kind: str, letter: str, *, alive: bool) -> None:
        final = kind in ("final", "record")
        if alive:
            assert letter == ("d" if final else {"again": "r", "back": "b", "hold": "h"}[kind])
        elif not final:
            assert letter == "-"
        if letter in "dl" and final:
            self.end(item.key, "delivered" if kind == "final" else "bounced")
            if kind == "record" and item.message.envelope.reverse_path:
                self.records[record(item.message.envelope, item.index, None, "bounce", 0)] += 1
        if letter in "drh":
            self.marked.discard(item.key)
            self.poison.pop(item.key, None)
        if letter == "b":
            self.marked.discard(item.key)

    def mark(self, pick: int) -> None:
        worker = self._busy(pick)
        if worker is not None:
            item = self.holding(worker)[one(pick, sorted(self.holding(worker)))]
            assert self.do(worker.mark(item))
            self.marked.add(item.key)

    # ── death ──────────────────────────────────────────────────────────────────────────────────────────────────

    def lease_ends(self, pick: int) -> None:
        worker = self._busy(pick) or self._worker(pick)
        self.workers.remove(worker)
        self.do(worker.shard.command("ZADD", worker.shard.prefix + "w", 1, worker.epoch))
        self.dead.append((worker, dict(self.holding(worker))))
        self.do(self._join(self.queue.workers()[worker.shard.number]))

    def reap(self) -> None:
        for reaper in self.reapers:
            self.do(reaper.reap())
        alive = {w.epoch + f"/{w.shard.number}" for w in self.workers}
        for epoch in [epoch for epoch in self.held if epoch not in alive]:
            for key in self.held.pop(epoch):
                self._reaped(key)

    def _reaped(self, key: bytes) -> None:
        policy = self.envelopes[keys.item_parts(key)[0]].unknown
        if key in self.marked and policy != "retry":
            self.unknowns[key] += 1
            self.poison.pop(key, None)
            if policy == "never" or self.unknowns[key] > 1:
                self.end(key, "unknown")
        else:
            self.poison[key] += 1
            if self.poison[key] == 5:
                del self.poison[key]
        self.marked.discard(key)

    def late(self, pick: int, kind: str) -> None:
        """A worker that was thought dead says what became of an item."""
        dead = [pair for pair in self.dead if pair[1]]
        if not dead:
            return
        worker, items = one(pick, dead)
        key = one(pick, sorted(items))
        item = items.pop(key)
        mine = self.held.get(worker.epoch + f"/{worker.shard.number}", {})
        waiting = key in self.open and not self._in_flight(key)
        in_time = mine.pop(key, None) is not None
        letter = self.do(self._say(worker, self._settlement(item, kind, 0)))
        if not in_time and kind in ("final", "record"):
            assert letter == ("l" if waiting else "L")
        self._settled(item, kind, letter, alive=in_time)
        if not in_time:
            with pytest.raises(LeaseLost):
                ticket = Ticket(worker.shard.number, "bulk", "default", item.flow, item.destination, 1)
                self.do(self._raw_claim(worker, ticket))

    async def _raw_claim(self, worker: Worker, ticket: Ticket) -> None:
        words = [worker.epoch, 999_999, 60_000, 1 << 30, 1, "b", ticket.flow, ticket.destination, 1, 1, "0"]
        await worker.shard.run("claim", words)

    # ── operators and maintenance ──────────────────────────────────────────────────────────────────────────────

    def withdraw(self, pick: int, verb: str) -> None:
        if not self.open:
            return
        message_id = keys.item_parts(one(pick, sorted(self.open)))[0]
        envelope, shard = self.envelopes[message_id], keys.shard_of(message_id, self.shards)
        reaper = self.reapers[shard]
        if verb == "remove":
            self.do(reaper.withdraw(envelope, "close", "removed", "operator"))
            for index in range(len(envelope.recipients)):
                item = keys.item(message_id, index)
                if item in self.open and not self._in_flight(item):
                    self.end(item, "removed")
        else:
            self.do(reaper.withdraw(envelope, verb, "held" if verb == "hold" else "released", "operator"))

    STOPS = (
        "account:a",
        "campaign:a/c",
        "provider:google",
        "provider:default",
        "destination:x.test",
        "source:127.0.0.9",
    )

    def suspend(self, key: str, seconds: float) -> None:
        self.do(self.queue.suspend(key, seconds))

    def resume(self, key: str) -> None:
        self.do(self.queue.resume(key))

    def assign(self, pick: int, domain: str, group: str) -> None:
        self.do(self._worker(pick).assign(domain, group))

    def look(self) -> None:
        """Delay notices and expiry; what is in flight is told of a delay and not expired."""
        for message_id in {keys.item_parts(item)[0] for item in self.open}:
            shard = self.queue.shards[keys.shard_of(message_id, self.shards)]
            if self.envelopes[message_id].expires_at == 1:
                self.do(shard.command("ZADD", shard.prefix + "x", 1, message_id))
        first = {m for m in self._open_messages() if self.envelopes[m].notify_after and m not in self._told}
        self._told |= first
        for reaper in self.reapers:
            self.do(reaper.look())
        for item in sorted(self.open):
            message_id, index = keys.item_parts(item)
            envelope = self.envelopes[message_id]
            if envelope.expires_at == 1:
                if not self._in_flight(item):
                    self.end(item, "expired")
                    self._owe(envelope, index, "failed")
            elif message_id in first:
                self._owe(envelope, index, "delayed")

    _told: frozenset[str] = frozenset()

    def _open_messages(self) -> set[str]:
        return {keys.item_parts(item)[0] for item in self.open}

    def _owe(self, envelope: Any, index: int, action: str) -> None:
        if envelope.reverse_path:
            self.records[record(envelope, index, None, action, 0)] += 1

    def notify(self, dsn: bool, race: bool) -> None:
        for number, reaper in enumerate(self.reapers):
            for notice in self.do(reaper.notices()):
                assert notice.message is not None
                dsns = []
                if dsn:
                    where = id_in(number, self.shards)
                    dsns = [message("r@x.test", id=where, reverse_path="", account="a")]
                assert self.do(reaper.notified(notice, [prepare(one, Encoder()) for one in dsns]))
                self.said.update(notice.records)
                for one in dsns:
                    self._note(one.envelope, [0])
                if race:
                    stale = replace(notice, token="1")
                    assert not self.do(reaper.notified(stale, []))

    # ── the books ──────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def books(self) -> None:
        for shard in self.queue.shards:
            at = Snapshot(self.do(shard.command("EVAL", DUMP, 1, shard.prefix)), shard.prefix)
            mine = {i: f for i, f in self.open.items() if keys.shard_of(i[:-2].decode(), self.shards) == shard.number}
            self._conserved(at, mine)
            self._counts(at, mine)
            self._dictionaries(at)
            self._turns(at)

    def _conserved(self, at: Snapshot, mine: dict[bytes, str]) -> None:
        found = Counter(item for _, queue in at.all("q:") for item in queue)
        found.update(at.get("hold").keys())
        in_flight = [item for _, held in at.all("w:") for item in held if item != b"#"]
        found.update(in_flight)
        assert found == dict.fromkeys(mine, 1), "each open recipient in exactly one place"
        assert {item for item in mine if self._in_flight(item)} == set(in_flight)
        assert {int(score) for score in at.get("poison").values()} <= {1, 2, 3, 4}
        assert {k: int(v) for k, v in at.get("poison").items()} == {i: n for i, n in self.poison.items() if i in mine}
        assert {name for name, _ in at.all("s:")} <= set(mine)

    def _counts(self, at: Snapshot, mine: dict[bytes, str]) -> None:
        flows = {name.decode(): flow for name, flow in at.get("flow").items() if b"\n" in name}
        assert set(flows) == set(mine.values())
        opened = Counter(mine.values())
        assert {name: int(at.get("f:" + flow.decode())[b"open"]) for name, flow in flows.items()} == opened
        assert len(at.all("f:")) == len(flows)
        counts = Counter(item[:-2] for item in mine)
        pending = set(at.get("bd"))
        assert {name for name, _ in at.all("m:")} == set(counts) | pending
        assert {name for name, _ in at.all("b:")} == pending
        assert set(at.get("x")) == set(counts)
        several = {m: n for m, n in counts.items() if self.recipients[m.decode()] > 1}
        assert {name: int(n) for name, n in at.all("n:") if int(n)} == several

    @staticmethod
    def _dictionaries(at: Snapshot) -> None:
        used = Counter(header(value)[1] for _, value in at.all("m:") if header(value)[0] == ZSTD_DICTIONARY)
        assert {name: int(count) for name, count in at.get("dr").items()} == used
        for dictionary in used:
            assert at.seconds[b"d:" + dictionary] == -1

    @staticmethod
    def _turns(at: Snapshot) -> None:
        """Whoever is due will be found: queue → destination in its lane's ready set → flow in turn → lane in g."""
        waiting = dict(at.all("q:"))
        groups = at.get("dest")
        ready: dict[bytes, Counter[bytes]] = {}
        for name, queue in waiting.items():
            flow, destination = name.split(b":", 1)
            lane = at.get("f:" + flow.decode())[b"class"] + b":" + groups.get(destination, b"default")
            place = at.get(f"r:{lane.decode()}:{flow.decode()}")
            assert place[destination] >= min(queue.values()), "its head's time or later"
            turn = at.get("lf:" + lane.decode())[flow]
            if turn < PARK:
                assert lane in at.get("g:" + lane[:1].decode())
        for name, place in at.all("r:"):
            lane, flow = name.rsplit(b":", 1)
            assert place.keys() <= {queue.split(b":", 1)[1] for queue in waiting if queue.startswith(flow + b":")}
        for lane, turns in at.all("lf:"):
            count = ready[lane] = Counter()
            for flow, score in turns.items():
                count[flow.split(b".")[0]] += score < WAIT
                assert at.get(f"r:{lane.decode()}:{flow.decode()}")
        for lane, facts in at.all("v:"):
            counted = {name[2:]: int(value) for name, value in facts.items() if name.startswith(b"a:")}
            assert +Counter(counted) == +ready.get(lane, Counter()), "ready flows of each account"

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.do(self.queue.close())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def drain(self) -> None:
        """Whatever happened: once nothing is stopped and nobody claims, everything can be had, and nothing is left."""
        for key in self.STOPS:
            self.do(self.queue.resume(key))
        for ticket in self.tickets:
            worker = next(w for w in self.workers if w.shard.number == ticket.shard)
            self.do(worker.claim(ClaimRequest(ticket, 0)))
        for worker in self.workers:
            for item in list(self.holding(worker).values()):
                self.do(self._say(worker, Settlement(item, "back")))
            self.holding(worker).clear()
        self.reap()
        for message_id in self._open_messages():
            reaper = self.reapers[keys.shard_of(message_id, self.shards)]
            self.do(reaper.withdraw(self.envelopes[message_id], "release", "released", ""))
        if self.open:
            self.do(asyncio.sleep(0.031))
        for worker in self.workers[: self.shards] if self.shards == 1 else self.workers:
            self.do(self._deliver(worker))
        assert not self.open
        while sum(self.records.values()) > sum(self.said.values()):
            self.notify(dsn=False, race=False)
        assert self.said == self.records
        for shard in self.queue.shards:
            assert self.do(is_empty(shard)) == []
            assert self.do(shard.command("HGETALL", shard.prefix + "dr")) == []
        self._exactly_one_end()

    async def _deliver(self, worker: Worker) -> None:
        while True:
            tickets, _, _ = await worker.due(ALL)
            if not tickets:
                return
            for ticket in tickets:
                claimed = await worker.claim(ClaimRequest(ticket, 1000, 10))
                for item in claimed.items:
                    assert await worker.settle(self._settlement(item, "final", 0)) == "d"
                    self.end(item.key, "delivered")

    def _exactly_one_end(self) -> None:
        told: dict[bytes, Counter[str]] = {}
        for event in self.do(events_of(self.queue)):
            if event.kind in ("delivered", "bounced", "expired", "unknown", "removed") and event.index is not None:
                told.setdefault(keys.item(event.id, event.index), Counter())[event.kind] += 1
        for item, kind in self.ended.items():
            expected = Counter({kind: 1} if kind else {})
            expected["unknown"] = self.unknowns[item]
            assert told.get(item, Counter()) == +expected, (item, kind)


def play(url: str, shards: int, examples: int, steps: int) -> None:
    machine = type("Machine", (QueueMachine,), {"url": url, "shards": shards})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),  # the time of day goes in: a smaller case may not fail
            print_blob=False,
        ),
    )
