"""Consumer groups: at least once through crashes, one reader at a time, nothing passed over unsaid."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.reaper import Reaper
from mailqueue.trimming import trim
from streams import positions
from streams.appender import Appender
from streams.archive import Archive
from streams.consumer import Consumer
from streams.groups import MOST_GROUPS, GroupLost, GroupRefused, Groups
from streams.merge import Gap
from streams.segment import Entry
from streams.starts import starts
from streams.taken import Taken
from tests.queue_kit import eventually, opened

OWNER = "ana@agency.pe"


async def write(queue: Queue, numbers: range, kind: str = "delivered") -> None:
    """Events that say their number, in turn over the shards."""
    for number in numbers:
        shard = queue.shards[number % len(queue.shards)]
        event = Event(kind=kind, at=number + 1, reason=str(number))
        await shard.command("XADD", shard.events, "*", "e", event.to_json())


def numbers(events: list[Taken]) -> list[int]:
    return [int(event.reason) for event in events]


def consumer(queue: Queue, **changes: Any) -> Consumer:
    options: dict[str, Any] = {"group": "crm", "owner": OWNER, "start": "oldest", **changes}
    return Consumer(queue.shards, options.pop("archive", None), **options)


async def rest(queue: Queue, **changes: Any) -> list[Taken]:
    """What the group has not acknowledged, acknowledged now."""
    async with consumer(queue, end=True, **changes) as events:
        found = [event async for event in events]
        await events.ack(found)
        return found


def test_what_is_acknowledged_does_not_come_again(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            await write(queue, range(30))
            async with consumer(queue) as events:
                first = [await anext(events) for _ in range(10)]
                await asyncio.gather(*(event.ack() for event in first))
            second = await rest(queue)
            assert sorted(numbers(first) + numbers(second)) == list(range(30))
            assert await rest(queue) == []
            for shard in range(3):  # each shard in its order
                own = [event for event in first + second if event.position.startswith(f"{shard}-")]
                assert numbers(own) == list(range(shard, 30, 3))

    asyncio.run(scenario())


def test_a_position_waits_for_the_first_that_is_open(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(10))
            async with consumer(queue) as events:
                batch = await events.batch(10)
                assert len(batch) == 10
                await events.ack([event for event in batch if int(event.reason) != 4])
                group = await Groups(queue.shards[0]).get("crm")
                assert group is not None
                assert f"0-{group.positions[0]}" == batch[3].position
            again = await rest(queue)
            assert numbers(again) == [4, 5, 6, 7, 8, 9], "at least once, behind the first that is open"
            assert [event.position for event in again] == [event.position for event in batch[4:]]

    asyncio.run(scenario())


def test_kinds_that_are_not_wanted_are_passed_over_and_behind(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(5), "delivered")
            await write(queue, range(5, 7), "bounced")
            await write(queue, range(7, 9), "delivered")
            assert numbers(await rest(queue, kinds=("bounced",))) == [5, 6]
            group = await Groups(queue.shards[0]).get("crm")
            assert group is not None
            assert group.kinds == ("bounced",)
            assert group.positions == await starts(queue.shards, None, "new"), "the end of the stream"

    asyncio.run(scenario())


def test_a_second_consumer_stands_by_and_goes_on_where_the_first_was(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(6))

            async def second() -> list[int]:
                async with consumer(queue) as events:
                    found = [await anext(events) for _ in range(4)]
                    await events.ack(found)
                    return numbers(found)

            async with consumer(queue, lease_seconds=60) as events:
                await (await anext(events)).ack()
                await (await anext(events)).ack()
                other = asyncio.create_task(second())
                await asyncio.sleep(0.1)
                assert not other.done(), "it stands by"
            assert await asyncio.wait_for(other, 10) == [2, 3, 4, 5]

    asyncio.run(scenario())


def test_one_that_was_replaced_is_told_and_changes_nothing(shared_redis: Any) -> None:
    """As if it had been stopped (SIGSTOP) for longer than its lease: it renews nothing while it is."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(6))
            async with consumer(queue, lease_seconds=0.05) as events:
                batch = await events.batch(6)
                assert events._keeper is not None
                events._keeper.cancel()  # stopped
                async with consumer(queue, lease_seconds=60) as other:
                    assert (await anext(other)).reason == "0"
                    events._keeper = asyncio.create_task(events._keep())  # going on
                    with pytest.raises(GroupLost, match="taken over by"):
                        await events.ack(batch)
                    with pytest.raises(GroupLost):
                        await batch[0].ack()
                    with pytest.raises(GroupLost):
                        await anext(events)
                    group = await Groups(queue.shards[0]).get("crm")
                    assert group is not None
                    assert group.positions[0] == positions.FRESH
            assert len(await rest(queue)) == 6

    asyncio.run(scenario())


def test_a_lease_that_ran_out_and_that_nobody_took_is_still_its_holders(shared_redis: Any) -> None:
    """So that an outage of the server that is longer than a lease costs nothing."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(2))
            groups = Groups(queue.shards[0])
            await groups.create("crm", OWNER, (), {0: "0-0"})
            lease = await groups.take("crm", OWNER, None, 0.001, "here:1", "a")
            assert lease is not None and hasattr(lease, "ack")
            await asyncio.sleep(0.01)
            await lease.ack({0: "5-0"})
            await lease.ack({0: "4-9"})
            group = await groups.get("crm")
            assert group is not None
            assert group.positions == {0: "5-0"}, "forwards only"

    asyncio.run(scenario())


def test_a_taking_whose_answer_was_lost_is_repeated(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            groups = Groups(queue.shards[0])
            await groups.create("crm", OWNER, (), {0: "0-0"})
            first, again, other = [
                await groups.take("crm", OWNER, None, 60, "here:1", token) for token in ("a", "a", "b")
            ]
            assert first is not None and again is not None
            assert first.group.epoch == again.group.epoch == 1  # type: ignore[union-attr]
            assert other is not None
            assert other.holder == "here:1"  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_a_restart_of_the_server_is_sat_out(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            await write(queue, range(3))
            async with consumer(queue) as events:
                first = await anext(events)
                redis_server.kill()
                acked = asyncio.create_task(first.ack())
                await asyncio.sleep(0.05)
                assert not acked.done()
                redis_server.start()
                await asyncio.wait_for(acked, 10)
                await write(queue, range(3, 5))
                more = [await anext(events) for _ in range(4)]
                assert numbers(more) == [1, 2, 3, 4]
                await events.ack(more)
            assert await rest(queue) == []

    asyncio.run(scenario())


def test_no_more_is_given_than_may_be_open(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(8))
            async with consumer(queue, most_unacked=3) as events:
                batch = await events.batch(8)
                assert len(batch) == 3
                fourth = asyncio.create_task(anext(events))
                await asyncio.sleep(0.05)
                assert not fourth.done()
                await batch[2].ack()
                assert (await asyncio.wait_for(fourth, 10)).reason == "3"

    asyncio.run(scenario())


def test_one_event_that_stays_open_ends_the_giving_some_day(shared_redis: Any) -> None:
    """What is behind it would come again after a crash, and must be remembered until then."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(30))
            async with consumer(queue, most_unacked=2) as events:
                first = await anext(events)
                for _ in range(19):
                    await (await anext(events)).ack()
                more = asyncio.create_task(anext(events))
                await asyncio.sleep(0.05)
                assert not more.done()
                await first.ack()
                assert (await asyncio.wait_for(more, 10)).reason == "20"

    asyncio.run(scenario())


def test_what_was_trimmed_without_an_archive_is_a_gap_and_says_how_to_go_on(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(10))
            async with consumer(queue) as events:
                batch = await events.batch(4)
                await events.ack(batch)
            await Reaper(queue.shards[0], lambda *_: b"").tidy(3)
            async with consumer(queue) as events:
                with pytest.raises(Gap) as gap:
                    await anext(events)
                assert gap.value.after == batch[-1].position
                assert "relayctl streams rewind" in str(gap.value)
            shard, id = positions.parts(gap.value.go_on)
            await Groups(queue.shards[0]).rewind("crm", {shard: id}, "rewound")
            assert numbers(await rest(queue)) == [7, 8, 9]

    asyncio.run(scenario())


def test_what_was_acknowledged_may_be_trimmed(shared_redis: Any) -> None:
    """The last one that is gone is the last one acknowledged: nothing is missing."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(10))
            assert len(await rest(queue)) == 10
            await write(queue, range(10, 13))
            assert await trim(queue.shards[0], 3) == 10
            assert numbers(await rest(queue)) == [10, 11, 12]

    asyncio.run(scenario())


def archive(directory: Path, rows: Mapping[int, Sequence[Entry]]) -> Archive:
    appender = Appender(directory)
    appender.open()
    try:
        for shard, entries in rows.items():
            if entries:
                appender.append(shard, entries)
    finally:
        appender.close()
    return Archive(directory)


async def entries(queue: Queue) -> dict[int, list[Entry]]:
    """What the streams hold, by shard."""
    rows = {}
    for shard in queue.shards:
        found = await shard.command("XRANGE", shard.events, "-", "+")
        rows[shard.number] = [(id.decode(), fields[1]) for id, fields in found]
    return rows


def test_a_group_that_fell_behind_reads_the_archive_and_then_the_stream(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            await write(queue, range(4))
            await rest(queue)
            await write(queue, range(4, 1100))
            kept = archive(tmp_path / "a", await entries(queue))
            await write(queue, range(1100, 1200))
            for shard in queue.shards:
                await trim(shard, -1, kept.newest(shard.number))
            async with consumer(queue, archive=kept, end=True) as events:
                found = [event async for event in events]
            for shard in (0, 1):
                own = [event for event in found if event.position.startswith(f"{shard}-")]
                assert numbers(own) == list(range(4 + shard, 1200, 2)), "no gap, no repeat"

    asyncio.run(scenario())


def test_a_group_made_before_there_was_any_event_reads_the_archive(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            assert await rest(queue) == []
            await write(queue, range(5))
            kept = archive(tmp_path / "a", await entries(queue))
            await trim(queue.shards[0], -1)
            async with consumer(queue, archive=None) as events:
                with pytest.raises(Gap):
                    await anext(events)
            assert numbers(await rest(queue, archive=kept)) == [0, 1, 2, 3, 4]

    asyncio.run(scenario())


@pytest.mark.parametrize("part", [slice(5, 10), slice(2, 7), slice(0, 0)], ids=["late", "ends", "empty"])
def test_an_archive_that_begins_too_late_or_ends_too_early_is_a_gap(
    shared_redis: Any, tmp_path: Path, part: slice
) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(2))
            await rest(queue)
            await write(queue, range(2, 10))
            rows = (await entries(queue))[0]
            kept = archive(tmp_path / "a", {0: rows[part]})
            await trim(queue.shards[0], 1)
            async with consumer(queue, archive=kept) as events:
                with pytest.raises(Gap):
                    async for _event in events:
                        pass

    asyncio.run(scenario())


def test_beginnings(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            assert await starts(queue.shards, None, "new") == {0: positions.FRESH, 1: positions.FRESH}
            await write(queue, range(6))
            assert numbers(await rest(queue, group="all")) != []
            assert await rest(queue, group="late", start="new") == []
            assert len(await rest(queue, group="dated", start="2026-01-01")) == 6
            assert await rest(queue, group="tomorrow", start="2100-01-01") == []
            one = (await rest(queue, group="again"))[0]
            later = await rest(queue, group="placed", start=[one.position])
            assert one.position not in [event.position for event in later]
            assert len(later) == 5
            again = await rest(queue, group="placed", start=[one.position])
            shard = one.position[0]
            assert [e.position for e in again] == [e.position for e in later if e.position[0] == shard], "its own books"
            alone = await rest(queue, group="placed", start=one.position)
            assert [e.position for e in alone] == [e.position for e in again], "one position is a list of one"
            for wrong in ("never", ["0-x"], ["7-1-0"], "7-1-0"):
                with pytest.raises(GroupRefused):
                    await rest(queue, group="wrong", start=wrong)

    asyncio.run(scenario())


def test_groups_have_owners_and_there_are_not_too_many(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            groups = Groups(queue.shards[0])
            await rest(queue)
            with pytest.raises(GroupRefused, match="belongs to ana@agency.pe, not to bob"):
                await rest(queue, owner="bob")
            with pytest.raises(GroupRefused, match="owner"):
                await rest(queue, group="nobodys", owner="")
            with pytest.raises(GroupRefused, match="no name of a group"):
                await rest(queue, group="Con espacio")
            with pytest.raises(GroupRefused, match="no kind of event: opened"):
                await rest(queue, group="kinds", kinds=("opened",))
            for number in range(MOST_GROUPS - 1):
                assert await groups.create(f"g{number}", OWNER, (), {0: "0-0"})
            assert not await groups.create("crm", OWNER, (), {0: "0-0"})
            with pytest.raises(GroupRefused, match="100 groups"):
                await groups.create("more", OWNER, (), {0: "0-0"})
            assert len(await groups.all()) == MOST_GROUPS

    asyncio.run(scenario())


@pytest.mark.parametrize(("what", "said"), [("rewind", "rewound by hand"), ("remove", "was removed")])
def test_a_reader_is_told_of_a_change_by_hand(shared_redis: Any, what: str, said: str) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(5))
            await rest(queue)
            groups = Groups(queue.shards[0])
            async with consumer(queue, lease_seconds=0.3) as events:
                waiting = asyncio.create_task(anext(events))
                done = groups.remove("crm") if what == "remove" else groups.rewind("crm", {0: "0-0"}, said)
                assert await done
                with pytest.raises(GroupLost, match=said):
                    await asyncio.wait_for(waiting, 10)
            assert len(await rest(queue)) == 5

    asyncio.run(scenario())


def test_what_is_no_event_does_not_hold_up_the_others(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await write(queue, range(1))
            for data in (b"nonsense", b'{"kind":"delivered"}', b'{"at":5,"kind":"delivered","reason":"1"}'):
                await queue.shards[0].command("XADD", queue.shards[0].events, "*", "e", data)
            assert numbers(await rest(queue, kinds=("delivered",))) == [0, 1]
            assert await rest(queue) == []

    asyncio.run(scenario())


def test_the_lease_is_kept_while_nothing_happens(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            groups = Groups(queue.shards[0])
            async with consumer(queue, lease_seconds=0.3):
                group = await groups.get("crm")
                assert group is not None
                begun = group.until

                async def renewed() -> bool:
                    now = await groups.get("crm")
                    return now is not None and now.until > begun and now.epoch == group.epoch

                await eventually(renewed)

    asyncio.run(scenario())
