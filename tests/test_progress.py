"""The no-progress alarm and its neighbours: what is stuck, what is excused, by tables and on a real queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from config.load import Loaded
from config.providers import Providers
from config.settings import AlarmSettings, Settings
from ipreputation.inspect import standings
from ipreputation.limits import Ceiling, Limits, Pace
from ipreputation.store import LimitStore
from ipreputation.throttle import Rate
from mailqueue import scripts
from mailqueue.events import SOURCES_REST, Event
from mailqueue.overdue import Backlog, Overdue, overdue
from mailqueue.queue import Queue
from mailqueue.worker import Settlement
from maintenance.alarms import Alarms
from maintenance.bounces import Bounces
from maintenance.progress import Finding, Patience, Progress
from maintenance.reach import Reach
from maintenance.tail import Said, Tail
from maintenance.watch import Watch
from tests.queue_kit import claim_all, events, eventually, id_in, message, now_ms, opened, working

RULES = """\
[default]
connections = 10
messages_per_connection = 100
tls = "opportunistic"
[providers.google]
domains = ["gmail.test"]
connections = 1
message_rate = "1/h"
[providers.google.samples]
recipients = ["a@gmail.test"]
"""
T0 = 1_000_000_000_000
PATIENCE = Patience(still=300, slowest=600)
ROW = Overdue("bulk", "google", "default", "gmail.test", 1_000, tended=False)

# ── the decision ───────────────────────────────────────────────────────────────────────────────────────────────────


def judged(*looks: tuple[int, bool, int], settled: tuple[int, ...] = ()) -> list[bool | None]:
    """Looks of (second, is something free to go, items in hands); ``settled`` seconds come before the look they precede."""
    progress, found, left = Progress(), [], list(settled)
    for second, free, in_hands in looks:
        while left and left[0] <= second:
            progress.settled(T0 + 1000 * left.pop(0))
        rows = (ROW,) if free else ()
        found.append(progress.judge(Backlog(T0 + 1000 * second, in_hands, 1, rows), rows, PATIENCE).on)
    return found


@pytest.mark.parametrize(
    ("looks", "settled", "said"),
    [
        ([(0, False, 0), (500, False, 0)], (), [False, False]),
        ([(0, True, 0), (299, True, 0), (300, True, 0)], (), [None, None, True]),
        ([(0, True, 0), (299, True, 0), (301, True, 0), (601, True, 0)], (300,), [None, None, None, True]),
        ([(0, True, 0), (200, False, 0), (301, True, 0), (600, True, 0)], (), [None, False, None, None]),
        ([(0, True, 0), (300, True, 0), (305, True, 0), (310, False, 0)], (304,), [None, True, None, False]),
        ([(0, False, 3), (899, False, 3), (900, False, 3), (901, False, 0)], (), [False, False, True, False]),
        ([(0, False, 3), (500, False, 3), (950, False, 3)], (400,), [False, False, False]),
    ],
    ids=["idle", "stuck", "settles", "interrupted", "moves-again", "hangs", "slow"],
)
def test_when_standing_still_is_an_alarm(looks: Any, settled: Any, said: Any) -> None:
    assert judged(*looks, settled=settled) == said


def test_the_reason_names_what_waits_and_since_when() -> None:
    progress = Progress()
    progress.settled(60_000)
    rows = (ROW, Overdue("bulk", "default", "default", "a.test", 2_000, tended=True))
    progress.judge(Backlog(100_000, 2, 1, rows), rows, PATIENCE)
    found = progress.judge(Backlog(500_000, 2, 1, rows), rows, PATIENCE)
    assert found == Finding(
        True,
        "gmail.test (google, bulk) and 1 more, due since 1970-01-01 00:00:01Z; nothing was settled since "
        "1970-01-01 00:01:00Z; workers have 2 in their hands",
        2,
    )


def failed(second: int, destination: str, provider: str = "default", attempt: int = 1, **said: Any) -> Said:
    facts = {"kind": "deferred", "diagnostic_code": "x-tambo; no network", **said}
    event = Event(at=0, destination=destination, provider=provider, attempt=attempt, **facts)
    return Said(T0 + 1000 * second, event)


@pytest.mark.parametrize(
    ("said", "at", "on"),
    [
        ([], 1000, None),
        ([failed(0, "a.test"), failed(9, "b.test")], 1000, False),
        ([failed(0, "a.test"), failed(9, "b.test"), failed(9, "c.test")], 299, None),
        ([failed(0, "a.test"), failed(9, "b.test"), failed(9, "c.test")], 300, True),
        ([failed(0, name, attempt=9) for name in "abcdef"], 1000, False),
        ([failed(0, "gmail.test", "google", attempt=9)], 300, True),
        ([failed(0, "gmail.test", "google"), failed(200, "a.test", diagnostic_code="smtp; 450 no")], 1000, False),
        ([failed(0, "gmail.test", "google"), failed(200, "a.test", kind="delivered")], 1000, False),
        ([failed(0, "gmail.test", "google"), failed(200, "", kind="received")], 1000, True),
        ([failed(0, "gmail.test", "google")], 1501, False),
        ([failed(0, "gmail.test", "google", reason=SOURCES_REST)], 300, False),
        ([failed(0, name, "route:formal") for name in "abc"], 300, False),
    ],
    ids=[
        *("nothing", "two-dead-hosts", "not-yet", "outage", "old-mail", "provider", "a-reply", "delivered", "received"),
        *("long-ago", "refused", "smarthost"),
    ],
)
def test_when_nobody_answers(said: list[Said], at: int, on: bool | None) -> None:
    reach = Reach()
    for one in said:
        reach.note(one)
    found = reach.judge(T0 + 1000 * at, 300)
    assert found.on is on
    if on:
        assert "no network" in found.reason


def test_a_list_gone_bad_is_seen_within_the_hour() -> None:
    bounces = Bounces()

    def said(
        minute: int, kind: str, count: int, account: str = "rrhh", campaign: str = "", sender: str = "a@b"
    ) -> None:
        event = Event(kind, 0, account=account, campaign=campaign, reverse_path=sender)
        for _ in range(count):
            bounces.note(Said(60_000 * minute, event))

    said(0, "delivered", 900)
    said(0, "bounced", 99)
    assert bounces.judge(60_000) == {}
    said(2, "delivered", 180, campaign="march")
    said(2, "bounced", 20, campaign="march")
    assert bounces.judge(180_000) == {"rrhh/march": ("10% of its recipients bounced within an hour", 20)}
    said(2, "delivered", 20, campaign="march", sender="")  # what tells the sender so
    assert set(bounces.judge(180_000)) == {"rrhh/march"}
    said(2, "bounced", 10, account="few")
    said(30, "bounced", 200, account="bad")
    assert set(bounces.judge(31 * 60_000)) == {"rrhh/march", "bad"}
    assert [bounces.whole(minute * 60_000) for minute in (31, 90, 91)] == [False, False, True]
    assert set(bounces.judge(70 * 60_000)) == {"bad"}
    assert bounces.judge(95 * 60_000) == {}


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_limits_are_seen_without_being_taken(any_redis_server: Any) -> None:
    limits = Limits(
        (Ceiling("google/a", 2),),
        (Pace("google/a#opening", Rate(60, 60, 2)),),
        (Pace("google/a#messages", Rate(0, 1)),),
    )

    async def scenario() -> None:
        async with opened(any_redis_server.url) as queue:
            shard = queue.shards[0]

            async def look() -> list[tuple[str, int, bool]]:
                seconds, micros = await shard.command("TIME")
                found = await standings(shard.command, limits, int(seconds) + int(micros) / 1e6)
                assert all((one.wait > 0) == one.binds for one in found)
                return [(one.kind, one.free, one.binds) for one in found]

            assert await look() == [("connections", 2, False), ("opening", 2, False), ("messages", 0, True)]
            redis = scripts.connect(any_redis_server.url, timeout=None)
            try:
                async with LimitStore(redis, "w", 30.0) as store:
                    granted = await store.connect([("a", limits)], 2)
                    assert len(granted.leases) == 1
                    assert (await look())[0] == ("connections", 1, False)
                    await store.connect([("a", limits)], 1)
                    assert (await look())[:2] == [("connections", 0, True), ("opening", 0, True)]
                    await store.release(granted.leases)
                    assert (await look())[0] == ("connections", 1, False)
            finally:
                await redis.aclose()

    asyncio.run(scenario())


# ── the queue ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Post:
    """A watch over a queue, with a second's patience."""

    def __init__(self, queue: Queue, pools: Any = ()) -> None:
        self.queue = queue
        self.registry = CollectorRegistry()
        self.alarms = Alarms(queue.shards[0], self.registry)
        tree = {"delivery": {"pools": pools}, "queue": {"shards": len(queue.shards), "lease_seconds": 1}}
        settings = Settings.model_validate(tree)
        self.settings = settings.model_copy(update={"alarms": AlarmSettings.model_construct(no_progress_seconds=0.05)})
        self.watch = Watch(queue, self.alarms, self.registry, Loaded(settings, {}, Providers.parse(RULES)))

    async def look(self) -> set[str]:
        """What is on after two looks, long enough apart."""
        await self.watch.look(self.settings)
        await asyncio.sleep(0.06)
        await self.watch.look(self.settings)
        return set(self.alarms.on)


def test_mail_that_is_due_and_does_not_move(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            post = Post(queue)
            assert await post.look() == set()
            for shard in (0, 1):
                await queue.put(message("a@nobody.test", id=id_in(shard, 2)))
            assert await post.look() == {"no-progress"}
            assert (post.registry.get_sample_value("tambo_oldest_due_seconds", {"class": "bulk"}) or 0) > 0
            async with working(queue) as worker, working(queue, 1) as other:
                for one in (worker, other):
                    for item in await claim_all(one):
                        await one.settle(Settlement(item, "final", Event("delivered", now_ms(), id="x")))
            await post.watch.look(post.settings)
            assert set(post.alarms.on) == set()
            said = [(e.after, e.count) for e in await events(queue) if e.kind == "alarm" and e.subject == "no-progress"]
            assert said == [("on", 2), ("off", 0)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "key",
    [
        *("account:rrhh", "campaign:rrhh/march", "provider:default", "destination:nobody.test"),
        *("source:127.0.1.1", "flow"),
    ],
)
def test_what_is_suspended_is_no_alarm(shared_redis: Any, key: str) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            pools = [{"name": "default", "sources": [{"address": "127.0.1.1"}]}]
            post = Post(queue, pools)
            await queue.put(message("a@nobody.test", campaign="march"))
            if key == "flow":
                (flow,) = [name for name in await queue.shards[0].command("HVALS", "{q0}:flow") if b"." in name]
                await queue.suspend(f"flow:{flow.decode()}", reason="test")
            else:
                await queue.suspend(key, reason="test")
            assert await post.look() == set()
            assert await queue.resume(key if key != "flow" else f"flow:{flow.decode()}")
            assert await post.look() == {"no-progress"}
            await queue.suspend("account:rrhh", reason="test")
            assert await post.look() == set()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["again", "hold"])
def test_mail_that_is_due_later_or_held_is_no_alarm(shared_redis: Any, kind: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@nobody.test"))
            (item,) = await claim_all(worker)
            await worker.settle(Settlement(item, kind, due=now_ms() + 3_600_000))
            assert await Post(queue).look() == set()

    asyncio.run(scenario())


def test_limits_that_are_full_excuse_and_tickets_do_not(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            post = Post(queue)
            await worker.assign("gmail.test", "google")
            await queue.put(message("a@gmail.test"))
            tickets, _, _ = await worker.due({"emergency": 9, "transactional": 9, "bulk": 9})
            assert len(tickets) == 1
            assert await post.look() == {"no-progress"}  # a ticket is no work
            redis = scripts.connect(shared_redis.url, timeout=None)
            try:
                async with LimitStore(redis, "w", 30.0) as store:
                    limits = Limits((Ceiling("google/any", 1),))
                    granted = await store.connect([("", limits)], 1)
                    assert await post.look() == set()
                    await store.release(granted.leases)
                    assert await post.look() == {"no-progress"}
                    paced = Limits(messages=(Pace("google/any#messages", Rate(1, 3600.05)),))
                    assert (await store.take([(paced, 1)]))[0].count == 1
                    assert await post.look() == set()
            finally:
                await redis.aclose()

    asyncio.run(scenario())


def test_a_slow_host_is_no_alarm_and_three_at_once_are(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            post = Post(queue)
            for name in ("one.test", "two.test"):
                await queue.put(message(f"a@{name}"))
            assert await post.look() == {"no-progress"}
            tickets, _, _ = await worker.due({"emergency": 9, "transactional": 9, "bulk": 9})
            assert len(tickets) == 2
            assert await post.look() == set()
            await queue.put(message("a@three.test"))
            await worker.due({"emergency": 9, "transactional": 9, "bulk": 9})
            assert await post.look() == {"no-progress"}

    asyncio.run(scenario())


def test_a_process_that_has_just_begun_ends_nothing_it_cannot_know_of(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for name in ("bounces:rrhh", "unreachable"):
                await Alarms(queue.shards[0], CollectorRegistry()).set(name, True, "seen by another")
            post = Post(queue)
            await post.alarms.refresh()
            assert await post.look() == {"bounces:rrhh", "unreachable"}
            await queue.put(message("a@nobody.test"))
            async with working(queue) as worker:
                (item,) = await claim_all(worker)
                await worker.settle(Settlement(item, "final", Event("delivered", now_ms(), id="x")))
            assert await post.look() == {"bounces:rrhh"}

    asyncio.run(scenario())


def test_nobody_works(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            post = Post(queue)
            await queue.put(message("a@nobody.test"))

            async def on(name: str) -> bool:
                await post.watch.look(post.settings)
                return name in post.alarms.on

            await eventually(lambda: on("no-workers"))
            async with working(queue):
                await post.watch.look(post.settings)
                assert "no-workers" not in post.alarms.on

    asyncio.run(scenario())


def test_poison_is_told_until_nothing_of_it_is_held(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            post = Post(queue)
            await post.watch.look(post.settings)
            await queue.put(message("a@nobody.test"))
            (item,) = await claim_all(worker)
            event = Event(
                "held", now_ms(), id=item.message.envelope.id, index=0, reason="five claims ended without a result"
            )
            await worker.settle(Settlement(item, "hold", event))
            assert await post.look() == {"poison-held"}
            again = Post(queue)
            await again.alarms.refresh()
            assert await again.look() == {"poison-held"}
            await queue.shards[0].command("HDEL", "{q0}:hold", item.key)
            assert await again.look() == set()

    asyncio.run(scenario())


def test_an_event_that_can_not_be_read_hides_no_other(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            for data in (b'{"kind":"held","at":1}', b"{", b'{"kind":"held"}', b'{"kind":"released","at":2}'):
                await shard.command("XADD", shard.events, "*", "e", data)
            tail = Tail(queue.shards)
            assert [said.event.kind for said in await tail.new()] == ["held", "released"]
            await shard.command("XADD", shard.events, "*", "e", b"[]")
            assert await tail.new() == []

    asyncio.run(scenario())


def test_a_look_is_bounded(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            for number in range(60):
                await queue.put(message(f"a@d{number}.test", account=f"a{number % 3}"))
            backlog = await overdue(queue.shards)
            assert len(backlog.rows) == 10
            rows = await queue.shards[0].run("overdue", [10, 5])
            assert len(rows) == 3 + 5 * 6
            assert all(0 <= backlog.oldest(name) < 60 for name in ("bulk", "emergency"))

    asyncio.run(scenario())
