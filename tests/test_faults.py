"""The kill rounds and the faults of ``make accept`` in small: the same code, fewer messages. Also that checks can fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks import accept_kills, faults_clock, faults_workers
from benchmarks.books import Books
from benchmarks.harness import scratch
from benchmarks.outcome import Outcome
from tests.conftest import lacking
from tests.queue_kit import opened, working


def holds(outcome: Outcome) -> None:
    assert outcome.checks
    assert outcome.holds, [check for check in outcome.checks if not check.holds]


def test_three_kills(capsys: pytest.CaptureFixture[str]) -> None:
    """Each process once."""
    with scratch("kills") as directory:
        outcome = accept_kills.run(250, 3, 5, directory)
    assert not outcome.full
    assert {one["victim"] for one in outcome.figures["rounds"]} == set(accept_kills.VICTIMS)
    holds(outcome)


def test_a_worker_stopped_past_its_lease() -> None:
    outcome = Outcome("stopped", full=False)
    with scratch("stop") as directory:
        faults_workers.stopped(outcome, directory, 200)
    holds(outcome)


def test_the_clock_steps_forward() -> None:
    if faults_clock.library() is None:
        lacking("no libfaketime here (make tools)")
    outcome = Outcome("forward", full=False)
    with scratch("forward") as directory:
        faults_clock.step(outcome, directory, "forward", 3600, 200)
    holds(outcome)


def test_a_lost_lease_is_replaced_once(shared_redis: Any) -> None:
    """Whoever notices first, heartbeat or claim: the second must not throw the new lease away."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            lost: list[str] = []
            worker._on_lost = lost.append
            before = worker.epoch
            await asyncio.gather(worker._lose(before), worker._lose(before))
            assert lost == [before]
            assert int(worker.epoch) == int(before) + 1

    asyncio.run(scenario())


def test_who_waits_looks_again_when_the_clock_stepped(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            worker._watch_clock(1000.0)
            worker._rung.clear()
            worker._watch_clock(1001.0)  # a slow answer
            assert not worker._rung.is_set()
            worker._watch_clock(4601.0)
            await asyncio.wait_for(worker.rung(None), 1)

    asyncio.run(scenario())


ONE, TWO = ("<1@x>", "a@y.test"), ("<2@x>", "b@y.test")


def books(receipts: dict[tuple[str, str], list[float]], fates: dict[tuple[str, str], list[str]]) -> Books:
    settled = {ONE: 5.0, TWO: 15.0}
    return Books({ONE: "carga", TWO: "nunca"}, receipts, settled, fates, [], [])


def test_books_in_order() -> None:
    kept = books({ONE: [4.0], TWO: [9.0]}, {ONE: ["delivered"], TWO: ["delivered"]})
    assert not (kept.lost or kept.twice or kept.unaccounted)
    assert kept.open_at(10.0) == {TWO}
    assert kept.open_at(3.0, until=6.0) == {ONE}


def test_books_see_what_is_wrong() -> None:
    kept = books({ONE: [4.0, 6.0]}, {ONE: ["delivered", "delivered"]})
    assert kept.lost == kept.unaccounted - {ONE} == {TWO}
    assert kept.twice == {ONE}
    assert kept.unaccounted == {ONE, TWO}


def test_who_ended_as_unknown_is_not_lost() -> None:
    kept = books({ONE: [4.0]}, {ONE: ["delivered"], TWO: ["unknown"]})
    assert kept.unknown == {TWO}
    assert not kept.lost
