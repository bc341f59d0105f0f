"""The marks of memory and disk, on a small disk of their own: refused before the server suffers, taken again by itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import smtplib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.harness import Relay, scratch
from config.addresses import on_this_host
from mailqueue.mark_metrics import MarkMetrics
from mailqueue.marks import Figures, rewrite_room
from mailqueue.worker import Settlement
from maintenance.room import Room
from tests.conftest import RedisServer, server_binary
from tests.queue_kit import claim_all, eventually, message, opened, working
from tests.test_queue import delivered

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("figures", "reached"),
    [
        (Figures(), ()),
        (Figures(84, 100, 85, 11, 10), ()),
        (Figures(85, 100, 85, 11, 10), ("memory",)),
        (Figures(84, 100, 85, 9, 10), ("disk",)),
        (Figures(84, 100, 85, None, 10), ()),
        (Figures(99, 100, 85, 0, 10), ("memory", "disk")),
    ],
)
def test_which_mark_is_reached(figures: Figures, reached: tuple[str, ...]) -> None:
    assert figures.reached == reached


@pytest.mark.parametrize(
    ("file", "used", "rewriting", "room"), [(10, 100, False, 10), (100, 10, False, 10), (100, 100, True, 0)]
)
def test_the_room_for_a_rewrite(file: int, used: int, rewriting: bool, room: int) -> None:
    assert rewrite_room(file, used, rewriting) == room


@pytest.mark.parametrize(
    ("figures", "helps"),
    [
        (Figures(10, 100, 85, 30, 40, 21), True),
        (Figures(10, 100, 85, 50, 40, 21), False),
        (Figures(10, 100, 85, 30, 40, 19), False),
        (Figures(10, 100, 85, 9, 40, 21), False),
        (Figures(10, 100, 85, 30, 40, 21, True), False),
    ],
    ids=["of the past", "below the mark", "of mail that waits", "no room for it", "under way"],
)
def test_when_a_rewrite_helps(figures: Figures, helps: bool) -> None:
    assert figures.rewrite_helps is helps


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("unix:///run/tambo/queue.sock", True),
        ("redis://127.0.0.1:6379/0", True),
        ("redis://[::1]:6379/0", True),
        ("rediss://localhost:6379/0", True),
        ("redis://10.1.2.3:6379/0", False),
        ("rediss://queue.entidad.test:6379/0", False),
    ],
)
def test_a_server_on_this_host(url: str, here: bool) -> None:
    assert on_this_host(url) is here


def test_the_figures_as_metrics() -> None:
    shown = [Figures()]
    registry = CollectorRegistry()
    MarkMetrics(lambda: shown[0], registry)
    assert b"\ntambo_queue" not in generate_latest(registry), "nobody has asked yet"
    shown[0] = Figures(90, 100, 85, None, 0)
    text = generate_latest(registry).decode()
    assert 'tambo_queue_full{mark="memory"} 1.0' in text
    assert 'tambo_queue_full{mark="disk"} 0.0' in text
    assert "tambo_queue_disk_free_bytes " not in text
    shown[0] = Figures(10, 100, 85, 7, 8)
    text = generate_latest(registry).decode()
    assert "tambo_queue_memory_used_bytes 10.0" in text
    assert "tambo_queue_memory_limit_bytes 100.0" in text
    assert "tambo_queue_disk_free_bytes 7.0" in text
    assert 'tambo_queue_full{mark="disk"} 1.0' in text


def test_a_directory_that_is_not_here_is_not_watched(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url, directory="/nowhere/queue") as queue:
            assert (await queue.put(message())).kind == "queued"
            assert queue.marks.figures.disk_free is None
        async with opened(shared_redis.url) as queue:  # asked by CONFIG GET dir
            await queue.put(message())
            assert queue.marks.figures.disk_free

    asyncio.run(scenario())


# ── on a disk of its own ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(root: None) -> Iterator[Path]:
    """A tmpfs of 40 MiB."""
    with scratch("disk") as directory:
        mounted = directory / "m"
        mounted.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", mounted], check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "-l", mounted], check=True)


@pytest.fixture
def other_tenant(small_disk: Path) -> Path:
    return small_disk / "other"


def fill(path: Path, but: int) -> None:
    """All of the disk but so many bytes."""
    facts = os.statvfs(path.parent)
    with path.open("ab") as file, contextlib.suppress(OSError):
        file.write(bytes(facts.f_bavail * facts.f_frsize - but))


def submit(relay: Relay, octets: int = 200_000) -> tuple[int, bytes]:
    """The reply to one message."""
    with smtplib.SMTP("127.0.0.1", relay.submission, timeout=30) as client:
        text = base64.encodebytes(os.urandom(octets)).decode()
        try:
            client.sendmail("aviso@entidad.test", ["uno@gmail.test"], f"From: aviso@entidad.test\r\n\r\n{text}")
        except smtplib.SMTPDataError as error:
            return error.smtp_code, error.smtp_error
        except smtplib.SMTPSenderRefused as error:
            return error.smtp_code, error.smtp_error
    return 250, b""


def until_refused(relay: Relay, most: int = 300) -> int:
    """How many were accepted before the first 452 4.3.1."""
    for accepted in range(most):
        code, text = submit(relay)
        if code != 250:
            assert (code, text[:5]) == (452, b"4.3.1"), (code, text)
            return accepted
    raise AssertionError(f"{most} accepted and none refused")


def reasons(relay: Relay, role: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{relay._ports[role]}/readyz", timeout=5) as answer:
            return list(json.load(answer)["reasons"])
    except urllib.error.HTTPError as error:
        with error:
            return list(json.load(error)["reasons"])


def relay_on(disk: Path, queue: dict[str, Any], server: str = "") -> Relay:
    settings = {"queue": {"put_deadline_seconds": 2, **queue}}
    return Relay(
        disk.parent / "r",
        roles=("relayd", "maintenance"),
        settings=settings,
        server=server_binary(os.environ.get("TAMBO_TEST_SERVER", "valkey")),
        server_settings=f"dir {disk}\nauto-aof-rewrite-min-size 1mb\n{server}",
    )


async def deliver_all(url: str, expected: int) -> None:
    async with opened(url) as queue, working(queue) as worker:
        items = await claim_all(worker)
        assert len(items) == expected, "nothing accepted is lost"
        for item in items:
            await worker.settle(Settlement(item, "final", delivered(item)))


async def accepted_again(relay: Relay) -> None:
    async def ready() -> bool:
        return not await asyncio.to_thread(reasons, relay, "relayd")

    await eventually(ready, 15)
    assert submit(relay, 100)[0] == 250


def test_at_the_disk_mark_mail_is_refused_and_goes_on_by_itself(small_disk: Path, other_tenant: Path) -> None:
    with relay_on(small_disk, {"disk_mark_mb": 8}) as relay:
        assert submit(relay, 100)[0] == 250
        fill(other_tenant, 7 * MIB)
        before = asyncio.run(refusing(relay))
        assert reasons(relay, "relayd")[0].startswith("disk mark: ")
        assert relay.metrics("relayd")['tambo_queue_full{mark="disk"}'] == 1
        asyncio.run(said_by_maintenance(relay))
        other_tenant.unlink()
        asyncio.run(accepted_again(relay))

        accepted = until_refused(relay)  # by the queue's own mail: there is room for it and for a rewrite of the file
        facts = os.statvfs(small_disk)
        assert accepted > 20
        assert facts.f_bavail * facts.f_frsize > 3 * MIB  # what comes in within half a second goes beyond
        asyncio.run(deliver_all(relay.url, 1 + before + 1 + accepted))
        asyncio.run(accepted_again(relay))  # nobody touched the disk: maintenance had the file rewritten
        assert relay.server.running


async def said_by_maintenance(relay: Relay) -> None:
    async def said() -> bool:
        return (await asyncio.to_thread(relay.metrics, "maintenance")).get('tambo_queue_full{mark="disk"}') == 1

    await eventually(said, 5)


async def refusing(relay: Relay) -> int:
    """How many it took before it was noticed."""
    codes: list[int] = []

    async def full() -> bool:
        codes.append((await asyncio.to_thread(submit, relay, 100))[0])
        return codes[-1] == 452

    await eventually(full, 5)
    return codes.count(250)


def test_a_file_of_the_past_is_rewritten(
    small_disk: Path, other_tenant: Path, make_redis_server: Callable[..., RedisServer]
) -> None:
    server = make_redis_server(dir=str(small_disk))

    async def scenario() -> None:
        async with opened(server.url, disk_mark_mb=20) as queue:
            for _ in range(40):
                await queue.put(message(content=os.urandom(200_000)))
            async with working(queue) as worker:
                for item in await claim_all(worker):
                    await worker.settle(Settlement(item, "final", delivered(item)))
            fill(other_tenant, 15 * MIB)
            queue.marks._asked = 0.0
            await Room(queue.shards[0], queue.marks).look()
            assert queue.marks.figures.file > 7 * MIB

            async def rewritten() -> bool:
                queue.marks._asked = 0.0
                await queue.marks.reached()
                figures = queue.marks.figures  # the old file is unlinked some time after
                return 0 < figures.file < MIB and (figures.disk_free or 0) > 20 * MIB

            await eventually(rewritten)

    asyncio.run(scenario())


def test_at_the_memory_mark_mail_is_refused_and_goes_on_by_itself(small_disk: Path) -> None:
    with relay_on(small_disk, {"disk_mark_mb": 1, "memory_mark": 0.8}, "maxmemory 12mb\n") as relay:
        accepted = until_refused(relay)
        assert reasons(relay, "relayd")[0].startswith("memory mark: ")
        asyncio.run(deliver_all(relay.url, accepted))
        asyncio.run(accepted_again(relay))
        assert relay.server.running


def test_beyond_the_mark_a_full_disk_loses_nothing(small_disk: Path, other_tenant: Path) -> None:
    """Another tenant fills it: the server ends itself rather than say what it can't keep."""
    with relay_on(small_disk, {"disk_mark_mb": 0}) as relay:
        assert [submit(relay, 10_000)[0] for _ in range(5)] == [250] * 5
        fill(other_tenant, 0)
        code, text = submit(relay, 300_000)
        assert (code, text[:5]) == (451, b"4.3.0"), text
        assert not relay.server.running
        assert "Can't recover from AOF write error" in (relay.directory / "server.log").read_text()
        other_tenant.unlink()
        relay.start_server()
        asyncio.run(accepted_again(relay))
        asyncio.run(deliver_all(relay.url, 6))
