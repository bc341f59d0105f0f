"""DSNs that are due: what they say, in which shard they lie, and what does not hold them up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from config.load import Loaded
from config.settings import Settings
from delivery import dsn as notification
from delivery.notify import notify, record_of
from delivery.report import DsnRecord
from mailqueue import inspect
from mailqueue.message import State
from mailqueue.reaper import Reaper
from mailqueue.worker import Settlement
from maintenance.rounds import Maintenance
from signing import keys as signing_keys
from tests.delivery_kit import providers
from tests.dkim_kit import faults
from tests.queue_kit import claim_all, events, message, now_ms, opened, working

FAILED = DsnRecord("a@x.test", "failed", "5.1.1", "smtp; 550 5.1.1 no such user").to_json()


def settings(shards: int = 1) -> Settings:
    tree = {"delivery": {"hostname": "relay.entidad.test"}, "queue": {"shards": shards}}
    return Settings.model_validate(tree)


@pytest.mark.parametrize(
    ("state", "action", "status", "diagnostic"),
    [
        (State(), "delayed", "4.0.0", "x-tambo; not attempted yet"),
        (State(1, 0, "451 4.3.0 later", "", 5), "delayed", "4.0.0", "smtp; 451 4.3.0 later"),
        (State(1, 0, "connection refused", "", 5), "failed", "4.4.7", "x-tambo; connection refused"),
    ],
)
def test_what_the_reaper_has_said(state: State, action: str, status: str, diagnostic: str) -> None:
    envelope = message("a@x.test", "b@x.test").envelope
    record = DsnRecord.from_json(record_of(envelope, 1, state, action, now_ms()))
    assert (record.recipient, record.action, record.status) == ("b@x.test", action, status)
    assert record.diagnostic_code == diagnostic
    assert record.last_attempt_at == (state.at or envelope.received_at)
    assert record.retry_until == (envelope.expires_at if action == "delayed" else 0)
    assert record_of(message(reverse_path="").envelope, 0, state, action, 0) == b""
    assert record_of(message(dsn="stream").envelope, 0, state, action, 0) == b""
    asked = message("a@x.test", "b@x.test", notify=("NEVER", "FAILURE,DELAY"), orcpt=("", "rfc822;B@x.test")).envelope
    assert record_of(asked, 0, state, action, 0) == b""
    assert DsnRecord.from_json(record_of(asked, 1, state, action, 0)).orcpt == "rfc822;B@x.test"


def test_a_dsn_lies_in_the_shard_of_its_id(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, shards=3) as queue:
            for _ in range(12):
                await queue.put(message("a@x.test"))
            queued = 0
            for shard in queue.shards:
                async with working(queue, shard.number) as worker:
                    for item in await claim_all(worker):
                        await worker.settle(Settlement(item, "final", record=FAILED, record_due=0))
                queued += await notify(Reaper(shard, record_of), settings(3))
            assert queued == 12
            for shard in queue.shards:
                async with working(queue, shard.number) as worker:
                    for item in await claim_all(worker):
                        envelope = item.message.envelope
                        assert (envelope.reverse_path, item.recipient) == ("", "aviso@entidad.test")
                        assert (envelope.account, envelope.pool) == ("rrhh", "default")
                        found = await inspect.find(queue.shards, envelope.id)
                        assert found is not None
                        assert found[0] is shard
            received = [event for event in await events(queue) if event.reverse_path == ""]
            assert len(received) == 12, "the queue says of a DSN, too, that it has it"

    asyncio.run(scenario())


def test_a_failure_and_a_delay_are_two_dsns(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", "b@y.test", notify_after=1))
            items = await claim_all(worker)
            await worker.settle(Settlement(items[0], "final", record=FAILED, record_due=now_ms()))
            await worker.settle(Settlement(items[1], "again", due=now_ms() + 60_000, state=State(1)))
            reaper = Reaper(queue.shards[0], record_of)
            await reaper.look()
            assert await notify(reaper, settings()) == 2
            assert await notify(reaper, settings()) == 0
            bodies = sorted(item.message.content for item in await claim_all(worker))
            assert [b"Action: failed" in body for body in bodies].count(True) == 1
            assert [b"Action: delayed" in body for body in bodies].count(True) == 1

    asyncio.run(scenario())


def test_a_record_that_can_t_be_read_holds_up_nobody(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", "b@y.test"))
            for item, record in zip(await claim_all(worker), (b"nonsense", FAILED), strict=True):
                await worker.settle(Settlement(item, "final", record=record, record_due=0))
            await queue.put(message("c@x.test"))
            (item,) = await claim_all(worker)
            await worker.settle(Settlement(item, "final", record=FAILED, record_due=0))
            assert await notify(Reaper(queue.shards[0], record_of), settings()) == 2

    asyncio.run(scenario())


def test_two_maintenance_processes_tell_once(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for _ in range(20):
                await queue.put(message("a@x.test"))
            for item in await claim_all(worker):
                await worker.settle(Settlement(item, "final", record=FAILED, record_due=0))
            counts = await asyncio.gather(*(notify(Reaper(queue.shards[0], record_of), settings()) for _ in range(3)))
            assert sum(counts) == 20
            assert len(await claim_all(worker)) == 20

    asyncio.run(scenario())


def test_a_dsn_that_fails_is_left_for_later_and_holds_up_nobody(
    shared_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = notification.compose

    def broken(envelope: Any, *words: Any, **options: Any) -> bytes | None:
        if envelope.account == "bad":
            raise RuntimeError("no such part")
        return real(envelope, *words, **options)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            bad = message("a@x.test", account="bad")
            for sent in (bad, message("a@x.test"), message("a@x.test")):
                await queue.put(sent)
            for item in await claim_all(worker):
                await worker.settle(Settlement(item, "final", record=FAILED, record_due=0))
            keeper = Reaper(queue.shards[0], record_of)
            with monkeypatch.context() as patch, capture_logs() as lines:
                patch.setattr("delivery.notify.compose", broken)
                assert await notify(keeper, settings()) == 2
            (line,) = (line for line in lines if line["event"] == "DSN failed")
            assert line["id"] == bad.envelope.id and line["exc_info"]
            (due,) = (await queue.shards[0].command("ZRANGE", "{q0}:bd", 0, -1, "WITHSCORES"))[1::2]
            assert 50_000 < float(due) - now_ms() <= 60_000, "leased"
            await queue.shards[0].command("ZADD", "{q0}:bd", 1, bad.envelope.id)
            assert await notify(keeper, settings()) == 1, "the lease has ended"

    asyncio.run(scenario())


def test_a_dsn_is_signed_by_the_key_that_covers_our_name(shared_redis: Any, tmp_path: Path) -> None:
    held = signing_keys.generate(tmp_path, "entidad.test", "rsa-2048", selector="s1", now=1.0)
    signing_keys.rotate(tmp_path, "entidad.test", now=2.0, overlap=1.0)
    new = Loaded(Settings.model_validate({"signing": {"directory": str(tmp_path)}}), {}, providers())

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            registry = CollectorRegistry()
            work = Maintenance(queue, _Settled(), registry)  # type: ignore[arg-type]
            bodies = []
            for reloaded in (False, True):
                await queue.put(message("a@x.test", ret="FULL", content=b"Subject: hola\r\n\r\nma\xc3\xb1ana\r\n"))
                (item,) = await claim_all(worker)
                await worker.settle(Settlement(item, "final", record=FAILED, record_due=0))
                if reloaded:
                    assert not work.read_keys(new)
                    work.take_over(new, new)
                assert await work._round(1) == ""
                (dsn,) = await claim_all(worker)
                assert dsn.message.envelope.body == "8BITMIME"
                bodies.append(dsn.message.content)
            assert b"DKIM-Signature" not in bodies[0], "as before, while no key covers us"
            assert bodies[1].startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
            assert b"d=entidad.test;" in bodies[1]
            assert faults(bodies[1], [held.key], signatures=1) == []

    asyncio.run(scenario())


class _Settled:
    """A configuration that is never reloaded."""

    settings = settings()
    loaded = Loaded(settings, {}, providers())


def test_a_step_of_maintenance_that_fails_holds_up_neither_the_others_nor_the_process(
    shared_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            registry = CollectorRegistry()
            work = Maintenance(queue, _Settled(), registry)  # type: ignore[arg-type]
            await queue.put(message("a@x.test"))
            (item,) = await claim_all(worker)
            await worker.settle(Settlement(item, "final", record=FAILED, record_due=0))
            await queue.put(message("b@x.test", expires_at=1, reverse_path=""))

            async def broken(_reaper: Reaper) -> int:
                raise RuntimeError("bug")

            with monkeypatch.context() as patch, capture_logs() as lines:
                patch.setattr(Reaper, "reap", broken)
                assert await work._round(0) == "reap failed: RuntimeError"
            assert [line["step"] for line in lines if line["event"] == "step failed"] == ["reap"]
            assert registry.get_sample_value("tambo_dsns_queued_total") == 1
            assert registry.get_sample_value("tambo_items_expired_total") == 1
            assert await work._round(1) == ""

    asyncio.run(scenario())
