"""What /readyz rests on: a server that dies is noticed though nobody puts, and its return, too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from tests.conftest import REPOSITORY
from tests.queue_kit import eventually, message, opened, working
from tests.test_relayd_main import FILE


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_watched_queue_notices_without_a_put(redis_server: Any, how: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            await queue.watch()
            assert queue.accepting

            async def refusing() -> bool:
                return not queue.accepting

            async def accepting() -> bool:
                return queue.accepting

            redis_server.kill() if how == "kill" else redis_server.pause()
            await eventually(refusing, 4)
            redis_server.start() if how == "kill" else redis_server.resume()
            await eventually(accepting, 4)
            assert (await queue.put(message())).kind == "queued"

    asyncio.run(scenario())


def test_a_worker_lives_as_long_as_its_lease(redis_server: Any) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, lease_seconds=1) as queue:
            assert not queue.workers()[0].alive, "not before it has joined"
            async with working(queue) as worker:
                assert worker.alive
                redis_server.kill()

                async def dead() -> bool:
                    return not worker.alive

                async def alive() -> bool:
                    return worker.alive

                await eventually(dead, 3)
                redis_server.start()
                await eventually(alive, 5)
            assert not worker.alive

    asyncio.run(scenario())


def reasons(port: int) -> str:
    """ "" when the process is ready."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            assert answer.status == 200
        return ""
    except HTTPError as refused:
        with refused:
            return refused.read().decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(port: int, ready: bool, seconds: float) -> str:
    """The reasons, as soon as they are as wanted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(URLError):
            why = reasons(port)
            if (why == "") == ready:
                return why
        time.sleep(0.05)
    raise AssertionError(f"{'not ready' if ready else 'ready'} after {seconds} s")


@pytest.mark.parametrize(
    ("module", "why"), [("relayd", "the queue server does not answer"), ("delivery", "no lease in shard 0")]
)
def test_the_status_port_says_so(redis_server: Any, tmp_path: Path, module: str, why: str) -> None:
    port = free_port()
    text = FILE.format(url=redis_server.url, size=100_000).replace('relayd = ""', f'{module} = "127.0.0.1:{port}"')
    path = tmp_path / "tambo.toml"
    path.write_text(text.replace("[relayd]", "lease_seconds = 1\n[relayd]"))
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--config", str(path)],
        cwd=REPOSITORY, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        until(port, True, 15)
        redis_server.kill()
        assert why in until(port, False, 4)
        redis_server.start()
        until(port, True, 6)
    finally:
        process.kill()
        process.wait()
