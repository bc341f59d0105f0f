"""``relayctl top``, ``trace`` and ``send-test`` on a whole relay that runs; what top computes, by tables."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from benchmarks import accept_top
from mailqueue.inspect import FlowFacts, Summary
from mailqueue.paces import Paces
from mailqueue.processes import Process
from mailqueue.stopped import Stop
from relayctl.main import app
from relayctl.overview import Looker, added, progress, sources
from relayctl.spans import span, spelled
from tests.queue_kit import message, opened
from tests.test_up import RELAYCTL, Running, environment, running

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("live") / "var") as up:
        yield up


def environ(up: Running) -> dict[str, str]:
    found = environment(up.directory.parent / "home")
    del found["TAMBO__QUEUE__SHARDS"]
    return found


def call(up: Running, *words: str, stdin: str = "") -> Any:
    return CliRunner().invoke(app, [*words, "--config", str(up.directory / "tambo.toml")], input=stdin)


def send(up: Running, recipient: str, *words: str, password: str = "") -> Any:
    account = up.endpoints["account"]
    given = ("send-test", "--from", account["sender"], "--to", recipient, "--account", account["user"], *words)
    return call(up, *given, stdin=(password or account["password"]) + "\n")


@contextmanager
def tracing(up: Running, *subjects: tuple[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """A ``trace`` for each, once all listen."""
    end = ("--json", "--config", str(up.directory / "tambo.toml"))
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*RELAYCTL, "trace", *subject, *end],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ(up),
                )
            )
            for subject in subjects
        ]  # fmt: skip
        try:
            for process in started:
                assert process.stderr is not None and "listening to 1 processes" in process.stderr.readline()
            yield started
        finally:
            for process in started:
                process.kill()


def until(process: subprocess.Popen[str], text: str) -> list[dict[str, Any]]:
    assert process.stdout is not None
    heard = []
    for line in process.stdout:
        heard.append(orjson.loads(line))
        if text in heard[-1]["text"]:
            return heard
    raise AssertionError(f"{text!r} was never heard")


def heard(lines: list[dict[str, Any]]) -> str:
    return "\n".join(f"{line['who']} {line['text']}" for line in lines)


def test_a_test_message_is_followed_and_both_ends_are_heard(house: Running) -> None:
    account = house.endpoints["account"]
    subjects = (("--account", account["user"]), ("--domain", "outlook.test"))
    with tracing(house, *subjects) as (submission, delivery):
        ran = send(house, "persona@outlook.test", "--json")
        assert ran.exit_code == 0, ran.output
        said = orjson.loads(ran.stdout)
        assert said["delivered"] and [step["what"] for step in said["steps"]] == ["accepted", "received", "delivered"]
        text = heard(until(submission, "queued as"))
        assert "C AUTH PLAIN ******\nS 235" in text and "C MAIL FROM:<notices@gob.test>" in text
        assert account["password"] not in text
        text = heard(until(delivery, "250 2.0.0 Ok"))
        assert "C RCPT TO:<persona@outlook.test>" in text and "octets of content)" in text
        assert "There is nothing to do" not in text


def test_a_test_message_that_does_not_arrive(house: Running) -> None:
    ran = send(house, "persona@gmail.test", password="not the password")
    assert ran.exit_code == 1 and "refused" in ran.stdout and "535" in ran.stdout
    ran = send(house, "nobody@dead.test", "--via", "queue", "--for", "2s", "--json")
    said = orjson.loads(ran.stdout)
    assert ran.exit_code == 1 and said["steps"][0]["text"].startswith("queued as ")
    assert "not delivered within 2 s; the last event is deferred" in said["steps"][-1]["text"]
    assert send(house, "a@gmail.test", "--via", "pigeon").exit_code == 2
    assert send(house, "a@gmail.test\r\nBcc: b@gmail.test").exit_code == 2
    assert call(house, "send-test", "--from", "a@b.test", "--to", "c@d.test", "--via", "queue").exit_code == 2
    assert (
        "did you mean demo"
        in call(house, "send-test", "--from", "a@b.test", "--to", "c@d.test", "--account", "dmo").stderr
    )


def test_a_test_message_beyond_ascii(house: Running) -> None:
    """Offered by relayd, not by every mail host: whatever comes of it, it is followed to its end."""
    for way in ("smtp", "queue"):
        said = orjson.loads(send(house, "josé@gmail.test", "--via", way, "--json").stdout)
        assert [step["what"] for step in said["steps"]][:2] == ["accepted", "received"]
        assert said["delivered"] or said["steps"][-1]["failed"]


def test_top_of_a_relay_that_runs(house: Running) -> None:
    send(house, "persona@gmail.test", "--via", "queue")
    send(house, "nobody@dead.test", "--via", "queue", "--for", "1s")
    ran = call(house, "top", "--once", "--json")
    seen = orjson.loads(ran.stdout)
    assert {one["role"] for one in seen["processes"]} >= {"relayd", "delivery", "maintenance"}
    assert seen["backlog"]["open"] == sum(flow["open"] for flow in seen["flows"]) >= 1
    assert seen["queued_by_account"] == {"demo": seen["backlog"]["open"]} and seen["queued_by_class"]["bulk"] >= 1
    assert len(seen["sources"]) == 48 and seen["workers"] and seen["intake"] is None
    assert {"accepted", "delivered", "deferred"} >= set(seen["rates"]) - {"bounced"}
    assert seen["marks"]["memory_used"] > 0 and seen["alarms"] == []
    text = call(house, "top", "--once").stdout
    for words in ("accepted/s", "backlog", "delivery@", "127.0.1.", "demo", "memory "):
        assert words in text


def test_a_look_costs_little_and_the_check_can_fail() -> None:
    outcome = accept_top.run(20_000)
    assert not outcome.full and outcome.holds, outcome.checks


# ── what is computed ───────────────────────────────────────────────────────────────────────────────────────────────


def test_paces() -> None:
    clock = [1000.0]
    paces = Paces(lambda: clock[0])
    for second in range(600):
        clock[0] += 1
        paces.add("delivered", 10 if second < 590 else 50)
        rates = paces.rates()
    assert rates["delivered"] == (50.0, pytest.approx((290 * 10 + 10 * 50) / 300, abs=0.2))
    clock[0] += 400
    assert paces.rates()["delivered"] == (0.0, 0.0)
    for number in range(2000):
        paces.add(("source", str(number)))
    assert len(paces.rates()) == 1000


@pytest.mark.parametrize(
    ("open_", "rate", "eta"),
    [(100, 10.0, 1010.0), (0, 0.0, 1000.0), (5, 0.0, None), (1_000_000, 83.3, 1000 + 1e6 / 83.3)],
)
def test_when_it_will_be_done(open_: int, rate: float, eta: float | None) -> None:
    found = progress(open_, 3, 900.0, rate, 1000.0)
    assert found.elapsed == 100.0 and (found.eta is None if eta is None else found.eta == pytest.approx(eta))


def process(**live: Any) -> Process:
    return Process("delivery", "h", 1, "1", 0.0, "1", 1, live=live)


def test_processes_are_added_up() -> None:
    there = [
        process(rates={"delivered": [1.0, 2.0]}, sources={"192.0.2.1": [2, 1, 0.5], "192.0.2.2": [0, 0, 0.0]}),
        process(rates={"delivered": [3.0, 4.0], "deferred": [1.0, 0.0]}, sources={"192.0.2.1": [1, 3, 0.25]}),
        process(),
    ]
    rates = added(one.live.get("rates", {}) for one in there)
    assert rates == {"delivered": (4.0, 6.0), "deferred": (1.0, 0.0)}
    stops = [Stop.read("source:192.0.2.9", b"0 under repair"), Stop.read("account:x", b"0 y")]
    found = sources(there, stops)
    assert [(one.address, one.sessions, one.resting, one.rate, one.suspended) for one in found] == [
        ("192.0.2.9", 0, 0, 0.0, "under repair"),
        ("192.0.2.1", 3, 3, 0.75, ""),
        ("192.0.2.2", 0, 0, 0.0, ""),
    ]


def test_a_campaign_s_rate_is_what_it_did_since_the_look_before(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message(*(f"p{number}@x.test" for number in range(40)), campaign="enero"))
            seen = await Looker(queue).look()
            assert (seen.backlog.open, seen.backlog.eta, len(seen.flows)) == (40, None, 1)

            looker = Looker(queue)
            flow = FlowFacts(0, "1.1", "bulk", "a", "enero", "default", 900, 100, 1_000_000)
            facts = Summary((flow,), 1, 0, 0, 0, {}, {}, 0, {}, 0)
            first = looker.put_together(1100.0, facts, [], [], (), None).flows[0][1]
            assert (first.rate, first.eta) == (1.0, 2000.0)  # 100 in 100 s
            later = replace(facts, flows=(replace(flow, open=800, done=200),))
            second = looker.put_together(1105.0, later, [], [], (), None).flows[0][1]
            assert (second.rate, second.eta) == (20.0, 1145.0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (62, "1 min 2 s"), (3600, "1 h"), (90_061, "1 d 1 h")]
)
def test_how_long(seconds: float, text: str) -> None:
    assert spelled(seconds) == text
    assert span("1h30m") == 5400.0
