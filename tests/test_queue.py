"""The queue's verbs on real servers: put, due, claim, settle, lease, hold, stop."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from mailqueue import inspect, marks
from mailqueue.errors import LeaseLost, QueueDown, QueueRefused
from mailqueue.events import Event
from mailqueue.message import State, new_id
from mailqueue.queue import Queue
from mailqueue.worker import ClaimRequest, Settlement, Worker
from tests.queue_kit import check_index, claim_all, events, is_empty, message, now_ms, opened, places, working

ALL = {"emergency": 100, "transactional": 100, "bulk": 100}


def delivered(item: Any) -> Event:
    return Event(kind="delivered", at=now_ms(), id=item.message.envelope.id, recipient=item.recipient, index=item.index)


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert all(len(identity) == 20 for identity in ids)
    assert [i[:9] for i in ids] == sorted(i[:9] for i in ids)


def test_a_message_goes_through(any_redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(any_redis_server.url) as queue, working(queue) as worker:
            sent = message("a@gmail.test", "b@gmail.test", "c@yahoo.test", metadata={"exp": 7}, campaign="enero")
            verdict = await queue.put(sent)
            assert (verdict.kind, verdict.queued, verdict.id) == ("queued", 3, sent.envelope.id)
            items = await claim_all(worker)
            assert sorted(item.recipient for item in items) == ["a@gmail.test", "b@gmail.test", "c@yahoo.test"]
            assert all(item.message == sent for item in items)
            assert len(await places(queue.shards)) == 3
            letters = await asyncio.gather(*(worker.settle(Settlement(i, "final", delivered(i))) for i in items))
            assert letters == ["d", "d", "d"]
            assert await is_empty(queue.shards[0]) == []
            kinds = [event.kind for event in await events(queue)]
            assert kinds == ["received", "delivered", "delivered", "delivered"]

    asyncio.run(scenario())


def test_received_event_tells_the_envelope(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            sent = message("a@x.test", "b@y.test", campaign="enero", metadata={"n": 1})
            await queue.put(sent, client="10.1.2.3", warnings=("unsigned",))
            (event,) = await events(queue)
            assert event.recipients == ("a@x.test", "b@y.test")
            assert (event.account, event.campaign, event.client) == ("rrhh", "enero", "10.1.2.3")
            assert (event.metadata, event.warnings) == ({"n": 1}, ("unsigned",))
            assert event.size == len(sent.content)

    asyncio.run(scenario())


def test_the_same_put_twice_is_one_message(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            sent = message("a@x.test")
            await queue.put(sent)
            await queue.put(sent)
            assert len(await places(queue.shards)) == 1
            assert len(await events(queue)) == 1

    asyncio.run(scenario())


def test_idempotency_is_by_recipient(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            first = message("a@x.test", "b@x.test")
            await queue.put(first, "lote-1")
            second = await queue.put(message("b@x.test", "c@x.test"), "lote-1")
            assert (second.kind, second.queued, second.skipped) == ("queued", 1, 1)
            third = await queue.put(message("a@x.test"), "lote-1")
            assert (third.kind, third.id) == ("duplicate", first.envelope.id)
            other_key = await queue.put(message("a@x.test"), "lote-2")
            other_sender = await queue.put(message("a@x.test", reverse_path="otro@entidad.test"), "lote-1")
            other_account = await queue.put(message("a@x.test", account="otra"), "lote-1")
            assert [v.kind for v in (other_key, other_sender, other_account)] == ["queued"] * 3
            received = await events(queue)
            assert received[1].skipped == (0,)

    asyncio.run(scenario())


def test_retry_keeps_state_and_comes_back_when_due(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test"))
            (item,) = await claim_all(worker)
            state = State(1, 0, "451 4.7.1 later", "127.0.1.9", now_ms())
            await worker.settle(Settlement(item, "again", None, now_ms() + 150, state))
            assert await claim_all(worker) == []
            _, wait, _ = await worker.due(ALL)
            assert wait is not None
            assert 0 < wait <= 0.15
            await worker.rung(wait + 0.005)
            (again,) = await claim_all(worker)
            assert again.state == state
            await check_index(queue.shards[0])

    asyncio.run(scenario())


def test_bell_rings_for_a_sleeping_worker(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await worker.rung(0.2)  # the subscription is up, its own message heard
            tickets, wait, _ = await worker.due(ALL)
            assert (tickets, wait) == ([], None)
            waiter = asyncio.create_task(worker.rung(5))
            await queue.put(message())
            await asyncio.wait_for(waiter, 2)
            tickets, _, _ = await worker.due(ALL)
            assert len(tickets) == 1

    asyncio.run(scenario())


def test_a_ticket_is_given_to_one_worker_and_can_be_given_back(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as one, working(queue) as two:
            await queue.put(message())
            (ticket,), _, _ = await one.due(ALL)
            assert (await two.due(ALL))[0] == []
            one.give_back(ticket)
            await one.claim(ClaimRequest(ticket, 0))
            assert len((await two.due(ALL))[0]) == 1

    asyncio.run(scenario())


def test_mail_put_while_the_ticket_is_out_is_seen_by_its_holder(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as one, working(queue) as two:
            await queue.put(message("a@x.test"))
            (ticket,), _, _ = await one.due(ALL)
            await queue.put(message("b@x.test"))
            assert (await two.due(ALL))[0] == []
            claimed = await one.claim(ClaimRequest(ticket, 1, keep=True))
            assert (len(claimed.items), claimed.left) == (1, 1)
            claimed = await one.claim(ClaimRequest(ticket, 5, keep=True))
            assert (len(claimed.items), claimed.left) == (1, 0)
            await queue.put(message("c@x.test"))
            assert len((await two.due(ALL))[0]) == 1, "an emptied queue gives the ticket back by itself"

    asyncio.run(scenario())


def test_recipients_of_one_message_are_claimed_together(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message(*(f"u{n}@x.test" for n in range(250))))
            await queue.put(message("solo@x.test"))
            (ticket,), _, _ = await worker.due(ALL)
            first = await worker.claim(ClaimRequest(ticket, 2, recipients=100, keep=True))
            assert (len(first.items), first.left) == (200, 51)
            rest = await worker.claim(ClaimRequest(ticket, 2, recipients=100))
            assert len(rest.items) == 51
            assert len({item.message.envelope.id for item in rest.items}) == 2

    asyncio.run(scenario())


def test_recipients_with_return_paths_are_a_transaction_each(shared_redis: Any) -> None:
    """Else most of what is claimed would be put back, time and again: a grant is for so many transactions."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            people = tuple(f"u{n}@x.test" for n in range(30))
            await queue.put(message(*people, return_paths=tuple(f"r{n}@back.test" for n in range(30))))
            await queue.put(message(*(f"v{n}@x.test" for n in range(10))))
            (ticket,), _, _ = await worker.due(ALL)
            first = await worker.claim(ClaimRequest(ticket, 4, recipients=100, keep=True))
            assert (len(first.items), first.left) == (4, 36)
            assert [item.message.envelope.reverse_path_of(item.index) for item in first.items] == [
                f"r{item.index}@back.test" for item in first.items
            ]
            rest = await worker.claim(ClaimRequest(ticket, 27, recipients=100))
            assert (len(rest.items), rest.left) == (36, 0), "26 alone, 10 together"

    asyncio.run(scenario())


def test_accounts_share_a_lane_whatever_their_campaigns(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for campaign in ("a", "b", "c"):
                await asyncio.gather(
                    *(queue.put(message(f"u{n}@d{n}.test", account="grande", campaign=campaign)) for n in range(60))
                )
            await asyncio.gather(*(queue.put(message(f"u{n}@d{n}.test", account="chica")) for n in range(60)))
            tickets, _, _ = await worker.due({"bulk": 60})
            small = (await queue.shards[0].command("HGET", "{q0}:flow", "b\nchica\n\ndefault")).decode()
            share = sum(ticket.flow == small for ticket in tickets)
            assert 26 <= share <= 34, f"{share} of 60 tickets for one of two accounts"

    asyncio.run(scenario())


def test_weights_and_classes(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.set_weights({"doble": 2, "simple": 1})
            for account in ("doble", "simple"):
                await asyncio.gather(*(queue.put(message(f"u@d{n}.test", account=account)) for n in range(90)))
            await queue.put(message("sos@d1.test", class_="emergency"))
            tickets, _, _ = await worker.due({"emergency": 1, "bulk": 60})
            assert tickets[0].class_ == "emergency"
            double = (await queue.shards[0].command("HGET", "{q0}:flow", "b\ndoble\n\ndefault")).decode()
            share = sum(ticket.flow == double for ticket in tickets)
            assert 37 <= share <= 43

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "key", ["account:rrhh", "campaign:rrhh/enero", "provider:default", "flow", "destination:x.test"]
)
def test_suspend_and_resume_touch_no_item(shared_redis: Any, key: str) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", campaign="enero"))
            await queue.put(message("b@libre.test", account="otra", campaign="enero"))
            flow = (await inspect.flows(queue.shards[0]))[0]
            target = f"flow:{flow.id}" if key == "flow" else key
            if key == "flow" and flow.account == "otra":
                target = f"flow:{(await inspect.flows(queue.shards[0]))[1].id}"
            await queue.suspend(target, reason="prueba")
            got = {item.recipient for item in await claim_all(worker)}
            assert "a@x.test" not in got
            assert got == (set() if key.startswith("provider") else {"b@libre.test"})
            await queue.put(message("c@x.test", campaign="enero"))
            assert await claim_all(worker) == []
            assert await queue.resume(target)
            assert not await queue.resume(target)
            assert {item.recipient for item in await claim_all(worker)} >= {"a@x.test", "c@x.test"}
            kinds = [event.kind for event in await events(queue) if event.kind in ("suspended", "resumed")]
            assert kinds == ["suspended", "resumed"], "who lifts nothing says nothing"

    asyncio.run(scenario())


def test_a_timed_suspension_ends_by_itself(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test"))
            await queue.suspend("account:rrhh", 0.1)
            assert await claim_all(worker) == []
            _, wait, _ = await worker.due(ALL)
            assert wait is not None
            await asyncio.sleep(wait + 0.01)
            assert len(await claim_all(worker)) == 1

    asyncio.run(scenario())


def test_a_destination_moves_to_its_provider(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@empresa.test"))
            await queue.put(message("b@empresa.test", class_="transactional"))
            await worker.assign("empresa.test", "google")
            await queue.put(message("c@empresa.test", account="otra"))
            assert (await worker.due(ALL, blocked=["b:google", "t:google"]))[0] == []
            tickets, _, _ = await worker.due(ALL)
            assert [ticket.group for ticket in tickets] == ["google"] * 3
            await check_index(queue.shards[0])

    asyncio.run(scenario())


def test_a_dead_workers_items_come_back_and_its_late_results_count(shared_redis: Any) -> None:
    from tests.test_reaper import reaper

    async def scenario() -> None:
        async with opened(shared_redis.url, lease_seconds=1) as queue, working(queue) as alive:
            dead: Worker = queue.workers()[0]
            await dead.start(lambda epoch: None)
            for task in dead._tasks:
                task.cancel()  # silent from now on, as a stopped process is
            for n in range(3):
                await queue.put(message(f"u{n}@x.test"))
            items = await claim_all(dead)
            assert len(items) == 3
            assert await reaper(queue).reap() == 0
            await asyncio.sleep(1.05)
            assert not dead.holds(items[0])
            assert await reaper(queue).reap() == 3
            with pytest.raises(LeaseLost):
                tickets, _, _ = await alive.due(ALL)
                await dead.claim(ClaimRequest(tickets[0], 1))
            alive.give_back(tickets[0])
            await alive.claim(ClaimRequest(tickets[0], 0))
            assert await dead.settle(Settlement(items[0], "final", delivered(items[0]))) == "l"
            retry = Settlement(items[1], "again", None, now_ms(), State(1))
            assert await dead.settle(retry) == "-"
            again = await claim_all(alive)
            assert sorted(item.recipient for item in again) == sorted(i.recipient for i in items[1:])
            assert await dead.settle(Settlement(items[1], "final", delivered(items[1]))) == "L"
            assert [event.kind for event in await events(queue)].count("late") == 1
            assert set((await places(queue.shards)).values().__iter__().__next__()) == {f"{{q0}}:w:{alive.epoch}"}
            await dead.stop()

    asyncio.run(scenario())


def test_five_claims_without_a_result_hold_the_item(shared_redis: Any) -> None:
    from tests.test_reaper import reaper

    async def scenario() -> None:
        async with opened(shared_redis.url, lease_seconds=1) as queue:
            await queue.put(message("veneno@x.test"))
            for round_ in range(5):
                worker = queue.workers()[0]
                await worker.start(lambda epoch: None)
                assert len(await claim_all(worker)) == 1, round_
                for task in worker._tasks:
                    task.cancel()
                await queue.shards[0].command("ZADD", "{q0}:w", 1, worker.epoch)  # its lease ends now
                assert await reaper(queue).reap() == 1
            summary = await inspect.summary(queue.shards)
            assert summary.held == 1
            (held,) = [event for event in await events(queue) if event.kind == "held"]
            assert (held.recipient, held.account) == ("veneno@x.test", "rrhh")
            assert "five claims" in held.reason

    asyncio.run(scenario())


def test_claim_and_settle_repeated_after_a_lost_answer(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for n in range(4):
                await queue.put(message(f"u{n}@x.test"))
            (ticket,), _, _ = await worker.due(ALL)
            first = await worker._claim(7, [ClaimRequest(ticket, 2, keep=True)])
            second = await worker._claim(7, [ClaimRequest(ticket, 2, keep=True)])
            assert [i.recipient for i in first[0].items] == [i.recipient for i in second[0].items]  # type: ignore[union-attr]
            items = first[0].items  # type: ignore[union-attr]
            done = [Settlement(item, "final", delivered(item)) for item in items]
            assert await worker._settle(9, done) == ["d", "d"]
            assert await worker._settle(9, done) == ["d", "d"]
            assert [event.kind for event in await events(queue)].count("delivered") == 2
            assert not [event for event in await events(queue) if event.kind == "late"]

    asyncio.run(scenario())


def test_marks_need_the_lease(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", unknown="never"))
            (item,) = await claim_all(worker)
            assert await worker.mark(item)
            await worker.settle(Settlement(item, "final", delivered(item)))
            assert not await worker.mark(item)

    asyncio.run(scenario())


def test_a_worker_that_stops_returns_what_it_holds(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message())
            async with working(queue) as worker:
                assert len(await claim_all(worker)) == 1
            async with working(queue) as other:
                assert len(await claim_all(other)) == 1

    asyncio.run(scenario())


def test_several_shards_on_one_server(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            await asyncio.gather(*(queue.put(message(f"u{n}@x.test")) for n in range(60)))
            counts = []
            for shard in range(3):
                async with working(queue, shard) as worker:
                    items = await claim_all(worker)
                    counts.append(len(items))
                    await asyncio.gather(*(worker.settle(Settlement(i, "final", delivered(i))) for i in items))
            assert sum(counts) == 60
            assert min(counts) > 5
            assert [event.kind for event in await events(queue)].count("delivered") == 60
        with pytest.raises(QueueRefused, match="shards 3"):
            async with opened(shared_redis.url, shards=2):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "durability", "says"),
    [
        ({"appendonly": "no"}, "always", "appendonly yes"),
        ({"maxmemory-policy": "allkeys-lru"}, "always", "noeviction"),
        ({"no-appendfsync-on-rewrite": "yes"}, "relaxed", "no-appendfsync-on-rewrite no"),
        ({"appendfsync": "everysec"}, "always", "appendfsync always"),
        ({"appendfsync": "no"}, "relaxed", "appendfsync everysec"),
    ],
)
def test_a_server_that_would_lose_mail_is_refused(
    make_redis_server: Any, settings: Any, durability: str, says: str
) -> None:
    server = make_redis_server(**{name.replace("-", "_"): value for name, value in settings.items()})

    async def scenario() -> None:
        with pytest.raises(QueueRefused, match=says):
            async with opened(server.url, durability=durability):
                pass

    asyncio.run(scenario())


def test_relaxed_accepts_everysec(make_redis_server: Any) -> None:
    server = make_redis_server(appendfsync="everysec")

    async def scenario() -> None:
        async with opened(server.url, durability="relaxed") as queue:
            assert (await queue.put(message())).kind == "queued"

    asyncio.run(scenario())


def test_no_server_says_so() -> None:
    async def scenario() -> None:
        with pytest.raises(QueueDown, match="no queue server"):
            await Queue.open(replace_url("unix:///nowhere/s"), "test", patience=0.1)

    asyncio.run(scenario())


def replace_url(url: str) -> Any:
    from config.settings import QueueSettings

    return QueueSettings(url=url)


def test_the_memory_mark_refuses_and_lets_go(make_redis_server: Any) -> None:
    server = make_redis_server(maxmemory="12mb")

    async def scenario() -> None:
        async with opened(server.url, memory_mark=0.6) as queue:
            kinds = []
            for _ in range(200):
                kinds.append((await queue.put(message(content=os.urandom(200_000)))).kind)
                if kinds[-1] == "full":
                    break
                queue.marks._asked = 0.0
            assert kinds[-1] == "full"
            assert not queue.accepting
            async with working(queue) as worker:  # what is queued still goes out
                for item in await claim_all(worker):
                    await worker.settle(Settlement(item, "final", delivered(item)))
            queue.marks._asked = 0.0
            assert (await queue.put(message())).kind == "queued"
            assert queue.accepting

    asyncio.run(scenario())


def test_a_put_over_a_dead_server_is_void(redis_server: Any) -> None:
    """Killed with the put under way: QueueDown to the caller, and whatever the server kept of it is taken back."""

    async def scenario() -> None:
        async with opened(redis_server.url, put_deadline_seconds=1) as queue:
            await queue.put(message("antes@x.test"))
            redis_server.kill()
            with pytest.raises(QueueDown):
                await queue.put(message("durante@x.test"))
            assert not queue.accepting
            redis_server.start()
            async with asyncio.timeout(10):
                verdict = None
                while verdict is None:
                    try:
                        verdict = await queue.put(message("luego@x.test"))
                    except QueueDown:
                        continue
            async with working(queue) as worker:
                got = sorted(item.recipient for item in await claim_all(worker))
            assert got == ["antes@x.test", "luego@x.test"]

    asyncio.run(scenario())


def test_a_frozen_server_that_carries_the_put_out_later_is_corrected(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, put_deadline_seconds=1) as queue:
            await queue.put(message("antes@x.test"))
            redis_server.pause()
            with pytest.raises(QueueDown):
                await queue.put(message("durante@x.test"))
            redis_server.resume()
            await queue.put(message("luego@x.test"))
            async with asyncio.timeout(10):
                while "durante@x.test" in await waiting(queue):
                    await queue.put(message("luego@x.test"))
            async with working(queue) as worker:
                assert "durante@x.test" not in [item.recipient for item in await claim_all(worker)]

    asyncio.run(scenario())


async def waiting(queue: Queue) -> list[str]:
    found = []
    for item in await places(queue.shards):
        got = await inspect.find(queue.shards, item[:-2].decode())
        if got:
            found.append(got[1].recipients[0])
    return found


def test_a_stale_batch_number_does_nothing(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            put = [("w", n) for n in (1, 2)]
            one = [*put[0], 1000, 0, 0]
            two = [*put[1], 1000, 0, 0]
            assert await shard.run("put", two) == []
            with pytest.raises(Exception, match="STALE"):
                await shard.run("put", one)
            assert await shard.run("put", two) == []

    asyncio.run(scenario())


def test_settlements_outlive_a_server_restart(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue, working(queue) as worker:
            for n in range(20):
                await queue.put(message(f"u{n}@x.test"))
            items = await claim_all(worker)
            redis_server.kill()
            futures = [worker.settle(Settlement(item, "final", delivered(item))) for item in items]
            redis_server.start()
            assert set(await asyncio.gather(*futures)) == {"d"}
            assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


def test_two_records_of_one_message(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", "b@x.test"))
            items = await claim_all(worker)
            far = now_ms() + 60_000
            await worker.settle(Settlement(items[0], "final", delivered(items[0]), record=b"1", record_due=far))
            from tests.test_reaper import reaper

            assert await reaper(queue).notices() == []
            await worker.settle(Settlement(items[1], "final", delivered(items[1]), record=b"2", record_due=far))
            (notice,) = await reaper(queue).notices()
            assert notice.records == (b"1", b"2")
            assert notice.message is not None
            assert await reaper(queue).notified(notice, [])
            assert not await reaper(queue).notified(notice, [])
            assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


def test_full_is_not_for_ever(make_redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that refuses at MAIL never puts, and only a put asks how full the server is."""
    monkeypatch.setattr(marks, "BELIEVED_SECONDS", 0.2)
    server = make_redis_server()

    async def scenario() -> None:
        async with opened(server.url, memory_limit_mb=1, memory_mark=0.1) as queue:
            assert (await queue.put(message())).kind == "full"
            assert not queue.accepting
            await asyncio.sleep(0.3)
            assert queue.accepting

    asyncio.run(scenario())


def test_a_server_without_memory_refuses_mail_and_stops_nothing_else(make_redis_server: Any) -> None:
    server = make_redis_server()

    async def scenario() -> None:
        async with opened(server.url, memory_limit_mb=1000, lease_seconds=1) as queue, working(queue) as worker:
            await queue.put(message())
            epoch = worker.epoch
            server.command("CONFIG", "SET", "maxmemory", "100kb")
            assert (await queue.put(message())).kind == "full"
            assert queue.accepting
            with pytest.raises(QueueDown, match="OOM"):
                await worker.due(ALL)
            await asyncio.sleep(1.5)
            server.command("CONFIG", "SET", "maxmemory", "0")
            await asyncio.sleep(0.5)
            assert len(await claim_all(worker)) == 1
            assert worker.epoch == epoch, "the heartbeat lives on"

    asyncio.run(scenario())


def test_the_password_in_the_address_is_not_said() -> None:
    async def scenario() -> None:
        with pytest.raises(QueueDown) as down:
            await Queue.open(replace_url("redis://relay:geheim@127.0.0.1:1/0"), "test", patience=0.1)
        assert "geheim" not in str(down.value) and "127.0.0.1:1" in str(down.value)

    asyncio.run(scenario())


def test_a_claim_brings_no_more_than_there_is_room_for(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for n in range(6):
                await queue.put(message(f"u{n}@x.test", content=b"a" * 1000))
            worker.room = lambda: 2500
            (ticket,), _, _ = await worker.due(ALL)
            first = await worker.claim(ClaimRequest(ticket, 6, keep=True))
            assert (len(first.items), first.left) == (2, 4)
            worker.room = lambda: 0
            second = await worker.claim(ClaimRequest(ticket, 6, recipients=50, keep=True))
            assert (len(second.items), second.left) == (1, 3), "one message is given all the same"

    asyncio.run(scenario())
