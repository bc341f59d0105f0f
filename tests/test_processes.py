"""Every role says that it is there, which configuration it has, and when it goes; instances have ports of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config.digest import digest_of
from config.load import ConfigError, load
from config.settings import QueueSettings
from config.start import run, status_address
from mailqueue.processes import Process, present
from mailqueue.queue import Queue
from relayctl.instance import is_free
from tests.conftest import REPOSITORY, RedisServer
from tests.queue_kit import eventually

MODULES = {"relayd": "relayd", "inbound": "relayd.inbound", "delivery": "delivery", "maintenance": "maintenance"}
FILE = """\
[queue]
url = "{url}"
[relayd]
hostname = "relay.test"
[[accounts]]
name = "app"
networks = ["127.0.0.0/16"]
[delivery]
hostname = "relay.test"
sandbox = true
nameservers = ["127.0.0.1:9"]
max_sessions = {sessions}
[metrics]
relayd = "127.0.0.1:{port}"
inbound = "127.0.0.1:{port_1}"
delivery = "127.0.0.1:{port_2}"
maintenance = "127.0.0.1:{port_3}"
"""


def free_ports() -> dict[str, int]:
    """Four in a row, of which the second instances' are free too."""
    for first in range(31_000 + os.getpid() % 500 * 4, 60_000, 4):
        if all(is_free("127.0.0.1", port + further) for port in range(first, first + 4) for further in (0, 10)):
            return {"port": first, "port_1": first + 1, "port_2": first + 2, "port_3": first + 3}
    raise AssertionError("no free ports")


def test_four_roles_agree_on_a_new_configuration(redis_server: RedisServer, tmp_path: Path) -> None:
    path, ports = tmp_path / "tambo.toml", free_ports()
    path.write_text(FILE.format(url=redis_server.url, sessions=7, **ports))
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    children = {
        role: subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(path), "--instance", "2"],
            stderr=subprocess.DEVNULL,
            env=environ | {"PYTHONHASHSEED": str(number)},
        )
        for number, (role, module) in enumerate(MODULES.items())
    }

    async def when(queue: Queue, holds: Callable[[list[Process]], bool]) -> list[Process]:
        found: list[Process] = []

        async def look() -> bool:
            found[:] = await present(queue.shards[0])
            return holds(found)

        await eventually(look, 30)
        return list(found)

    async def scenario() -> None:
        queue = await Queue.open(QueueSettings(url=redis_server.url), role="test")
        try:
            there = await when(queue, lambda found: len(found) == 4)
            assert {one.role: one.pid for one in there} == {role: child.pid for role, child in children.items()}
            assert {one.digest for one in there} == {digest_of(load(path, {}))}
            assert {one.instance for one in there} == {"2"} and {one.config for one in there} == {str(path)}
            offsets = dict(zip(MODULES, range(4), strict=True))
            for one in there:
                assert one.status == f"127.0.0.1:{ports['port'] + offsets[one.role] + 10}"
                assert one.generation == 1 and one.version != "" and one.refused == ()

            path.write_text(FILE.format(url=redis_server.url, sessions=8, **ports))
            for child in children.values():
                child.send_signal(signal.SIGHUP)
            after = digest_of(load(path, {}))
            there = await when(queue, lambda found: all(one.reloads == 1 for one in found))
            assert {(one.generation, one.digest) for one in there} == {(2, after)}

            path.write_text(FILE.format(url=redis_server.url, sessions=0, **ports))
            for child in children.values():
                child.send_signal(signal.SIGHUP)
            there = await when(queue, lambda found: all(one.reloads == 2 for one in found))
            assert {(one.generation, one.digest) for one in there} == {(2, after)}
            assert all("delivery.max_sessions" in one.refused[0] for one in there)

            for child in children.values():
                child.send_signal(signal.SIGTERM)
            await when(queue, lambda found: found == [])
        finally:
            await queue.close()

    try:
        asyncio.run(scenario())
        assert [child.wait(20) for child in children.values()] == [0, 0, 0, 0]
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def test_a_digest_says_all_and_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    rules = tmp_path / "providers.toml"
    rules.write_text('extends = "packaged"\n')
    texts = [
        "",
        "[relayd]\nmax_errors = 21\n",
        '[queue]\npassword = "a"\n',
        '[queue]\npassword = "b"\n',
        '[queue]\nurl = "redis://x:a@127.0.0.1/0"\n',
        '[queue]\nurl = "redis://x:b@127.0.0.1/0"\n',
        '[delivery]\nproviders = "providers.toml"\n',
    ]

    def digest(text: str) -> str:
        path.write_text(text)
        return digest_of(load(path, {}))

    assert len({digest(text) for text in texts}) == len(texts)
    assert digest(texts[2]) == digest("# a remark\n" + texts[2])
    before = digest(texts[6])
    rules.write_text('extends = "packaged"\n# a remark\n')
    assert digest(texts[6]) == before
    rules.write_text('extends = "packaged"\n[default]\nconnections = 3\n')
    assert digest(texts[6]) != before


@pytest.mark.parametrize(
    ("address", "instance", "expected"),
    [
        ("127.0.0.1:9125", 1, "127.0.0.1:9125"),
        ("127.0.0.1:9125", 2, "127.0.0.1:9135"),
        ("[::1]:9126", 3, "[::1]:9146"),
        ("127.0.0.1:0", 2, "127.0.0.1:0"),
        ("", 2, ""),
    ],
)
def test_status_address(address: str, instance: int, expected: str) -> None:
    assert status_address(address, instance) == expected


def test_an_instance_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="its status port would be 65540"):
        status_address("127.0.0.1:65530", 2)

    async def never(_start: object) -> None:
        raise AssertionError

    path = tmp_path / "tambo.toml"
    path.write_text('[metrics]\nrelayd = "127.0.0.1:65530"\n')
    assert run("relayd", "", never, (), ["--config", str(path), "--instance", "2"]) == 2
    assert "its status port would be 65540" in capsys.readouterr().err
    for wrong in ("0", "x", "-1", "1001"):
        with pytest.raises(SystemExit, match="2"):
            run("relayd", "", never, (), ["--config", str(path), "--instance", wrong])
        assert "whole number from 1 to 1000" in capsys.readouterr().err
