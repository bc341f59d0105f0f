"""``relayctl queue …`` and ``relayctl events tail`` as an operator runs them, on a real queue."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer import Abort
from typer.testing import CliRunner

from mailqueue.message import Message, State
from mailqueue.reaper import Reaper
from mailqueue.withdrawal import Hand
from mailqueue.worker import Settlement, Worker
from relayctl.main import app
from tests.queue_kit import claim_all, events, eventually, message, now_ms, opened, working
from tests.test_packaging import REPOSITORY
from tests.test_up import RELAYCTL

Relayctl = Callable[..., Any]


@pytest.fixture
def relayctl(shared_redis: Any, tmp_path: Path) -> Relayctl:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{shared_redis.url}"\n')
    return lambda *words: CliRunner().invoke(app, [*words, "--config", str(path)])


def put(url: str, *messages: Message) -> None:
    async def scenario() -> None:
        async with opened(url) as queue:
            for each in messages:
                assert (await queue.put(each)).kind == "queued"

    asyncio.run(scenario())


def claimable(url: str) -> list[str]:
    async def scenario() -> list[str]:
        async with opened(url) as queue, working(queue) as worker:
            return sorted(item.recipient for item in await claim_all(worker, recipients=100))

    return asyncio.run(scenario())


def test_summary_and_show(shared_redis: Any, relayctl: Relayctl) -> None:
    first = message("a@x.test", "b@y.test", campaign="enero", metadata={"lote": "7"})
    put(shared_redis.url, first, message("c@x.test", class_="transactional"))
    facts = orjson.loads(relayctl("queue", "summary", "--json").stdout)
    assert (facts["open"], facts["messages"], facts["held"]) == (3, 2, 0)
    assert {(flow["class"], flow["campaign"], flow["open"]) for flow in facts["flows"]} == {
        ("bulk", "enero", 2),
        ("transactional", "", 1),
    }
    table = relayctl("queue", "summary")
    assert table.exit_code == 0 and "recipients open 3" in table.stdout and "enero" in table.stdout

    shown = orjson.loads(relayctl("queue", "show", first.envelope.id, "--json").stdout)
    assert shown["envelope"]["class"] == "bulk" and shown["envelope"]["metadata"] == {"lote": "7"}
    assert [(item["recipient"], item["place"]) for item in shown["items"]] == [
        ("a@x.test", "queued"),
        ("b@y.test", "queued"),
    ]
    table = relayctl("queue", "show", first.envelope.id)
    assert table.exit_code == 0 and "b@y.test" in table.stdout and "enero" in table.stdout


def test_hold_and_release(shared_redis: Any, relayctl: Relayctl) -> None:
    one, two = message("a@x.test", "b@y.test"), message("c@x.test")
    put(shared_redis.url, one, two)
    held = relayctl("queue", "hold", one.envelope.id, "--reason", "wrong  amount")
    assert (held.exit_code, held.stdout) == (0, "held 2 of 2 recipients\n"), held.output
    assert claimable(shared_redis.url) == ["c@x.test"]
    again = relayctl("queue", "hold", one.envelope.id, "--reason", "again")
    assert again.exit_code == 1 and "left as they are: 2 held" in again.stdout
    released = relayctl("queue", "release", one.envelope.id, "--reason", "right after all")
    assert released.stdout == "released 2 of 2 recipients\n"
    assert claimable(shared_redis.url) == ["a@x.test", "b@y.test", "c@x.test"]
    lines = relayctl("events", "tail", "--from", "0", "--end", "--json").stdout.splitlines()
    events = [(event["kind"], event.get("reason")) for event in map(orjson.loads, lines)]
    assert events.count(("held", "wrong amount")) == 2 and events.count(("released", "right after all")) == 2


def stream(relayctl: Relayctl, *kinds: str) -> list[dict[str, Any]]:
    lines = relayctl("events", "tail", "--from", "0", "--end", "--json").stdout.splitlines()
    return [event for event in map(orjson.loads, lines) if event["kind"] in kinds]


def settled(url: str, kind: Any, reply: str = "", *, leave: str = "") -> Worker:
    """Everything due is claimed once and comes to this; who is left to ``leave`` stays in the hand of a worker that is
    gone without a word."""

    async def scenario() -> Worker:
        async with opened(url) as queue:
            worker = queue.workers()[0]
            await worker.start(lambda epoch: None)
            for item in await claim_all(worker, recipients=100):
                if item.recipient != leave:
                    state, due = (State(1, 0, reply, "192.0.2.1", now_ms()), now_ms() + 600_000)
                    await worker.settle(Settlement(item, kind, None, due, state))
            for task in worker._tasks:
                task.cancel()
            await asyncio.gather(*worker._tasks, return_exceptions=True)
            return worker

    return asyncio.run(scenario())


def test_one_selector_and_what_it_is_done_to(shared_redis: Any, relayctl: Relayctl) -> None:
    messages = [message(f"{n}@x.test", f"{n}@y.test", account="one", campaign="enero") for n in range(30)]
    put(shared_redis.url, *messages, message("a@x.test", account="two", class_="transactional"))
    rehearsed = relayctl("queue", "hold", "--campaign", "one/enero", "--reason", "x", "--dry-run")
    assert "would be held: 60 recipients" in rehearsed.stdout and rehearsed.stdout.count("@") == 10, "a sample"
    assert stream(relayctl, "held", "audit") == [], "a rehearsal leaves no trace"
    held = orjson.loads(
        relayctl("queue", "hold", "--account", "one", "--destination", "x.test", "--reason", "wrong", "--json").stdout
    )
    assert (held["selected"], held["done"], held["left"]) == (30, 30, {})
    begun, ended = stream(relayctl, "audit")
    assert (begun["verb"], begun["subject"], begun["count"]) == ("queue hold", "destination:x.test account:one", 30)
    assert ended["before"] == {"selected": 30} and ended["after"] == {"held": 30} and ended["reason"] == "wrong"
    assert {(event["reason"], event["actor"]) for event in stream(relayctl, "held")} == {("wrong", begun["actor"])}
    again = relayctl("queue", "hold", "--account", "one", "--destination", "x.test", "--reason", "wrong")
    assert again.exit_code == 1 and stream(relayctl, "audit")[-1]["after"] == {"held": 0, "left": {"held": 30}}
    assert claimable(shared_redis.url) == sorted([*(f"{n}@y.test" for n in range(30)), "a@x.test"])

    by_age = sorted(messages, key=lambda one: one.envelope.id)
    listed = orjson.loads(relayctl("queue", "list", "--state", "held", "--limit", "20", "--json").stdout)
    assert [row["recipient"] for row in listed["recipients"]] == [one.envelope.recipients[0] for one in by_age[:20]]
    following = relayctl("queue", "list", "--state", "held", "--after", listed["after"])
    assert following.stdout.count("@x.test") == 10 and "wrong" in following.stdout
    everything = relayctl("queue", "release", "--reason", "right", "--all")
    assert everything.stdout == "released 30 of 61 recipients\n  left as they are: 31 queued\n"
    assert relayctl("queue", "list", "--account", "nobody").exit_code == 1


def test_retry(shared_redis: Any, relayctl: Relayctl) -> None:
    put(shared_redis.url, message("a@x.test"), message("b@y.test"), message("c@z.test", class_="transactional"))
    settled(shared_redis.url, "again", "451 4.7.1 greylisted")
    put(shared_redis.url, message("d@x.test"))
    (row,) = orjson.loads(relayctl("queue", "list", "--destination", "y.test", "--json").stdout)["recipients"]
    assert (row["state"], row["attempts"], row["last_reply"]) == ("deferred", 1, "451 4.7.1 greylisted")
    assert claimable(shared_redis.url) == ["d@x.test"]
    assert relayctl("queue", "suspend", "destination:y.test", "--reason", "called").exit_code == 0
    tried = relayctl("queue", "retry", "--class", "bulk", "--reason", "they are back")
    assert tried.stdout.splitlines() == [
        "made due 2 of 3 recipients",
        "  left as they are: 1 due already",
        "  1 of them still wait: suspended destination:y.test; `relayctl queue resume` ends that",
    ]
    assert claimable(shared_redis.url) == ["a@x.test", "d@x.test"], "c was not selected, b is suspended"


def test_bounce_and_remove(shared_redis: Any, relayctl: Relayctl) -> None:
    put(shared_redis.url, message("a@x.test", "b@x.test"), message("c@y.test"), message("d@y.test", dsn="stream"))
    bounced = relayctl("queue", "bounce", "--destination", "x.test", "--reason", "closed down")
    assert bounced.stdout == "bounced 2 of 2 recipients\n"
    removed = relayctl("queue", "remove", "--recipient", "C@y.test", "--reason", "sent twice")
    assert removed.stdout == "removed 1 of 1 recipients\n"
    relayctl("queue", "bounce", "--destination", "y.test", "--reason", "closed down")
    events = stream(relayctl, "bounced", "removed")
    assert [(event["recipient"], event["kind"], event.get("status")) for event in events] == [
        ("a@x.test", "bounced", "5.3.0"),
        ("b@x.test", "bounced", "5.3.0"),
        ("c@y.test", "removed", None),
        ("d@y.test", "bounced", "5.3.0"),
    ]
    assert events[0]["diagnostic_code"] == "x-tambo; given up by the operator: closed down"
    assert events[0]["action"] == "failed" and "action" not in events[2]

    async def notices() -> list[tuple[str, int]]:
        async with opened(shared_redis.url) as queue:
            found = await Reaper(queue.shards[0], lambda *_: b"").notices()
            return [(one.message.envelope.recipients[0], len(one.records)) for one in found if one.message]

    assert asyncio.run(notices()) == [("a@x.test", 2)], "no DSN of what was removed, nor where events say it"


def test_refund(shared_redis: Any, relayctl: Relayctl) -> None:
    words = ("--networks", "10.1.0.0/24", "--senders", "*", "--quota", "bag")
    assert relayctl("account", "add", "one", *words).exit_code == 0
    assert relayctl("account", "credit", "one", "10", "--reason", "invoice").exit_code == 0
    paid = message("a@x.test", "b@x.test", "c@y.test", account="one", pays=True)
    put(shared_redis.url, paid)

    def left() -> int:
        statement = relayctl("account", "statement", "one", "--json").stdout
        return int(orjson.loads(statement)["closing"])

    assert left() == 7
    relayctl("queue", "remove", "--recipient", "a@x.test", "--reason", "sent twice")
    assert left() == 7, "what was taken stays taken"
    relayctl("queue", "remove", "--destination", "x.test", "--reason", "sent twice", "--refund")
    assert left() == 8 and stream(relayctl, "removed")[-1]["refunded"] == 1
    assert relayctl("quota", "reconcile").exit_code == 0


def test_what_a_worker_has_is_said(shared_redis: Any, relayctl: Relayctl) -> None:
    put(shared_redis.url, message("a@x.test"), message("b@x.test"))
    settled(shared_redis.url, "back", leave="b@x.test")
    listed = orjson.loads(relayctl("queue", "list", "--json").stdout)["recipients"]
    assert {row["recipient"]: row["state"] for row in listed} == {"a@x.test": "queued", "b@x.test": "leased"}
    removed = relayctl("queue", "remove", "--destination", "x.test", "--reason", "wrong")
    assert removed.exit_code == 0
    assert removed.stdout == "removed 1 of 2 recipients\n  left as they are: 1 in a worker's hands\n"
    again = relayctl("queue", "remove", "--destination", "x.test", "--reason", "wrong")
    assert again.exit_code == 1 and again.stdout.startswith("removed 0 of 1")


@pytest.mark.parametrize("verb", ["remove", "hold"])
def test_what_a_worker_has_is_waited_for(shared_redis: Any, relayctl: Relayctl, verb: str) -> None:
    put(shared_redis.url, message("a@x.test"), message("b@x.test"))

    async def scenario() -> Any:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            one, two = await claim_all(worker)
            await worker.settle(Settlement(two, "back"))
            words = ("queue", verb, "--destination", "x.test", "--reason", "wrong", "--wait", "1m")
            ran = asyncio.create_task(asyncio.to_thread(relayctl, *words))

            async def begun() -> bool:
                done = await events(queue)
                return any(event.kind in ("removed", "held") for event in done)

            await eventually(begun)
            await worker.settle(Settlement(one, "again", None, now_ms() + 600_000, State(1)))
            return await ran

    ran = asyncio.run(scenario())
    assert ran.exit_code == 0 and " 2 of 2 recipients\n" in ran.stdout and "left" not in ran.stdout, ran.output


def test_what_comes_back_between_two_places_is_met_by_a_second_look(
    shared_redis: Any, relayctl: Relayctl, monkeypatch: Any
) -> None:
    """It was in a worker's hands when the queues were gone through, and in a queue when the hands were."""
    put(shared_redis.url, message("a@x.test"), message("b@x.test"))
    apply, met, back = Hand.apply, threading.Event(), threading.Event()

    async def slowly(hand: Hand, rows: Any) -> None:
        await apply(hand, rows)
        if rows:
            met.set()
            await asyncio.to_thread(back.wait, 10)

    async def scenario() -> Any:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            one, two = await claim_all(worker)
            await worker.settle(Settlement(two, "back"))
            words = ("queue", "remove", "--destination", "x.test", "--reason", "wrong", "--wait", "1m")
            ran = asyncio.create_task(asyncio.to_thread(relayctl, *words))
            await asyncio.to_thread(met.wait, 10)
            await worker.settle(Settlement(one, "again", None, now_ms() + 600_000, State(1)))
            back.set()
            return await ran

    monkeypatch.setattr(Hand, "apply", slowly)
    ran = asyncio.run(scenario())
    assert ran.exit_code == 0 and " 2 of 2 recipients\n" in ran.stdout and "left" not in ran.stdout, ran.output


def test_a_server_that_goes_away_is_said(make_redis_server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    server = make_redis_server()
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{server.url}"\n')
    put(server.url, *(message(f"{n}@d{n}.test") for n in range(700)))
    apply, pages = Hand.apply, []

    async def interrupted(hand: Hand, rows: Any) -> None:
        if pages:
            server.kill()
        pages.append(len(rows))
        await apply(hand, rows)

    monkeypatch.setattr(Hand, "apply", interrupted)
    words = ["queue", "hold", "--all", "--reason", "stop", "--config", str(path)]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 1 and ran.stdout == f"held {pages[0]} of 700 recipients\n" and ran.stderr
    server.start()
    monkeypatch.setattr(Hand, "apply", apply)
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert orjson.loads(CliRunner().invoke(app, ["queue", "summary", "--json", *words[-2:]]).stdout)["held"] == 700


def test_more_than_a_thousand_are_asked_about(shared_redis: Any, relayctl: Relayctl, monkeypatch: Any) -> None:
    put(shared_redis.url, message(*(f"{n}@x.test" for n in range(1001))))
    asked: list[str] = []

    def confirm(text: str, **_: Any) -> None:
        asked.append(text)
        raise Abort

    monkeypatch.setattr("relayctl.queue_verbs.typer.confirm", confirm)
    monkeypatch.setattr("relayctl.queue_verbs._at_a_terminal", lambda: True)
    assert relayctl("queue", "hold", "--all", "--reason", "x").exit_code == 1
    assert asked == ["hold 1,001 recipients?"] and stream(relayctl, "held", "audit") == []
    assert relayctl("queue", "hold", "--all", "--reason", "x", "--yes").exit_code == 0
    monkeypatch.setattr("relayctl.queue_verbs._at_a_terminal", lambda: False)
    assert relayctl("queue", "release", "--all", "--reason", "x").stdout == "released 1,001 of 1,001 recipients\n"
    assert len(asked) == 1


def command(url: str, tmp_path: Path, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
    path = tmp_path / "own.toml"
    path.write_text(f'[queue]\nurl = "{url}"\n')
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    return subprocess.Popen([*RELAYCTL, *words, "--config", str(path)], cwd=REPOSITORY, **pipes)


def test_ctrl_c_is_an_answer(shared_redis: Any, tmp_path: Path) -> None:
    put(shared_redis.url, message(*(f"{n}@x.test" for n in range(1001))))
    controller, terminal = os.openpty()
    try:
        with command(shared_redis.url, tmp_path, "queue", "remove", "--all", "--reason", "x", stdin=terminal) as asking:
            assert asking.stderr is not None
            said = b""
            while b"remove 1,001 recipients?" not in said and (more := os.read(asking.stderr.fileno(), 4096)):
                said += more
            asking.send_signal(signal.SIGINT)
            try:
                assert asking.wait(20) == 1
            finally:
                asking.kill()
    finally:
        os.close(controller)
        os.close(terminal)
    assert len(claimable(shared_redis.url)) == 1001


def test_who_reads_no_further_is_no_error(shared_redis: Any, tmp_path: Path) -> None:
    with command(shared_redis.url, tmp_path, "top", "--json", "--every", "0.5") as top:
        assert top.stdout is not None and top.stderr is not None
        assert top.stdout.readline().startswith(b"{")
        top.stdout.close()
        try:
            assert top.wait(20) == 0 and b"Error" not in top.stderr.read()
        finally:
            top.kill()


def test_suspend_and_resume(shared_redis: Any, relayctl: Relayctl) -> None:
    put(shared_redis.url, message("a@x.test", account="one"), message("b@x.test", account="two", campaign="c"))
    assert relayctl("queue", "suspend", "account:one", "--for", "1h", "--reason", "called us").exit_code == 0
    assert relayctl("queue", "suspend", "campaign:two/c", "--reason", "wrong letter").exit_code == 0
    stops = orjson.loads(relayctl("queue", "summary", "--json").stdout)["stops"]
    assert set(stops) == {"account:one", "campaign:two/c"} and stops["campaign:two/c"] == "0 wrong letter"
    assert "called us" in relayctl("queue", "summary").stdout
    assert claimable(shared_redis.url) == []
    for key in ("account:one", "campaign:two/c"):
        assert relayctl("queue", "resume", key, "--reason", "settled").stdout == f"resumed {key}\n"
    assert relayctl("queue", "resume", "account:one", "--reason", "settled").exit_code == 1
    assert relayctl("queue", "suspend", "destination:X.test", "--reason", "they asked").exit_code == 0
    assert claimable(shared_redis.url) == []
    (one,) = orjson.loads(relayctl("queue", "summary", "--json").stdout)["suspended_destinations"]
    assert one == {"key": "destination:x.test", "until": 0, "reason": "they asked", "by_relay": False}
    assert "operator" in relayctl("queue", "summary").stdout
    assert relayctl("queue", "resume", "destination:x.TEST.", "--reason", "settled").exit_code == 0
    assert claimable(shared_redis.url) == ["a@x.test", "b@x.test"]
    tail = relayctl("events", "tail", "--from", "0", "--end").stdout
    assert "suspended" in tail and "account:one" in tail and "settled" in tail
    ran = relayctl("queue", "suspend", "campaign:one/nowhere", "--for", "5m", "--reason", "typed wrong")
    assert ran.exit_code == 0 and "no mail of one/nowhere is in the queue now" in ran.stderr
    tail = relayctl("events", "tail", "--from", "0", "--end", "--kind", "audit").stdout
    assert '"until":"resumed"' in tail and re.search(r'"until":"\d{4}-\d\d-\d\d \d\d:', tail)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("gmail.com", "destination:<domain>"),
        ("lane:b", "provider:<name>"),
        ("flow:x", "flow:<id>"),
        ("campaign:enero", "campaign:<account>/<name>"),
        ("source:mx1", "source:<address>"),
        ("destination:", "destination:<domain>"),
        ("provider:gogle", "did you mean google"),
        ("provider:gob.pe", "a domain is destination:gob.pe; providers are default, "),
    ],
)
def test_wrong_keys(relayctl: Relayctl, key: str, allowed: str) -> None:
    ran = relayctl("queue", "suspend", key, "--reason", "x")
    assert ran.exit_code == 2 and allowed in " ".join(ran.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "words",
    [
        ("queue", "suspend", "account:a", "--reason", " "),
        ("queue", "suspend", "account:a", "--reason", "x", "--for", "soon"),
        ("queue", "suspend", "account:a", "--reason", "x", "--for", "0"),
        ("queue", "suspend", "account:a"),
        ("queue", "hold", "someid"),
        ("queue", "hold", "--reason", "x"),
        ("queue", "hold", "--all", "--account", "a", "--reason", "x"),
        ("queue", "hold", "--state", "sleeping", "--reason", "x"),
        ("queue", "hold", "--class", "bulky", "--reason", "x"),
        ("queue", "hold", "--campaign", "enero", "--reason", "x"),
        ("queue", "hold", "--campaign", "one/enero", "--account", "two", "--reason", "x"),
        ("queue", "hold", "--recipient", "x.test", "--reason", "x"),
        ("queue", "hold", "--provider", "gogle", "--reason", "x"),
        ("queue", "hold", "--older-than", "soon", "--reason", "x"),
        ("queue", "hold", "not-an-id", "--reason", "x"),
        ("queue", "release", "--state", "queued", "--reason", "x"),
        ("queue", "hold", "--all", "--reason", "x", "--wait", "soon"),
        ("queue", "list", "--after", "nowhere"),
    ],
)
def test_what_must_be_said(relayctl: Relayctl, words: tuple[str, ...]) -> None:
    assert relayctl(*words).exit_code == 2


def test_not_there(relayctl: Relayctl) -> None:
    for words in (("show", "06gvnihfsth09neceq0o"), ("hold", "06gvnihfsth09neceq0o", "--reason", "x"), ("show", "ñ")):
        ran = relayctl("queue", *words)
        assert ran.exit_code == 1 and "not in the queue" in ran.stderr
    ran = relayctl("events", "tail", "--from", "yesterday", "--end")
    assert ran.exit_code == 2 and "says no beginning" in ran.stderr


def test_no_server(tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "unix://{tmp_path}/nobody"\n')
    ran = CliRunner().invoke(app, ["queue", "summary", "--config", str(path)])
    assert ran.exit_code == 1 and "no queue server at" in ran.stderr
