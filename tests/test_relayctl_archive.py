"""``relayctl archive …`` and ``relayctl history`` as an operator runs them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from mailqueue.events import Event
from relayctl.main import app
from streams import holes, index
from streams.archive import Archive
from tests.queue_kit import opened
from tests.test_history import written

DAY_MS = 86_400_000
BEGIN = int(datetime(2026, 1, 1, 12).timestamp() * 1000)  # noon, local time
Relayctl = Callable[..., Any]


def rows(first: int, count: int, day: int = 0) -> list[tuple[str, bytes]]:
    found = []
    for number in range(first, first + count):
        at = BEGIN + day * DAY_MS + number
        facts = {"id": f"m{number % 10}", "account": "rrhh", "recipient": f"u{number % 5}@x.test"}
        found.append((f"{at}-0", Event("delivered", at, **facts).to_json()))  # type: ignore[arg-type]
    return found


@pytest.fixture
def relayctl(shared_redis: Any, tmp_path: Path) -> Relayctl:
    """With an archive of two shards and two days, forty events each."""
    for shard in (0, 1):
        written(tmp_path / "a", [rows(0, 25), rows(25, 15), rows(0, 40, day=1)], shard=shard)
    return configured(tmp_path, shared_redis.url, f'[archive]\ndirectory = "{tmp_path / "a"}"\n')


def configured(directory: Path, url: str, more: str = "") -> Relayctl:
    path = directory / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{url}"\nshards = 2\n{more}')
    return lambda *words: CliRunner().invoke(app, [*words, "--config", str(path)])


def test_list(relayctl: Relayctl, tmp_path: Path) -> None:
    found = orjson.loads(relayctl("archive", "list", "--json").stdout)
    assert [(one["shard"], one["day"], one["events"], one["batches"]) for one in found] == [
        (0, "2026-01-01", 40, 2),
        (0, "2026-01-02", 40, 1),
        (1, "2026-01-01", 40, 2),
        (1, "2026-01-02", 40, 1),
    ]
    assert (found[0]["first"], found[0]["last"]) == (f"{BEGIN}-0", f"{BEGIN + 39}-0")
    assert {one["index"] for one in found} == {"whole"} and found[0]["kinds"] == {"delivered": 40}
    assert [
        one["day"] for one in orjson.loads(relayctl("archive", "list", "--date", "2026-01-02", "--json").stdout)
    ] == ["2026-01-02"] * 2
    table = relayctl("archive", "list")
    assert table.exit_code == 0 and "4 segments, 160 events" in table.stdout
    for path in (tmp_path / "a").glob("*.index"):
        path.unlink()
    assert {one["index"] for one in orjson.loads(relayctl("archive", "list", "--json").stdout)} == {"none"}


def test_verify(relayctl: Relayctl, tmp_path: Path) -> None:
    sound = relayctl("archive", "verify")
    assert sound.exit_code == 0 and "160 events whole, 0 segments damaged" in sound.stdout
    first, last, *_ = Archive(tmp_path / "a").segments()
    text = first.path.read_bytes()
    for offset in (40, 100, len(text) // 2, len(text) - 1):
        first.path.write_bytes(text[:offset] + bytes([text[offset] ^ 4]) + text[offset + 1 :])
        damaged = relayctl("archive", "verify")
        assert damaged.exit_code == 1 and "1 segments damaged" in damaged.stdout, offset
        assert first.path.name in damaged.stderr
    first.path.write_bytes(text[:-5])
    assert relayctl("archive", "verify").exit_code == 1
    first.path.write_bytes(text)
    last.path.write_bytes(last.path.read_bytes()[:-5])
    assert relayctl("archive", "verify").exit_code == 0  # the archiver may be writing
    beside = index.path_of(first.path)
    beside.write_bytes(beside.read_bytes()[:-3] + b"xxx")
    report = orjson.loads(relayctl("archive", "verify", "--date", "2026-01-01", "--json").stdout)
    assert [bool(one["wrong"]) for one in report] == [True, False]
    assert "index" in report[0]["wrong"][0]


def test_export(relayctl: Relayctl, tmp_path: Path) -> None:
    lines = relayctl("archive", "export").stdout.splitlines()
    records = [orjson.loads(line) for line in lines]
    assert len(records) == 160
    assert [one["stream_id"] for one in records] == sorted(one["stream_id"] for one in records)
    day = relayctl("archive", "export", "--date", "2026-01-02").stdout.splitlines()
    assert day == lines[80:]
    noon = datetime.fromtimestamp((BEGIN + 10) / 1000).isoformat(timespec="milliseconds")
    assert relayctl("archive", "export", "--since", noon).stdout.splitlines() == lines[20:]
    assert relayctl("archive", "export", "--until", noon).stdout.splitlines() == lines[:22]
    path = Archive(tmp_path / "a").segments()[0].path
    text = path.read_bytes()
    path.write_bytes(text[:100] + b"x" + text[101:])
    damaged = relayctl("archive", "export")
    assert damaged.exit_code == 1 and len(damaged.stdout.splitlines()) == 160 - 25
    assert "can't be read" in damaged.stderr


def test_export_to_a_reader_that_left(relayctl: Relayctl, tmp_path: Path) -> None:
    export = f"{sys.executable} -m relayctl.main archive export --config {tmp_path / 'tambo.toml'}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{export} | true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Error" not in done.stderr and "Traceback" not in done.stderr


def test_history_of_a_message_and_of_a_recipient(shared_redis: Any, relayctl: Relayctl) -> None:
    async def recent() -> None:
        async with opened(shared_redis.url, shards=2) as queue:
            now = int(time.time() * 1000)
            event = Event("returned", now, id="m3", recipient="U3@X.test", reason="5.1.1")
            await queue.shards[0].command("XADD", queue.shards[0].events, "*", "e", event.to_json())

    asyncio.run(recent())
    by_id = [orjson.loads(line) for line in relayctl("history", "--id", "m3", "--json").stdout.splitlines()]
    assert [one["kind"] for one in by_id] == ["delivered"] * 16 + ["returned"]
    whom = [
        orjson.loads(line) for line in relayctl("history", "--recipient", "<U3@x.TEST>", "--json").stdout.splitlines()
    ]
    assert len(whom) == 33 and whom[-1]["reason"] == "5.1.1"
    assert [one["at"] for one in whom] == sorted(one["at"] for one in whom)
    day = relayctl("history", "--recipient", "u3@x.test", "--date", "2026-01-02")
    assert len(day.stdout.splitlines()) == 16 and day.stdout.startswith("2026-01-02 12:00:00.003 delivered")
    few = relayctl("history", "--recipient", "u3@x.test", "--limit", "2")
    assert len(few.stdout.splitlines()) == 2 and "only the newest 2" in few.stderr
    all_of = relayctl("history", "--account", "rrhh", "--date", "2026-01-01", "--json")
    assert len(all_of.stdout.splitlines()) == 80


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["history"], 2, "say whose"),
        (["history", "--account", "rrhh"], 2, "say whose"),
        (["history", "--id", "no"], 1, "nothing is known of it"),
        (["history", "--id", "m1", "--since", "ayer"], 2, "is no date"),
        (["history", "--id", "m1", "--date", "2026-01"], 2, "is no day"),
        (["history", "--id", "m1", "--date", "2026-02-30"], 2, "is no date"),
        (["history", "--id", "m1", "--date", "2026-01-01", "--until", "2026-01-01"], 2, "not together"),
        (["archive", "list", "--since", "2026-01-02", "--until", "2026-01-01"], 2, "is before"),
    ],
)
def test_what_can_not_be_is_said(relayctl: Relayctl, words: list[str], code: int, said: str) -> None:
    answer = relayctl(*words)
    assert (answer.exit_code, said in " ".join(answer.stderr.replace("│", " ").split())) == (code, True), answer.stderr


def test_without_an_archive(shared_redis: Any, tmp_path: Path) -> None:
    relayctl = configured(tmp_path, shared_redis.url)
    for verb in ("list", "verify", "export"):
        answer = relayctl("archive", verb)
        assert answer.exit_code == 1 and "archive.directory is not set" in answer.stderr
    answer = relayctl("history", "--id", "m1")
    assert answer.exit_code == 1 and "there is no archive" in answer.stderr


def test_accept_loss(relayctl: Relayctl, shared_redis: Any) -> None:
    """Said what is given up, in an audit event too; nothing to give up is exit 1."""
    missing = f"{BEGIN + 2 * DAY_MS}-0"

    async def archived(place: str) -> dict[int, str]:
        async with opened(shared_redis.url, shards=2) as queue:
            if place:
                await holes.note(queue.shards[0], 1, place)
            return await holes.archived(queue.shards[0])

    nothing = relayctl("archive", "accept-loss", "--reason", "prueba")
    assert (nothing.exit_code, "nothing to accept" in nothing.output) == (1, True)
    asyncio.run(archived(missing))
    kept = f"{BEGIN + DAY_MS + 39}-0"
    trimmed(shared_redis, missing)
    done = relayctl("archive", "accept-loss", "--reason", "disco perdido", "--json")
    assert (done.exit_code, orjson.loads(done.stdout)) == (0, [{"shard": 1, "after": kept, "to": missing}])
    assert asyncio.run(archived("")) == {1: kept}
    told = relayctl("events", "tail", "--kind", "audit", "--from", "oldest", "--end", "--json").stdout
    (event,) = map(orjson.loads, told.splitlines())
    assert (event["verb"], event["reason"]) == ("archive accept-loss", "disco perdido")
    assert event["before"] == [{"shard": 1, "after": kept, "to": missing}]


def trimmed(redis: Any, to: str) -> None:
    redis.command("HSET", "{q1}:meta", "trimmed", to)
