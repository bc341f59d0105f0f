"""The worked example: what it counts, that nothing counts twice, and that one who wakes up late does no harm."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accept_consumer import table_of
from benchmarks.postgres import Postgres, program
from examples.bounce_processor import Table, meaning
from mailqueue.events import Event
from streams.groups import Groups
from streams.taken import Taken
from tests.conftest import REPOSITORY, lacking
from tests.queue_kit import eventually, opened

ADDRESS = "ana@x.test"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if program("postgres") is None:
        lacking("no PostgreSQL here (make tools)")
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Without tables."""
    if request.param == "sqlite":
        return str(tmp_path / "bounces.sqlite")
    url: str = request.getfixturevalue("postgres")
    Postgres.query(url, "DROP TABLE IF EXISTS addresses, positions")
    return url


@pytest.mark.parametrize(
    ("kind", "action", "status", "said"),
    [
        ("delivered", "delivered", "2.0.0", "delivered"),
        ("delivered", "relayed", "2.0.0", "delivered"),
        ("late", "delivered", "2.0.0", "delivered"),
        ("late", "failed", "5.1.1", "hard"),
        ("bounced", "failed", "5.1.1", "hard"),
        ("bounced", "failed", "5.2.1", "hard"),
        ("bounced", "failed", "5.2.2", "soft"),
        ("bounced", "failed", "4.4.1", "soft"),
        ("expired", "failed", "4.4.7", "soft"),
        ("bounced", "failed", "5.7.1", "other"),
        ("bounced", "failed", "5.0.0", "other"),
    ],
)
def test_what_an_event_means(kind: str, action: str, status: str, said: str) -> None:
    assert meaning(Event(kind, 1, action=action, status=status)) == said


def taken(number: int, status: str = "5.1.1", shard: int = 0) -> Taken:
    kind, action = ("delivered", "delivered") if status[0] == "2" else ("bounced", "failed")
    return Taken(kind, number, recipient="Ana@X.test", action=action, status=status, position=f"{shard}-{number}-0")


def test_what_comes_again_does_not_count_again(database: str) -> None:
    with closing(Table(database)) as table:
        batch = [taken(1), taken(2, "2.0.0"), taken(3, "5.7.1"), taken(2, shard=1)]
        assert table.take_in(batch) == 4
        assert table.take_in(batch) == 0
        assert table.take_in([taken(3), taken(10), taken(9), taken(3, "5.2.2", shard=1)]) == 2, "behind what is known"
        assert table_of(database) == {ADDRESS: [1, 3, 1, 1]}
        with closing(Table(database)) as another:
            assert sorted(another.positions()) == ["0-10-0", "1-3-0"]
            assert another.take_in(batch) == 0
            assert another.take_in([taken(11)]) == 1
        assert table.take_in([taken(11)]) == 0, "one that was stopped meanwhile finds the positions moved on"


def test_a_batch_counts_whole_or_not_at_all(database: str) -> None:
    broken = Taken("bounced", 2, recipient=ADDRESS, status=b"5", position="0-2-0")  # type: ignore[arg-type]
    with closing(Table(database)) as table:
        with pytest.raises(Exception):  # noqa: B017 (each database has its own)
            table.take_in([taken(1), broken])
        assert table_of(database) == {}
        assert table.positions() == []
        assert table.take_in([taken(1)]) == 1


def start(config: Path, database: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(REPOSITORY / "examples" / "bounce_processor.py"), "--config", str(config)]
    command += ["--database", str(database), "--lease", "0.5", "--batch", "20"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


def test_one_that_was_stopped_past_its_lease_is_replaced_and_changes_nothing(shared_redis: Any, tmp_path: Path) -> None:
    """SIGSTOP, another takes over, SIGCONT: it ends and says why; each event counts once."""
    config, database = tmp_path / "tambo.toml", tmp_path / "bounces.sqlite"
    config.write_text(f'[queue]\nurl = "{shared_redis.url}"\n')
    processes: list[subprocess.Popen[bytes]] = []

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]

            async def write(count: int) -> None:
                for _ in range(count):
                    event = Event("bounced", 1, recipient=ADDRESS, action="failed", status="5.1.1")
                    await shard.command("XADD", shard.events, "*", "e", event.to_json())

            async def counted(count: int) -> None:
                async def so_many() -> bool:
                    return sum(map(sum, table_of(str(database)).values())) == count

                await eventually(so_many, 20)

            Table(str(database)).close()
            await Groups(shard).create("bounces", "bounces@localhost", (), {0: "0-1"})
            await write(50)
            processes.append(start(config, database))
            await counted(50)
            processes[0].send_signal(signal.SIGSTOP)
            processes.append(start(config, database))
            await write(50)
            await counted(100)
            processes[0].send_signal(signal.SIGCONT)
            _, said = await asyncio.to_thread(processes[0].communicate, timeout=20)
            assert processes[0].returncode == 1, said
            assert b"taken over by" in said and b"Traceback" not in said
            await write(20)
            await counted(120)

    try:
        asyncio.run(scenario())
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
    assert table_of(str(database)) == {ADDRESS: [0, 120, 0, 0]}


@pytest.mark.parametrize("page", ["docs/dsn-stream.md", "docs/es/dsn-stream.md"])
def test_the_program_of_the_documentation_runs(shared_redis: Any, tmp_path: Path, page: str) -> None:
    config = tmp_path / "tambo.toml"
    config.write_text(f'[queue]\nurl = "{shared_redis.url}"\n')
    found = re.search(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    assert found is not None
    program = found[1].replace("/etc/tambo/tambo.toml", str(config))
    assert program != found[1]

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            owner = re.search(r'owner="([^"]+)"', program)
            assert owner is not None
            await Groups(shard).create("crm", owner[1], (), {0: "0-1"})
            for kind in ("delivered", "bounced"):
                event = Event(kind, 1, recipient=ADDRESS, status="5.1.1")
                await shard.command("XADD", shard.events, "*", "e", event.to_json())

    asyncio.run(scenario())
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline().split()[1:] == [ADDRESS.encode(), b"5.1.1"]
        finally:
            running.kill()
