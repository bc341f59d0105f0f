"""Hosts that take a connection and say nothing: they do not hold up what another attempt would deliver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delivery import opening
from delivery.opening import PATIENCE_SECONDS, Opening, one_more_at
from delivery.reply import Phase
from mailqueue.processes import Process, Waits
from mailqueue.processes import opening as waiting
from tests.delivery_kit import FAST, Rig, player, providers
from tests.queue_kit import eventually, message

PATIENT = FAST["timeouts"] | {"greeting": 300, "ehlo": 300}


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(opening, "PATIENCE_SECONDS", 0.2)
    return player(shared_redis.url, tmp_path, timeouts=PATIENT)


@pytest.mark.parametrize("count", [1, 5])
def test_a_host_that_is_well_again_is_noticed_long_before_the_time_out(play: Callable[..., None], count: int) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gmail.test", "silent")
        for number in range(count):
            await it.queue.put(message(f"u{number}@gmail.test"))
        await eventually(lambda: hanging(it, 3))
        await it.sandbox.set_behaviour("gmail.test", "normal")
        found = await it.until({"delivered": count})
        assert found["deferred"] == 0
        (site,) = it.engine._sites.values()
        await eventually(lambda: hanging(it, 0))  # they waited for longer than whoever got in
        assert site.lines._tries == 0
        await it.queue.put(message("after@gmail.test"))
        await it.until({"delivered": count + 1})

    play(scenario)


def test_a_host_that_stays_silent_is_asked_less_and_less(play: Callable[..., None]) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "silent")
        began = time.monotonic()
        await it.queue.put(message("a@gob.test"))
        await eventually(lambda: hanging(it, 4))
        assert time.monotonic() - began >= 0.2 * (1 + 2 + 4)
        (site,) = it.engine._sites.values()
        at = site.lines.one_more_at()
        it.engine.configure(it.settings.delivery, providers())
        again = site.lines.one_more_at()
        assert at is not None and again is not None and again < at, "a reload begins anew"
        peers = {f"{one.host}[{one.address}]" for one in site.lines.openings}
        await eventually(lambda: told(it))
        first = opening_of(it)[0]
        assert first["peer"] in peers and (first["phase"], first["domains"]) == ("greeting", ["gob.test"])
        asked = [Process("delivery", "h", 1, "1", 0.0, "1", 1, live=it.engine.live())]
        told_ = waiting(asked)[0]
        assert str(told_).startswith(f"for {first['peer']} to greet, ") and told_.again >= 0
        older = {key: value for key, value in first.items() if key != "again"}
        asked = [Process("delivery", "h", 1, "1", 0.0, "1", 1, live={"opening": [older, {"site": "less"}]})]
        assert [one.again for one in waiting(asked)] == [-1], "of another version"

    play(scenario)


TWO_HOSTS = """
domains = [
    { name = "hushed.test", mx = ["10 mx1.hushed.test"], behaviour = "silent" },
    { name = "two.test", mx = ["10 mx1.hushed.test", "20 mx2.two.test"] },
]
"""


def test_the_other_mail_host_is_tried_while_the_first_says_nothing(play: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(it: Rig) -> None:
        await it.queue.put(message("a@two.test"))
        await it.until({"delivered": 1})
        (event,) = await it.events("delivered")
        assert event.remote_mta.startswith("mx2.two.test ")

    path = tmp_path / "two.toml"
    path.write_text(TWO_HOSTS)
    play(scenario, scenario=path)


def test_silent_hosts_leave_room_for_others(play: Callable[..., None]) -> None:
    """A further try only while half of the sessions are free."""

    async def scenario(it: Rig) -> None:
        for name in ("gmail.test", "gob.test"):
            await it.sandbox.set_behaviour(name, "silent")
            await it.queue.put(message(f"a@{name}"))
        await eventually(lambda: hanging(it, 2))
        await eventually(lambda: told(it, 2))  # silent for ten times as long as patience lasts
        await it.queue.put(message("a@yahoo.test"))
        await it.until({"delivered": 1})
        assert await hanging(it, 2) and not await hanging(it, 3)

    play(scenario, max_sessions=3)


def test_a_stop_does_not_wait_for_a_greeting(play: Callable[..., None]) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gmail.test", "silent")
        await it.queue.put(message("a@gmail.test"))
        await eventually(lambda: hanging(it, 1))
        it.engine.stop()
        await asyncio.wait_for(it.work, 5)

    play(scenario)


def test_the_first_that_waited_in_vain_speaks_for_all(play: Callable[..., None]) -> None:
    """Its time-out gives the site up; those begun later end with it and give their slots back."""

    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gmail.test", "silent")
        await it.queue.put(message("a@gmail.test"))
        await eventually(lambda: hanging(it, 2))
        await eventually(lambda: hanging(it, 0))
        await it.sandbox.set_behaviour("gmail.test", "normal")
        await it.until({"delivered": 1})
        await eventually(lambda: idle(it))

    play(scenario, timeouts=PATIENT | {"greeting": 1})


async def idle(it: Rig) -> bool:
    return it.engine._load.sessions == 0


def opening_of(it: Rig) -> list[Any]:
    found = it.engine.live()["opening"]
    assert isinstance(found, list)
    return found


async def told(it: Rig, count: int = 1) -> bool:
    return len(opening_of(it)) >= count


async def hanging(it: Rig, count: int) -> bool:
    found = sum(len(site.lines.openings) for site in it.engine._sites.values())
    return found >= count if count else found == 0


def test_when_one_more_is_worth_a_try() -> None:
    async def scenario() -> None:
        now = asyncio.get_running_loop().time()
        one, two = Opening("127.0.1.1"), Opening("127.0.1.2")
        one.since, two.since = now - 40, now - 10
        one.phase = two.phase = Phase.GREETING
        assert one_more_at([one, two], 0, now) == two.since + PATIENCE_SECONDS
        assert one_more_at([one, two], 2, now) == two.since + 4 * PATIENCE_SECONDS
        assert one.slow(now) and not two.slow(now)
        one.phase = Phase.CONNECT  # the kernel asks again by itself
        assert not one.slow(now)
        assert one_more_at([one, two], 0, now) == now + PATIENCE_SECONDS
        heard: list[str] = []
        one.tries("mx.x.test", "127.0.0.9", lambda who, phase, text: heard.append(f"{who} {phase.value} {text}"))
        assert one.plain(now + 3.2)["phase"] == "connect"
        one("*", Phase.CONNECT, "connected")
        assert one.phase is Phase.GREETING and heard == ["* connect connected"]
        one("C", Phase.EHLO, "EHLO x")
        assert one.plain(one.since + 3.2) == {
            "peer": "mx.x.test[127.0.0.9]", "source": "127.0.1.1", "phase": "ehlo", "seconds": 3,
        }  # fmt: skip

    asyncio.run(scenario())


def test_cancelled_before_it_begins() -> None:
    async def scenario() -> None:
        one = Opening("")
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            one.begins()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        ("connect", "for mx[127.0.0.9] to take the connection, 20 s by now, from 127.0.1.1"),
        ("greeting", "for mx[127.0.0.9] to greet, 20 s by now, from 127.0.1.1"),
        ("ehlo", "for mx[127.0.0.9] to answer ehlo, 20 s by now, from 127.0.1.1"),
    ],
)
def test_a_wait_in_words(phase: str, text: str) -> None:
    assert str(Waits("x", ("x.test",), "mx[127.0.0.9]", "127.0.1.1", phase, 20)) == text
