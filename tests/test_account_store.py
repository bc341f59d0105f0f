"""Accounts in the queue: on a real server, killed where it hurts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from config.accounts import AccountSettings
from mailqueue import accounts as module
from mailqueue.accounts import AccountConflict, AccountStore, Change
from mailqueue.errors import QueueDown
from mailqueue.queue import Queue
from tests.queue_kit import now_ms, opened

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNo"


def account(name: str = "rrhh", **changes: Any) -> AccountSettings:
    return AccountSettings.model_validate({"name": name, "networks": ["10.1.0.0/24"], **changes})


def test_round_trip(any_redis_server: Any) -> None:
    full = account(
        **{"class": "transactional", "classes": ["bulk"]},
        password_hash=HASH, previous_hash=HASH, previous_until="2030-01-01T00:00:00Z", unknown="once:24h",
        senders=["agency.pe", "*.agency.pe"], quota="bag", term_from="2026-01-01", term_until="2026-12-31",
        expire_seconds="2h", disabled=True, max_recipients=5,
    )  # fmt: skip

    async def scenario() -> None:
        async with opened(any_redis_server.url) as queue:
            store = queue.accounts()
            assert await store.read() == module.Stored(0)
            before = now_ms()
            assert await store.add(full, "ana") == 1
            any_redis_server.kill()
            any_redis_server.start()
            stored = await store.read()
            (record,) = stored.records
            assert (stored.version, record.account, record.revision, record.changed_by) == (1, full, 1, "ana")
            assert before - 5 <= record.changed_at <= now_ms() + 5
            row = await queue.shards[0].command("HGET", "{q0}:accounts", "rrhh")
            assert b"max_campaigns" not in row and b'"class":"transactional"' in row

    asyncio.run(scenario())


def test_two_administrators_do_not_overwrite_each_other(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            store = queue.accounts()
            await store.add(account(), "ana")
            with pytest.raises(AccountConflict, match="account rrhh: there is one already"):
                await store.add(account(), "beto")
            old = (await store.read()).records[0]
            outcomes = await asyncio.gather(
                *(store.replace(old, account(weight=n), f"admin{n}") for n in range(2, 6)), return_exceptions=True
            )
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AccountConflict"] * 3 + ["int"]
            winner = next(n for n, outcome in enumerate(outcomes, 2) if isinstance(outcome, int))
            new = (await store.read()).records[0]
            assert (new.account.weight, new.changed_by, new.revision) == (winner, f"admin{winner}", 2)
            with pytest.raises(AccountConflict, match="it was changed meanwhile"):
                await store.remove(old, "ana")
            assert await store.remove(new, "ana") == 3
            with pytest.raises(AccountConflict, match="it is gone"):
                await store.replace(new, account(), "ana")
            assert await store.add(account(), "ana") == 4  # the revision of the one before is not given again
            with pytest.raises(AccountConflict, match="it was changed meanwhile"):
                await store.remove(new, "ana")

    asyncio.run(scenario())


def test_many_are_changed_together_or_not_at_all(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            store = queue.accounts()
            await store.add(account("b"), "ana")
            with pytest.raises(AccountConflict, match="account b"):
                await store.change([Change(n, 0, account(n)) for n in "abc"], "ana")
            assert [record.account.name for record in (await store.read()).records] == ["b"]
            await store.change(
                [Change("a", 0, account("a")), Change("b", 1, None), Change("c", 0, account("c"))], "ana"
            )
            stored = await store.read()
            assert [(r.account.name, r.revision) for r in stored.records] == [("a", 2), ("c", 2)]
            assert await store.change([], "ana") == 2

    asyncio.run(scenario())


class Deaf(AccountStore):
    """Whose first answer is lost on the way: the change was made."""

    lost = 0

    async def _repeat(self, words: Any) -> Any:
        shard = self._shard

        async def run(verb: str, arguments: Any) -> Any:
            answer = await type(shard).run(shard, verb, arguments)
            if not self.lost:
                self.lost += 1
                raise QueueDown("the answer was lost")
            return answer

        self._shard = type("Lossy", (), {"run": staticmethod(run), "prefix": shard.prefix})()  # type: ignore[assignment]
        try:
            return await super()._repeat(words)
        finally:
            self._shard = shard


def test_a_repetition_after_a_lost_answer_is_harmless(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            store = Deaf(queue.shards[0])
            assert await store.add(account(), "ana") == 1
            assert store.lost == 1
            stored = await store.read()
            assert (stored.version, stored.records[0].revision) == (1, 1)
            store.lost = 0
            assert await store.remove(stored.records[0], "ana") == 2

    asyncio.run(scenario())


def test_a_server_that_dies_under_a_change(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change waits for it to come back; when it stays away, QueueDown."""

    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            store = queue.accounts()
            redis_server.kill()
            adding = asyncio.create_task(store.add(account(), "ana"))
            await asyncio.sleep(0.3)
            redis_server.start()
            assert await adding == 1
            monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.3)
            redis_server.kill()
            with pytest.raises(QueueDown):
                await store.add(account("b"), "ana")
            redis_server.start()

    asyncio.run(scenario())


async def next_of(changes: Any, seconds: float = 10.0) -> module.Stored:
    async with asyncio.timeout(seconds):
        return await anext(changes)  # type: ignore[no-any-return]


def test_a_watcher_hears_changes_and_survives_a_restart(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue, opened(redis_server.url) as other:
            store, changes = queue.accounts(), other.accounts().watch(look=60.0)
            assert (await next_of(changes)).version == 0
            waiting = asyncio.create_task(next_of(changes))
            await asyncio.sleep(0.3)
            await store.add(account(), "ana")
            assert [a.name for a in (await waiting).accounts] == ["rrhh"]
            waiting = asyncio.create_task(next_of(changes, 20.0))
            redis_server.kill()
            await asyncio.sleep(0.3)
            redis_server.start()
            await store.add(account("b"), "ana")
            assert [a.name for a in (await waiting).accounts] == ["b", "rrhh"]
            await changes.aclose()

    asyncio.run(scenario())


def test_a_missed_message_does_no_harm(shared_redis: Any) -> None:
    async def scenario(queue: Queue) -> None:
        changes = AccountStore(queue.shards[0]).watch(known=0, look=0.05)  # hears no channel
        waiting = asyncio.create_task(next_of(changes))
        await asyncio.sleep(0.1)
        await queue.accounts().add(account(), "ana")
        assert (await waiting).version == 1
        await changes.aclose()

    async def with_queue() -> None:
        async with opened(shared_redis.url) as queue:
            await scenario(queue)

    asyncio.run(with_queue())


def test_what_cannot_be_read_is_named_and_the_rest_is_there(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            store, shard = queue.accounts(), queue.shards[0]
            await store.add(account(), "ana")
            newer = b'9 9 {"by":"x","account":{"name":"new","networks":["10.2.0.0/24"],"from_the_future":1}}'
            rows = {"bad": b"1 1 {", "wrong": b'1 1 {"by":"x","account":{"name":"Wrong Name"}}', "new": newer}
            for name, row in rows.items():
                await shard.command("HSET", "{q0}:accounts", name, row)
            stored = await store.read()
            assert [a.name for a in stored.accounts] == ["new", "rrhh"]
            assert [name for name, _ in stored.unread] == ["bad", "wrong"]
            assert "is not allowed" in stored.unread[1][1]

    asyncio.run(scenario())
