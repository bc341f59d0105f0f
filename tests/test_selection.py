"""Selecting recipients: what the indexes find is what a look at everything finds, however it is asked."""

from __future__ import annotations

import asyncio
import base64
import random
from dataclasses import replace
from typing import Any

import pytest

from mailqueue import selection as sel
from mailqueue.entries import Entries, Row
from mailqueue.message import Message, State, born, id_at, new_id
from mailqueue.queue import Queue
from mailqueue.selection import Selection
from mailqueue.worker import Settlement, Worker
from tests.queue_kit import claim_all, message, now_ms, opened, places, working

HOUR = 3_600_000


def aged(hours: int, *recipients: str, **changes: Any) -> Message:
    """A message whose id is so old."""
    made = message(*recipients, **changes)
    number = (now_ms() - hours * HOUR) << 52 | random.getrandbits(52)
    old = base64.b32hexencode((number << 4).to_bytes(13, "big")).decode().lower()[:20]
    return replace(made, envelope=replace(made.envelope, id=old))


def test_an_id_tells_when_it_was_made() -> None:
    before = now_ms()
    assert before <= born(new_id()) <= now_ms()
    assert id_at(before) <= new_id() < id_at(now_ms() + 1)
    assert born(id_at(before)) == before and id_at(before) < id_at(before + 1)
    for wrong in ("", "short", "ñ" * 20, "w" * 20):
        with pytest.raises(ValueError):
            born(wrong)


async def filled(queue: Queue, worker: Worker) -> None:
    """Some of everything: two accounts, three campaigns, two providers, every state, several ages and sizes."""
    await worker.assign("gmail.test", "google")
    put = [
        message(*(f"u{n}@gmail.test" for n in range(150)), account="one", campaign="enero"),
        *(message(f"v{n}@d{n}.test", account="one", campaign="febrero") for n in range(120)),
        message("a@x.test", "b@y.test", "Jo@Gmail.test", account="two", class_="transactional"),
        aged(5, "old@x.test", account="two", campaign="enero"),
        aged(3, "hand@x.test", account="three", class_="emergency"),
    ]
    for each in put:
        assert (await queue.put(each)).kind == "queued"
    for item in await claim_all(worker, recipients=1000):
        if item.recipient == "hand@x.test":
            continue
        kind: Any = "again" if item.recipient.startswith(("u1", "v1", "a@")) else "back"
        kind = "hold" if item.recipient in ("b@y.test", "u7@gmail.test") else kind
        state = State(1, 0, "451 4.7.1 greylisted") if kind == "again" else None
        due = now_ms() + HOUR if kind == "again" else 0
        await worker.settle(Settlement(item, kind, None, due, state))


def matches(row: Row, wanted: Selection) -> bool:
    """The same by looking at everything."""
    assert row.envelope is not None
    facts = {
        "account": row.envelope.account,
        "campaign": row.envelope.campaign,
        "class_": row.envelope.class_,
        "destination": row.entry.destination,
        "provider": "google" if row.entry.destination == "gmail.test" else "default",
    }
    return (
        all(getattr(wanted, name) in ("", value) for name, value in facts.items())
        and (not wanted.states or row.place in wanted.states)
        and (not wanted.ids or row.entry.id in wanted.ids)
        and (not wanted.before or born(row.entry.id) < wanted.before)
        and wanted.recipient.lower() in ("", row.recipient.lower())
    )


SELECTIONS = [
    Selection(account="one"),
    Selection(account="one", campaign="enero"),
    Selection(account="two", campaign="enero"),
    Selection(destination="x.test"),
    Selection(provider="google"),
    Selection(provider="google", states=frozenset({"deferred"})),
    Selection(provider="default", account="one", states=frozenset({"queued", "held"})),
    Selection(class_="transactional"),
    Selection(recipient="jo@gmail.test"),
    Selection(recipient="u7@gmail.test"),
    Selection(recipient="hand@x.test"),
    Selection(recipient="nobody@x.test"),
    Selection(states=frozenset({"held"})),
    Selection(states=frozenset({"leased"})),
    Selection(states=frozenset({"held"}), provider="google"),
    Selection(states=frozenset({"leased"}), destination="gmail.test"),
    Selection(account="nobody"),
]


@pytest.mark.parametrize("shards", [1, 3])
def test_indexes_find_what_a_look_at_everything_finds(shared_redis: Any, shards: int) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=shards) as queue:
            workers = queue.workers()
            for worker in workers:
                await worker.start(lambda epoch: None)
            try:
                for worker in workers[1:]:
                    await worker.assign("gmail.test", "google")
                await filled(queue, workers[0])
                everything = [row async for rows in Entries(queue.shards, Selection()).rows() for row in rows]
                assert len({row.entry.key for row in everything}) == len(everything) == 275
                assert {row.entry.key for row in everything} == set(await places(queue.shards))
                if shards == 1:
                    counts = {place: sum(row.place == place for row in everything) for place in sel.STATES}
                    assert counts == {"queued": 179, "deferred": 93, "held": 2, "leased": 1}
                ids = tuple({row.entry.id for row in everything if row.recipient.startswith(("u", "a@", "hand"))})
                more = [
                    Selection(before=now_ms() - 4 * HOUR),
                    Selection(before=now_ms() - 2 * HOUR, class_="emergency"),
                    Selection(ids=ids),
                    Selection(ids=ids, destination="gmail.test", states=frozenset({"deferred"})),
                    Selection(ids=(new_id(),)),
                ]
                for wanted in [*SELECTIONS, *more]:
                    found = [row async for rows in Entries(queue.shards, wanted).rows() for row in rows]
                    expected = {row.entry.key for row in everything if matches(row, wanted)}
                    assert sorted(row.entry.key for row in found) == sorted(expected), wanted
                    assert await Entries(queue.shards, wanted).counted() == len(expected), wanted
                    first = await Entries(queue.shards, wanted).oldest(7)
                    assert [row.entry.key for row in first] == sorted(expected)[:7]
                    if first:
                        behind = await Entries(queue.shards, wanted).oldest(5, first[-1].entry.key)
                        assert [row.entry.key for row in behind] == sorted(expected)[7:12]
            finally:
                for worker in workers:
                    await worker.stop()

    asyncio.run(scenario())


def test_no_command_is_about_more_than_a_page(shared_redis: Any) -> None:
    """Neither KEYS, nor a whole table at once, nor a single answer that is longer than a few pages."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue):
            for n in range(40):
                recipients = (f"u{n}.{m}@gmail.test" for m in range(50))
                assert (await queue.put(message(*recipients, account=f"a{n % 5}"))).kind == "queued"
            shard = queue.shards[0]
            asked: list[tuple[Any, ...]] = []
            longest = 0
            run, batch = shard.command, shard.commands

            async def command(*words: Any) -> Any:
                asked.append(words)
                return await run(*words)

            async def commands(calls: Any) -> Any:
                nonlocal longest
                asked.extend(calls)
                answers = await batch(calls)
                longest = max([longest, *(len(a[1]) for a in answers if isinstance(a, list) and len(a) == 2)])
                return answers

            shard.command, shard.commands = command, commands  # type: ignore[method-assign]
            found = [row async for rows in Entries(queue.shards, Selection()).rows() for row in rows]
            assert len(found) == 2000
            verbs = {words[0] for words in asked}
            assert verbs <= {"HSCAN", "ZSCAN", "SMEMBERS", "ZRANGE", "HMGET", "MGET", "GETRANGE"}, verbs
            assert 0 < longest <= 2 * 2 * sel.PAGE, "names and scores of two pages"
            assert max(len(words) for words in asked if words[0] == "MGET") <= sel.PAGE + 1

    asyncio.run(scenario())
