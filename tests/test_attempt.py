"""From claimed items to mail transactions, and from outcomes to settlements."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.replies import Rules
from config.settings import RetrySettings
from delivery.attempt import Judge, Parcel, parcels
from delivery.outcome import Outcome, Via, accepted, lost, replied, unroutable
from delivery.reply import Phase, Reply
from mailqueue.message import QueueItem
from tests.queue_kit import claim_all, message, now_ms, opened, working

JUDGE = Judge(Rules(), RetrySettings(), 300_000, random.Random(1))
LATER = replied(Reply(451, "4.3.0", "later"), Phase.RCPT, Rules(), Via())
NEVER = replied(Reply(550, "5.1.1", "no"), Phase.RCPT, Rules(), Via())
UNKNOWN = lost(Phase.END_OF_DATA, "reset", Via())


def item(**changes: Any) -> QueueItem:
    return QueueItem(message("a@x.test", **changes), 0, "1.1", "x.test")


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 7))
def test_parcels_keep_order_messages_and_bound(run: list[int], most: int) -> None:
    sent = [message(*(f"u{n}@x.test" for n in range(60))) for _ in range(4)]
    items = [QueueItem(sent[which], index, "1.1", "x.test") for index, which in enumerate(run)]
    found = parcels(None, items, most)  # type: ignore[arg-type]
    assert [one for parcel in found for one in parcel.items] == items
    assert all(len(parcel.items) <= most for parcel in found)
    assert all(len({id(one.message) for one in parcel.items}) == 1 for parcel in found)
    for before, after in pairwise(found):
        assert before.items[0].message is not after.items[0].message or len(before.items) == most


def test_each_return_path_has_a_transaction_of_its_own() -> None:
    paths = tuple(f"r{n}@back.test" for n in range(3))
    sent = message("a@x.test", "b@x.test", "c@x.test", return_paths=paths)
    items = [QueueItem(sent, index, "1.1", "x.test") for index in range(3)]
    found = parcels(None, items, 100)  # type: ignore[arg-type]
    made = [(parcel.transaction().reverse_path, parcel.transaction().recipients) for parcel in found]
    assert made == [(path, (one.recipient,)) for path, one in zip(paths, items, strict=True)]


def test_a_transaction_says_of_each_recipient_what_its_sender_said() -> None:
    """NOTIFY that differs is no reason for another transaction."""
    sent = message(
        *("a@x.test", "b@x.test", "c@x.test"),
        ret="FULL",
        envid="X+2B",
        notify=("NEVER", "", "SUCCESS"),
        orcpt=("rfc822;A@x.test", "", ""),
    )
    items = [QueueItem(sent, index, "1.1", "x.test") for index in (2, 0)]
    (parcel,) = parcels(None, items, 100)  # type: ignore[arg-type]
    made = parcel.transaction()
    assert (made.ret, made.envid, made.reverse_path) == ("FULL", "X+2B", "aviso@entidad.test")
    assert (made.notify, made.orcpt) == (("SUCCESS", "NEVER"), ("", "rfc822;A@x.test"))
    plain = Parcel(None, (item(),)).transaction()  # type: ignore[arg-type]
    assert (plain.ret, plain.envid, plain.notify, plain.orcpt) == ("", "", (), ())


@pytest.mark.parametrize(
    ("outcome", "changes", "kind", "event", "record"),
    [
        (accepted(Reply(250, "2.0.0", "ok")), {}, "final", "delivered", False),
        (LATER, {}, "again", "deferred", False),
        (LATER, {"notify_after": 1}, "again", "deferred", False),
        (LATER, {"expires_at": 1}, "final", "expired", True),
        (NEVER, {}, "final", "bounced", True),
        (NEVER, {"reverse_path": ""}, "final", "bounced", False),
        (UNKNOWN, {}, "again", "unknown", False),
        (UNKNOWN, {"unknown": "never"}, "final", "unknown", False),
        (UNKNOWN, {"unknown": "once:60"}, "again", "unknown", False),
        (unroutable("5.1.2", "no such domain", permanent=True), {}, "final", "bounced", True),
        (NEVER, {"notify": ("NEVER",)}, "final", "bounced", False),
        (NEVER, {"notify": ("SUCCESS,DELAY",)}, "final", "bounced", False),
        (NEVER, {"notify": ("FAILURE",)}, "final", "bounced", True),
        (NEVER, {"dsn": "stream"}, "final", "bounced", False),
        (accepted(Reply(250)), {"notify": ("SUCCESS",)}, "final", "delivered", True),
        (accepted(Reply(250), Via(dsn=True)), {"notify": ("SUCCESS",)}, "final", "delivered", False),
        (accepted(Reply(250)), {"notify": ("SUCCESS",), "dsn": "stream"}, "final", "delivered", False),
        (accepted(Reply(250)), {"notify": ("SUCCESS",), "reverse_path": ""}, "final", "delivered", False),
        (accepted(Reply(250)), {"notify": ("FAILURE,DELAY",)}, "final", "delivered", False),
    ],
)
def test_settlements(outcome: Outcome, changes: dict[str, Any], kind: str, event: str, record: bool) -> None:
    now = now_ms()
    made = JUDGE.settlement(item(**changes), outcome, "google", now)
    assert made.event is not None
    assert (made.kind, made.event.kind, bool(made.record)) == (kind, event, record)
    assert (made.event.provider, made.event.destination) == ("google", "x.test")
    if kind == "again":
        assert made.due > now
        assert made.event.next_at == made.due
        assert made.state is not None
        assert made.state.reply
    else:
        assert made.event.next_at == 0
        assert made.record_due == now + 300_000


def test_a_destination_that_waits_overrules_the_schedule_but_not_expiry() -> None:
    now = now_ms()
    assert JUDGE.settlement(item(), LATER, "", now, due=now + 5).due == now + 5
    assert JUDGE.settlement(item(expires_at=now + 50), LATER, "", now, due=now + 9999).due == now + 50
    assert JUDGE.settlement(item(), NEVER, "", now, due=now + 5).kind == "final"


def test_the_lease_is_asked_before_mail_and_before_the_dot(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            await queue.put(message("a@x.test", unknown="never"))
            await queue.put(message("b@x.test"))
            for one in await claim_all(worker):
                transaction = Parcel(worker, (one,)).transaction()
                assert transaction.before_mail is not None
                assert transaction.before_dot is not None
                assert transaction.before_mail()
                assert await transaction.before_dot()
                stamp = await queue.shards[0].command("HGET", "{q0}:w:" + worker.epoch, one.key)
                assert stamp.endswith(b"\nnever") == (one.recipient == "a@x.test"), "the mark is on disk"
                await queue.shards[0].command("HDEL", "{q0}:w:" + worker.epoch, one.key)
                assert await transaction.before_dot() == (one.recipient != "a@x.test")
                worker._until = 0.0
                assert not transaction.before_mail()
                assert not await transaction.before_dot()
                worker._until = asyncio.get_running_loop().time() + 30

    asyncio.run(scenario())
