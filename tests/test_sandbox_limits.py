"""Hidden limits: windows, growth, reputation by tables of what was sent when; and what a host then says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.limits import ASKED_AT_LEAST, LEAST_FACTOR, Account, Limits
from sandbox.server import Sandbox
from tests.test_sandbox_mx import dialogue, with_sandbox


def taken(limits: Limits, times: list[float]) -> list[float]:
    """Of messages that are tried at these times, those that are taken."""
    account = Account()
    found = []
    for now in times:
        if account.excess(limits, now) is None:
            account.took(limits, now)
            found.append(now)
    return found


@pytest.mark.parametrize(
    ("limits", "times", "expected"),
    [
        ({"messages_per_minute": 2}, [0, 1, 2, 59, 60, 61, 62], [0, 1, 60, 61]),
        ({"messages_per_minute": 2}, [50, 80, 100, 109.9, 110], [50, 80, 110]),
        ({"messages_per_hour": 3}, [0, 100, 200, 300, 3600], [0, 100, 200, 3600]),
        ({"messages_per_minute": 2, "messages_per_hour": 3}, [0, 1, 2, 61, 62, 63], [0, 1, 61]),
        ({"messages_per_day": 2}, [0, 1, 2, 86399, 86400], [0, 1, 86400]),
        ({"first_day": 1, "day_seconds": 10}, [0, 1, 10, 11, 12, 20, 21, 22, 23, 24], [0, 10, 11, 20, 21, 22, 23]),
        ({"first_day": 1, "day_seconds": 10, "messages_per_day": 2}, [0, 10, 11, 20, 21, 22], [0, 10, 11, 20, 21]),
        ({"first_day": 2, "growth": 1, "day_seconds": 10}, [0, 1, 2, 10, 11, 12], [0, 1, 10, 11]),
        ({"first_day": 1, "day_seconds": 10}, [0, 50, 51, 52], [0, 50, 51]),  # days without mail do not count
        ({}, [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_windows(limits: dict[str, Any], times: list[float], expected: list[float]) -> None:
    assert taken(Limits(**limits), times) == expected


@pytest.mark.parametrize(
    ("asked", "unknown", "factor"),
    [
        (ASKED_AT_LEAST - 1, ASKED_AT_LEAST - 1, 1.0),
        (100, 5, 1.0),
        (100, 10, 0.5),
        (100, 20, 0.25),
        (100, 100, LEAST_FACTOR),
    ],
)
def test_unknown_recipients_shrink_the_limits(asked: int, unknown: int, factor: float) -> None:
    limits = Limits(messages_per_minute=10, unknown_share=0.05)
    account = Account()
    for number in range(asked):
        account.recipient(number >= unknown)
    assert account.factor(limits) == pytest.approx(factor)
    assert Account(asked=asked, unknown=unknown).factor(Limits(messages_per_minute=10)) == 1.0
    count = 0
    while (excess := account.excess(limits, 0.0)) is None:
        account.took(limits, 0.0)
        count += 1
    assert count == excess.most == max(1, -(-10 * factor // 1))
    assert excess.limit == ("messages_per_minute" if factor == 1 else "reputation")


def test_a_new_day_half_forgives() -> None:
    limits = Limits(messages_per_day=10, unknown_share=0.05, day_seconds=10)
    account = Account(asked=100, unknown=60)
    for now, left in ((0.0, (100, 60)), (5.0, (100, 60)), (10.0, (50, 30)), (20.0, (25, 15))):
        account.took(limits, now)
        assert (account.asked, account.unknown) == left


@given(st.integers(1, 50), st.lists(st.floats(0, 600), max_size=300))
def test_never_more_than_the_limit_in_a_window(most: int, times: list[float]) -> None:
    limits = Limits(messages_per_minute=most)
    found = taken(limits, sorted(times))
    for start, end in zip(found, found[most:], strict=False):
        assert end - start < 600 and end != start
    opened = found[0] if found else 0.0
    count = 0
    for now in found:
        if now - opened >= 60:
            opened, count = now, 0
        count += 1
        assert count <= most


@pytest.mark.parametrize(
    ("limits", "replies"),
    [
        ({"messages_per_minute": 2}, ["250", "250", "450 4.2.1 mx1.gob.test receives mail from 127.0.0.1 too quickly"]),
        ({"messages_per_hour": 1, "replies": {"messages_per_hour": "421 4.7.28 Slow {source}"}}, ["250", "421 4.7.28 Slow 127.0.0.1"]),
        ({"first_day": 1, "day_seconds": 9999}, ["250", "451 4.7.1 Too many messages from 127.0.0.1 today"]),
        ({"messages_per_connection": 1}, ["250", "421 4.7.0 Too many messages"]),
    ],
)  # fmt: skip
def test_what_a_host_says(tmp_path: Path, limits: dict[str, Any], replies: list[str]) -> None:
    """Recorded always; said only where the host refuses."""

    def run(refuse: bool) -> None:
        async def scenario(sandbox: Sandbox) -> None:
            async with dialogue(sandbox, "mx1.gob.test") as client:
                await client.greet()
                said = [await client.send("a@gob.test") for _ in replies]
            for reply, start in zip(said, replies, strict=True):
                assert reply.startswith(start if refuse else "250"), reply
            (which,) = sandbox.ledger.violation_counts
            assert sandbox.ledger.violation_counts[which] == 1
            assert sandbox.ledger.receipts().violations()[0]["limit"] == which

        plan = {"domains": [{"name": "gob.test", "refuse": refuse, **limits}]}
        with_sandbox(tmp_path / str(refuse), scenario, extra=plan)

    run(refuse=True)
    run(refuse=False)


def test_recipients_of_one_message(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            said = await client.say("MAIL FROM:<>", *(f"RCPT TO:<a{n}@gob.test>" for n in range(3)), "DATA")
            assert [reply[:9] for reply in said[1:]] == ["250 2.1.5", "250 2.1.5", "452 4.5.3", "354 End d"]
            assert (await client.say("."))[0].startswith("250")
        assert sandbox.ledger.accepted["gob.test", "127.0.0.1"] == 2

    with_sandbox(
        tmp_path, scenario, extra={"domains": [{"name": "gob.test", "recipients_per_message": 2, "refuse": True}]}
    )


def test_standing_is_told(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test", "127.0.1.9") as client:
            await client.greet()
            await client.send("a@gob.test")
            await client.say("MAIL FROM:<>", *(f"RCPT TO:<unknown+{n}@gob.test>" for n in range(24)))
        (row,) = sandbox.world.standing(0.0)
        assert (row["site"], row["source"], row["days"], row["asked"], row["unknown"]) == (
            "gob.test",
            "127.0.1.9",
            1,
            25,
            24,
        )
        assert row["factor"] == 0.104

    extra = {"domains": [{"name": "gob.test", "messages_per_day": 9, "unknown_share": 0.1, "refuse": True}]}
    with_sandbox(tmp_path, scenario, extra=extra)


def test_shares_are_spread_evenly(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        await sandbox.set_behaviour("gob.test", "defer", share=0.3)
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            said = [(await client.say("MAIL FROM:<>", f"RCPT TO:<{n}@gob.test>", "RSET"))[1][:3] for n in range(20)]
        assert said == (["250"] * 3 + ["451"] + ["250"] * 2 + ["451"] + ["250"] * 2 + ["451"]) * 2
        assert sandbox.world.moods()["gob.test"] == {"": "defer 30%"}
        with pytest.raises(ValueError, match="share"):
            await sandbox.set_behaviour("gob.test", "defer", share=0.0)

    with_sandbox(tmp_path, scenario)
