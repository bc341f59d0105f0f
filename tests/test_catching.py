"""Several stretches of a stream read at once are the same entries as one after the other, however they lie in time."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintenance.catching import STRETCHES, read, stretches
from streams import ids
from tests.queue_kit import opened


@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 10**4), st.integers(0, 9), st.floats(0.001, 10**5))
def test_stretches_leave_no_id_out(at: int, number: int, ahead: int, last_number: int, length: float) -> None:
    after, last = (at, number), (at + ahead, last_number)
    found = stretches(after, last, length)
    assert 1 <= len(found) <= STRETCHES
    assert found[0][0] == f"({ids.text(after)}"
    for (_, end), (begin, _) in itertools.pairwise(found):
        assert ids.parse(begin) == ids.following(ids.parse(end))
    assert ids.parse(found[-1][1]) <= max(last, (at + STRETCHES * int(length + 1), ids.LAST_NUMBER))
    assert all(ids.parse(end) <= last for _, end in found)


@pytest.mark.parametrize("pace", [0.0, 0.01, 1.0, 50.0, 10_000.0])
@pytest.mark.parametrize("shape", ["even", "bursts", "one moment"])
def test_all_is_read_once_and_in_order(shared_redis: Any, shape: str, pace: float) -> None:
    async def scenario() -> None:
        dice = random.Random(f"{shape}{pace}")
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            at, places = 1000, []
            for number in range(900):
                at += {"even": 3, "bursts": dice.choice((0, 0, 0, 1, 900)), "one moment": 0}[shape]
                places.append(f"{at}-{number}")
            for place in places[:800]:
                await shard.command("XADD", shard.events, place, "e", b"{}")
            found: list[str] = []
            after, more, sent = "0-0", True, 800
            while more or sent < 900:
                if sent < 900:  # it goes on meanwhile
                    await shard.command("XADD", shard.events, places[sent], "e", b"{}")
                    sent += 1
                rows, more = await read(shard, after, dice.choice((7, 40, 200)), pace if more else 0.0)
                found += [place for place, _ in rows]
                after = found[-1] if found else after
            assert found == places

    asyncio.run(scenario())
