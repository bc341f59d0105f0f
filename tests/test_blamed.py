"""A reply that blames our address: it rests at that site and insists on nothing, the others carry its mail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from mailqueue.events import SOURCES_REST, Event
from tests.delivery_kit import Rig, player
from tests.queue_kit import eventually, message

REFUSED, OTHERS = "127.0.1.1", ("127.0.1.2", "127.0.1.3")
POOL = [{"name": "default", "sources": [{"address": f"{REFUSED}-{OTHERS[-1]}"}]}]


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path) -> Callable[..., None]:
    return player(shared_redis.url, tmp_path)


async def put(it: Rig, count: int) -> None:
    for number in range(count):
        await it.queue.put(message(f"u{number}@gmail.test"))


async def sites_end(it: Rig) -> bool:
    return not it.engine._sites


@pytest.mark.parametrize(
    "behaviour",
    [
        "reputation-google",  # 550 at the end of data, the session stays open
        "rate-google",  # 421: it ends
        "rate-microsoft",  # 451 at MAIL, it stays open
        "rate-yahoo",  # 421 at MAIL
        "rp-microsoft",  # 421 at the greeting
    ],
)
def test_a_blamed_source_rests_and_the_others_go_on(play: Any, behaviour: str) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gmail.test", behaviour, (REFUSED,))
        await put(it, 120)
        counts = await it.until({"delivered": 120})
        deferred = [event.source for event in await it.events("deferred")]
        assert set(deferred) <= {REFUSED}
        assert len(deferred) <= 6, "one for each of its sessions, eighteen being worth having from three sources"
        assert set(it.sandbox.ledger.receipts().by_source()) == set(OTHERS)
        assert not counts["bounced"]
        await eventually(lambda: sites_end(it))
        assert it.engine.live()["rests"] == {"google": {REFUSED: ANY}}
        await put(it, 10)
        await it.until({"delivered": 130})
        assert len(await it.events("deferred")) == len(deferred), "it rests though its site had ended meanwhile"

    play(scenario, pools=POOL)


def test_where_all_rest_the_destination_waits_and_says_why(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gmail.test", "reputation-google")
        await put(it, 40)
        await eventually(lambda: told(it))  # it is settled just after the suspension
        counts = await it.until({"suspended": 1})
        (suspended, *_) = await it.events("suspended")
        assert suspended.destination == "gmail.test"
        assert suspended.reason.startswith("every source of the pool rests here for now; it said: 550 5.7.1 [127.0.1.")
        (first, *_) = await untried(it)
        assert first.diagnostic_code == f"x-tambo; {suspended.reason}"
        assert counts["deferred"] <= 13, "one for each session there was, and the one that says why"
        assert not counts["bounced"] and not it.sandbox.ledger.receipts().by_source()

    play(scenario, pools=POOL)


async def told(it: Rig) -> bool:
    return bool(await untried(it))


async def untried(it: Rig) -> list[Event]:
    return [event for event in await it.events("deferred") if event.reason == SOURCES_REST]


def test_a_refusal_of_a_recipient_rests_nobody(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gmail.test", "storm")
        await put(it, 60)
        await it.until({"delivered": 60})
        assert await it.events("deferred")
        assert len(it.sandbox.ledger.receipts().by_source()) == 3

    play(scenario, pools=POOL)
