"""The acceptance runs in small: the same code as ``make accept``, fewer messages. Also that their checks can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import (
    accept_consumer,
    accept_path,
    accept_quota,
    accept_restore,
    accept_signing,
    accept_sources,
    accept_sync,
    opendkim,
)
from benchmarks.accept_sources import SETTINGS, busiest, over_ms
from benchmarks.harness import scratch
from benchmarks.load import Received, Submission
from benchmarks.outcome import Outcome
from benchmarks.strace import calls
from config.durations import Rate
from mailqueue.events import Event
from tests.conftest import lacking
from tests.test_event_schema import assert_valid


def test_every_message_accepted_arrives_once(tool: Callable[[str], Path]) -> None:
    tool("smtp-source"), tool("smtp-sink")
    outcome = accept_path.run(300, 1, alone=True)
    assert not outcome.full
    assert outcome.holds, outcome.checks


def test_every_message_is_signed_and_two_verify(tool: Callable[[str], Path]) -> None:
    tool("smtp-source"), tool("smtp-sink")
    if why := opendkim.hindrance():
        lacking(why)
    outcome = accept_signing.run(200, 1, 20, 0.0, alone=True)
    assert not outcome.full
    assert outcome.holds, outcome.checks
    assert sum("verifies" in check.claim for check in outcome.checks) == 2


def test_limits_hold_over_48_sources_and_two_processes(tool: Callable[[str], Path]) -> None:
    """Limits only: so few messages say nothing of shares."""
    tool("smtp-source")
    outcome = accept_sources.run(1200, ["backlog"])
    limits = [check for check in outcome.checks if "share" not in check.claim]
    assert len(limits) == 6
    assert all(check.holds for check in limits), limits


def test_quotas_add_up_after_a_kill() -> None:
    with scratch("quota") as directory:
        outcome = accept_quota.run(100, 1, 1, directory)
    seen = [check for check in outcome.checks if "empty" not in check.claim]  # so little mail empties nothing
    assert all(check.holds for check in seen if "goes in" not in check.claim), seen


def test_a_bounce_processor_that_is_killed_counts_each_event_once() -> None:
    """And all that a real run says is valid by the schema of the events. The archive is left to the whole run."""
    outcome = Outcome("consumer", full=False)
    with scratch("consumer") as directory, accept_consumer.relay(directory, expire_seconds=3) as world:
        database = str(directory / "bounces.sqlite")
        said = accept_consumer.play(world, database, 150, 3, 1, archive=False)
        events = accept_consumer.judge(outcome, "sqlite", world, said, accept_consumer.table_of(database), 3)
    seen = [check for check in outcome.checks if "amid" not in check.claim and "archive" not in check.claim]
    assert len(seen) == 6
    assert all(check.holds for check in seen), seen
    assert_valid([event.to_json() for event in events], {"received", "deferred", "delivered", "bounced", "expired"})


EVENTS = [
    Event(kind, 1, recipient=recipient, action=action, status=status)
    for kind, recipient, action, status in (
        ("delivered", "a@x.test", "delivered", "2.0.0"),
        ("delivered", "A@x.test", "relayed", "2.0.0"),
        ("late", "a@x.test", "delivered", "2.0.0"),
        ("bounced", "b@x.test", "failed", "5.1.1"),
        ("bounced", "b@x.test", "failed", "5.7.1"),
        ("expired", "b@x.test", "failed", "4.4.7"),
        ("deferred", "b@x.test", "delayed", "4.2.2"),
    )
]
TABLE = {"a@x.test": [3, 0, 0, 0], "b@x.test": [0, 1, 1, 1]}


@pytest.mark.parametrize(
    ("table", "lost", "twice"),
    [
        (TABLE, 0, 0),
        ({**TABLE, "a@x.test": [2, 0, 0, 0]}, 1, 0),
        ({**TABLE, "b@x.test": [0, 2, 1, 1]}, 0, 1),
        ({**TABLE, "b@x.test": [0, 2, 0, 1]}, 1, 1),
        ({**TABLE, "c@x.test": [0, 0, 0, 4]}, 0, 4),
        ({}, 6, 0),
    ],
    ids=["equal", "lost", "twice", "another-counter", "nobody", "empty"],
)
def test_the_consumer_check_sees_what_differs(table: dict[str, list[int]], lost: int, twice: int) -> None:
    assert accept_consumer.difference(table, accept_consumer.expected(EVENTS)) == (lost, twice)


def test_a_restored_copy_sends_nothing_twice() -> None:
    with scratch("restore") as directory:
        outcome = accept_restore.run(120, directory, counter=False)
    assert len(outcome.checks) == 8
    assert outcome.holds, outcome.checks


LOAD = Submission(2, "u@sink.test", octets=10)


def received(number: int, queue_id: str) -> Received:
    return Received((f"{number}u@sink.test",), queue_id, f"<{queue_id}@x>", 500)


@pytest.mark.parametrize(
    ("accepted", "arrived", "holds"),
    [
        (["a", "b"], [received(1, "a"), received(2, "b")], True),
        (["a", "b"], [received(1, "a")], False),
        (["a", "b"], [received(1, "a"), received(2, "b"), received(2, "b")], False),
        (["a", "b"], [received(1, "a"), received(2, "c")], False),
        (["a"], [received(1, "a"), received(2, "b")], False),
    ],
    ids=["equal", "lost", "twice", "another", "not-accepted"],
)
def test_the_path_check_sees_what_differs(accepted: list[str], arrived: list[Received], holds: bool) -> None:
    outcome = Outcome("path")
    accept_path.compare(outcome, LOAD, Counter(accepted), arrived)
    assert outcome.holds is holds


ID = "06gvnjl2bgj7jnmg78lp"
AOF = "9</q/appendonly.aof.1.incr.aof>"
WRITE = f'7     10.000 write({AOF}, "SET {{q0}}:m:{ID}", 20) = 20 <0.001>'
SYNC = f"7     10.002 fdatasync({AOF}) = 0 <0.010>"
SAID = f'12345 10.020 write(16<socket:[1]>, "250 2.0.0 queued as {ID}\\r\\n", 42) = 42 <0.001>'


@pytest.mark.parametrize(
    ("lines", "early"),
    [
        ([WRITE, SYNC, SAID], 0),
        ([WRITE, SAID], 1),
        ([SYNC, SAID], 1),
        ([WRITE, SYNC.replace("10.002", "10.015"), SAID], 1),
        ([WRITE, SYNC.replace("10.002", "9.990"), SAID], 1),
        ([WRITE, SYNC.replace("= 0", "= -1 EIO (Input/output error)"), SAID], 1),
        ([WRITE, SYNC.replace("q/app", "other/app"), SAID], 1),
        (
            [
                WRITE,
                f"7     10.002 fdatasync({AOF} <unfinished ...>",
                SAID.replace("10.020", "10.004"),
                "7     10.012 <... fdatasync resumed>) = 0 <0.010>",
            ],
            1,
        ),
    ],
    ids=["synced", "no-sync", "not-written", "ends-after", "began-before", "failed", "other-file", "under-way"],
)
def test_the_sync_check_sees_a_250_that_is_too_early(lines: list[str], early: int) -> None:
    found = accept_sync.order(calls(iter(lines)))
    assert len(found.said) == 1
    assert len(found.early()) == early


def test_the_busiest_period_of_a_source() -> None:
    times = [("a", 0.0), ("a", 0.5), ("b", 0.6), ("a", 0.999), ("a", 1.0)]
    assert busiest(times, 1.0) == 3  # a period is half-open: 0.0 and 1.0 are not in the same
    assert over_ms(times, Rate(3, 1.0)) == 0
    assert over_ms([*times, ("a", 0.2)], Rate(3, 1.0)) == 200  # four between 0.2 and 1.0
    assert SETTINGS["live"].paces == ("100/s burst 10", "100/min")
