"""The cap on open campaigns: known ones pass, the view is read at most once a second, together."""

from __future__ import annotations

import asyncio
from typing import Any

from config.settings import AccountSettings
from mailqueue.errors import QueueDown
from relayd.campaigns import OpenCampaigns
from tests.listening import RecordingQueue, listening, run
from tests.queue_kit import message, opened

ACCOUNT = AccountSettings(name="app", max_campaigns=2)


class Books:
    def __init__(self, *campaigns: str) -> None:
        self.open = {"app": set(campaigns), "other": {"x", "y", "z"}}
        self.reads = 0
        self.now = 100.0
        self.view = OpenCampaigns(self.read, lambda: self.now)

    async def read(self) -> dict[str, set[str]]:
        self.reads += 1
        await asyncio.sleep(0)
        return self.open


def test_a_campaign_beyond_the_cap_waits_until_another_is_done() -> None:
    async def scenario() -> None:
        books = Books("a", "b")
        assert await books.view.admits(ACCOUNT, "a")
        assert not await books.view.admits(ACCOUNT, "c")
        assert await books.view.admits(ACCOUNT, "")
        books.open["app"] = {"b"}
        assert not await books.view.admits(ACCOUNT, "c"), "not read twice in a second"
        books.now += 1
        assert await books.view.admits(ACCOUNT, "c")
        assert not await books.view.admits(ACCOUNT, "d"), "what was let in counts before it is in the books"
        assert books.reads == 2

    run(scenario())


def test_many_sessions_read_once() -> None:
    async def scenario() -> None:
        books = Books()
        answers = await asyncio.gather(*(books.view.admits(ACCOUNT, f"c{n}") for n in range(50)))
        assert (sum(answers), books.reads) == (2, 1)

    run(scenario())


def test_a_known_campaign_is_looked_up_again_before_long() -> None:
    async def scenario() -> None:
        books = Books("a")
        assert await books.view.admits(ACCOUNT, "a")
        books.open["app"] = {"b", "c"}
        books.now += 29
        assert await books.view.admits(ACCOUNT, "a")
        books.now += 2
        assert not await books.view.admits(ACCOUNT, "a")

    run(scenario())


def test_what_the_client_hears() -> None:
    async def scenario() -> None:
        queue = RecordingQueue(open_campaigns={"app": {f"c{n}" for n in range(1000)}})
        async with listening(queue) as house:
            client = await house.connect()
            await client.hello()
            said = await client.transaction("X-Tambo-Campaign: new\r\n\r\n")
            assert said == "452 4.3.1 too many campaigns open (1000); finish or delete one"
            assert (await client.transaction("X-Tambo-Campaign: c7\r\n\r\n")).startswith("250 ")
            assert (await client.transaction()).startswith("250 ")
            (event,) = house.queue.events
            assert (event.kind, event.reason) == ("rejected", "campaigns")

    run(scenario())


def test_a_queue_that_does_not_answer_is_our_fault() -> None:
    async def scenario() -> None:
        async with listening(RecordingQueue(failure=QueueDown("no answer"))) as house:
            client = await house.connect()
            await client.hello()
            said = await client.transaction("X-Tambo-Campaign: new\r\n\r\n")
            assert said == "451 4.3.0 queue not available, try again"

    run(scenario())


def test_the_queues_books(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            for campaign, class_ in (("a", "bulk"), ("a", "transactional"), ("b", "bulk"), ("", "bulk")):
                await queue.put(message(campaign=campaign, class_=class_))
            assert await queue.campaigns() == {"rrhh": {"a", "b"}}

    asyncio.run(scenario())
