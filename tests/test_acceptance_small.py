"""The acceptance runs in small: the same code as ``make accept``, fewer messages. Also that their checks can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import accept_path, accept_quota, accept_signing, accept_sources, accept_sync, opendkim
from benchmarks.accept_sources import SETTINGS, busiest, over_ms
from benchmarks.harness import scratch
from benchmarks.load import Received, Submission
from benchmarks.outcome import Outcome
from benchmarks.strace import calls
from config.durations import Rate
from tests.conftest import lacking


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
