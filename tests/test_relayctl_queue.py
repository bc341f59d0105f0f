"""``relayctl queue …`` and ``relayctl events tail`` as an operator runs them, on a real queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from mailqueue.message import Message
from relayctl.main import app
from tests.queue_kit import claim_all, message, opened, working

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
    assert (held.exit_code, held.stdout) == (0, f"{one.envelope.id}: held 2 of 2 recipients\n")
    assert "wrong amount" in held.stderr and "b@y.test" in held.stderr, "the log line of each event"
    assert claimable(shared_redis.url) == ["c@x.test"]
    assert relayctl("queue", "hold", one.envelope.id, "--reason", "again").exit_code == 1
    released = relayctl("queue", "release", one.envelope.id, "--reason", "right after all")
    assert released.stdout == f"{one.envelope.id}: released 2 of 2 recipients\n"
    assert claimable(shared_redis.url) == ["a@x.test", "b@y.test", "c@x.test"]
    lines = relayctl("events", "tail", "--from", "0", "--end", "--json").stdout.splitlines()
    events = [(event["kind"], event.get("reason")) for event in map(orjson.loads, lines)]
    assert events.count(("held", "wrong amount")) == 2 and events.count(("released", "right after all")) == 2


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
    assert relayctl("queue", "resume", "destination:x.TEST.", "--reason", "settled").exit_code == 0
    assert claimable(shared_redis.url) == ["a@x.test", "b@x.test"]
    tail = relayctl("events", "tail", "--from", "0", "--end").stdout
    assert "suspended" in tail and "account:one" in tail and "settled" in tail


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
    ],
)
def test_what_must_be_said(relayctl: Relayctl, words: tuple[str, ...]) -> None:
    assert relayctl(*words).exit_code == 2


def test_not_there(relayctl: Relayctl) -> None:
    for words in (("show", "06gvnihfsth09neceq0o"), ("hold", "06gvnihfsth09neceq0o", "--reason", "x"), ("show", "ñ")):
        ran = relayctl("queue", *words)
        assert ran.exit_code == 1 and "not in the queue" in ran.stderr
    ran = relayctl("events", "tail", "--from", "yesterday", "--end")
    assert ran.exit_code == 1 and "Invalid stream ID" in ran.stderr


def test_no_server(tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "unix://{tmp_path}/nobody"\n')
    ran = CliRunner().invoke(app, ["queue", "summary", "--config", str(path)])
    assert ran.exit_code == 1 and "no queue server at" in ran.stderr
