"""``relayctl streams``, ``dsn tail`` and ``events tail`` as an operator runs them, on a real queue."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from mailqueue.events import Event
from mailqueue.trimming import trim
from relayctl.event_filter import Filter
from relayctl.main import app
from streams.groups import Groups
from tests.conftest import REPOSITORY
from tests.queue_kit import events, now_ms, opened
from tests.test_groups import archive, entries

Relayctl = Callable[..., Any]
KINDS = ("received", "deferred", "delivered", "bounced", "expired", "audit")


@pytest.fixture
def config(shared_redis: Any, tmp_path: Path) -> Path:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{shared_redis.url}"\nshards = 2\n[archive]\ndirectory = "{tmp_path}/archive"\n')
    return path


@pytest.fixture
def relayctl(config: Path) -> Relayctl:
    return lambda *words: CliRunner().invoke(app, [*words, "--config", str(config)])


def happen(url: str, count: int = 6, **facts: Any) -> None:
    """Events of each kind in turn, over two shards."""

    async def scenario() -> None:
        async with opened(url, shards=2) as queue:
            for number in range(count):
                kind = KINDS[number % len(KINDS)]
                said = {"id": f"m{number}", "recipient": f"u{number}@x.test", "status": "5.1.1", **facts}
                event = Event(kind, now_ms(), **said)
                shard = queue.shards[number % 2]
                await shard.command("XADD", shard.events, "*", "e", event.to_json())

    asyncio.run(scenario())


def rows(ran: Any) -> list[dict[str, Any]]:
    assert ran.exit_code == 0, ran.output
    return [orjson.loads(line) for line in ran.stdout.splitlines()]


def audits(url: str) -> list[Event]:
    async def scenario() -> list[Event]:
        async with opened(url, shards=2) as queue:
            return [event for event in await events(queue) if event.kind == "audit" and event.verb]

    return asyncio.run(scenario())


def test_groups_are_made_seen_rewound_and_removed(shared_redis: Any, relayctl: Relayctl) -> None:
    happen(shared_redis.url)
    made = relayctl("streams", "create", "crm", "--owner", "ana@agency.pe", "--kinds", "bounced", "--reason", "new CRM")
    assert made.exit_code == 0, made.output
    assert relayctl("streams", "create", "crm", "--reason", "again").exit_code == 1
    (group,) = orjson.loads(relayctl("streams", "list", "--json").stdout)
    assert (group["group"], group["owner"], group["kinds"]) == ("crm", "ana@agency.pe", ["bounced"])
    assert group["lag_events"] == 1, "the audit event of its own making"
    assert "ana@agency.pe" in relayctl("streams", "list").stdout and " never " in relayctl("streams", "list").stdout
    back = relayctl("streams", "rewind", "crm", "--to", "oldest", "--reason", "CRM restored")
    assert back.exit_code == 0, back.output
    assert orjson.loads(relayctl("streams", "show", "crm", "--json").stdout)["lag_events"] == 8
    one = relayctl("streams", "rewind", "crm", "--to", "1-5-0", "--reason", "shard 1 alone")
    assert one.stdout == "crm goes on with what is behind 1-5-0\n"
    assert "bounced" in relayctl("streams", "show", "crm").stdout
    assert relayctl("streams", "remove", "crm", "--reason", "done").exit_code == 0
    for words in (
        ("show", "crm"),
        ("remove", "crm", "--reason", "x"),
        ("rewind", "crm", "--to", "new", "--reason", "x"),
    ):
        gone = relayctl("streams", *words)
        assert (gone.exit_code, "no group crm" in gone.stderr) == (1, True)
    told = [(event.verb, event.subject, event.reason) for event in audits(shared_redis.url)]
    assert told == [
        ("streams create", "crm", "new CRM"),
        ("streams rewind", "crm", "CRM restored"),
        ("streams rewind", "crm", "shard 1 alone"),
        ("streams remove", "crm", "done"),
    ]


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("streams", "create", "CRM", "--reason", "x"), 1, "no name of a group"),
        (("streams", "create", "crm", "--kinds", "opened", "--reason", "x"), 1, "no kind of event: opened"),
        (("streams", "create", "crm", "--from", "ayer", "--reason", "x"), 1, "says no beginning"),
        (("streams", "create", "crm", "--from", "7-1-1", "--reason", "x"), 1, "there is no shard 7"),
        (("streams", "create", "crm"), 2, "--reason"),
        (("streams", "create", "crm", "--reason", " "), 2, "at least one word"),
        (("dsn", "tail", "--ack"), 2, "--ack needs --group"),
        (("dsn", "tail", "--kinds", "opened"), 1, "no kind of event: opened"),
        (("events", "tail", "--kind", "opened", "--end"), 2, "no kind of event: opened"),
        (("events", "tail", "--from", "ayer", "--end"), 2, "says no beginning"),
    ],
)
def test_what_is_wrong_is_said(relayctl: Relayctl, words: tuple[str, ...], status: int, complaint: str) -> None:
    ran = relayctl(*words)
    assert ran.exit_code == status, ran.output
    assert complaint in " ".join(ran.stderr.replace("│", " ").split())


def test_dsn_tail_reads_what_its_group_reads(shared_redis: Any, relayctl: Relayctl) -> None:
    happen(shared_redis.url)
    made = relayctl("streams", "create", "crm", "--kinds", "bounced", "--from", "oldest", "--reason", "new CRM")
    assert made.stdout == "created crm: it reads the oldest event that is kept\n"
    words = ("dsn", "tail", "--group", "crm", "--json", "--end")
    assert {row["kind"] for row in rows(relayctl(*words))} == {"bounced"}
    assert {row["kind"] for row in rows(relayctl(*words, "--ack"))} == {"bounced"}
    (group,) = orjson.loads(relayctl("streams", "list", "--json").stdout)
    assert group["kinds"] == ["bounced"]
    other = relayctl(*words, "--ack", "--kinds", "expired")
    assert other.exit_code == 0 and "crm reads expired from now on; before: bounced\n" in other.stderr


def test_dsn_tail_goes_on_where_the_group_is(shared_redis: Any, relayctl: Relayctl) -> None:
    happen(shared_redis.url)
    words = ("dsn", "tail", "--group", "crm", "--json", "--end", "--from", "oldest")
    look = rows(relayctl(*words))
    assert sorted(row["kind"] for row in look) == ["bounced", "delivered", "expired"], "failures and final results"
    assert orjson.loads(relayctl("streams", "list", "--json").stdout) == [], "looking makes no group"
    acked = rows(relayctl(*words, "--ack"))
    assert sorted(row["position"] for row in acked) == sorted(row["position"] for row in look)
    assert rows(relayctl(*words, "--ack")) == []
    place = look[0]["position"]
    assert rows(relayctl(*words[:-1], place, "--ack")) == [], "--from is for a new group"
    happen(shared_redis.url)
    assert len(rows(relayctl(*words))) == len(rows(relayctl(*words))) == 3, "without --ack it stays where it is"
    deferred = rows(relayctl(*words, "--ack", "--kinds", "deferred,bounced"))
    assert sorted(row["kind"] for row in deferred) == ["bounced", "deferred"]
    assert {row["position"].split("-")[0] for row in deferred} == {"1"}
    (group,) = orjson.loads(relayctl("streams", "list", "--json").stdout)
    assert "@" in group["owner"]
    text = relayctl("dsn", "tail", "--end", "--from", "oldest").stdout
    assert "bounced" in text and "<u3@x.test>" in text and "5.1.1" in text


def test_events_tail_filters(shared_redis: Any, relayctl: Relayctl) -> None:
    happen(shared_redis.url, account="rrhh", campaign="enero")
    happen(shared_redis.url, 1, account="otra", recipient="Ana@Y.test", recipients=("b@z.test",), id="m00")

    def ids(*words: str) -> list[str]:
        return sorted(row["id"] for row in rows(relayctl("events", "tail", "--from", "0", "--end", "--json", *words)))

    assert len(ids()) == 7
    assert ids("--kind", "bounced", "--kind", "expired") == ["m3", "m4"]
    assert ids("--account", "rrhh", "--campaign", "enero", "--kind", "received") == ["m0"]
    assert ids("--recipient", "ana@y.test") == ["m00"]
    assert ids("--recipient", "Z.test") == ["m00"]
    assert len(ids("--recipient", "x.test")) == 6
    assert ids("--id", "m0") == ["m0"]


def test_events_tail_begins_in_the_archive(shared_redis: Any, config: Path, relayctl: Relayctl) -> None:
    happen(shared_redis.url)

    async def scenario() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            kept = archive(config.parent / "archive", await entries(queue))
            for shard in queue.shards:
                await trim(shard, -1, kept.newest(shard.number))

    asyncio.run(scenario())
    happen(shared_redis.url, 2)
    for start in ("2026-01-01", "oldest", "0"):
        assert len(rows(relayctl("events", "tail", "--from", start, "--end", "--json"))) == 8
    none = relayctl("events", "tail", "--from", "2100-01-01", "--end", "--json")
    assert none.stdout == "" and none.stderr.endswith("no such event from 2100-01-01 on\n")


def test_the_cheap_test_of_a_filter_never_says_no_where_the_whole_one_says_yes() -> None:
    events = [Event(kind, 1, id="m1", recipient="a@x.test") for kind in KINDS]
    for wanted in (Filter.of(), Filter.of(["bounced"]), Filter.of(id="m1"), Filter.of(["audit"], id="m2")):
        for event in events:
            assert wanted.may_match(event.to_json()) or not wanted.matches(event)
    assert Filter.of(["bounced"]).may_match(b'{"at":1,"kind":"bounced"}'), "kind elsewhere"


def start(config: Path, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "relayctl.main", *words, "--config", str(config)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **pipes)


def unread(url: str) -> int:
    async def scenario() -> int:
        async with opened(url, shards=2) as queue:
            group = await Groups(queue.shards[0]).get("crm")
            assert group is not None
            left = 0
            for shard in queue.shards:
                left += len(await shard.command("XRANGE", shard.events, f"({group.positions[shard.number]}", "+"))
            return left

    return asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_tail_and_what_was_printed_is_acknowledged(
    shared_redis: Any, config: Path, number: signal.Signals
) -> None:
    happen(shared_redis.url, 12)
    with start(config, "dsn", "tail", "--group", "crm", "--ack", "--json", "--from", "oldest") as tail:
        assert tail.stdout is not None
        lines = [orjson.loads(tail.stdout.readline()) for _ in range(6)]
        tail.send_signal(number)
        _, errors = tail.communicate(timeout=20)
    assert tail.returncode == 0, errors
    assert b"Traceback" not in errors
    assert {line["kind"] for line in lines} == {"delivered", "bounced", "expired"}
    assert unread(shared_redis.url) <= 2, "kinds that nobody asked for, at the most"


def test_a_reader_that_leaves_ends_the_tail_and_loses_nothing(shared_redis: Any, config: Path) -> None:
    happen(shared_redis.url, 6)
    words = ("dsn", "tail", "--group", "crm", "--ack", "--json", "--from", "oldest")
    with start(config, *words) as tail:
        assert tail.stdout is not None and tail.stderr is not None
        read = [orjson.loads(tail.stdout.readline()) for _ in range(3)]
        tail.stdout.close()
        happen(shared_redis.url, 6)
        errors = tail.stderr.read()
        assert tail.wait(20) == 0, errors
    assert b"Traceback" not in errors and b"BrokenPipe" not in errors
    again = CliRunner().invoke(app, [*words, "--end", "--config", str(config)])
    more = rows(again)
    assert len({row["position"] for row in read + more}) == 6


def test_a_reader_that_is_stuck_does_not_hold_up_the_end(shared_redis: Any, config: Path) -> None:
    happen(shared_redis.url, 120, reason="x" * 4000)
    with start(config, "dsn", "tail", "--group", "crm", "--ack", "--json", "--from", "oldest") as tail:
        assert tail.stdout is not None
        tail.stdout.readline()
        tail.send_signal(signal.SIGTERM)
        assert tail.wait(20) == 0
    assert unread(shared_redis.url) > 0, "what did not get out comes again"
