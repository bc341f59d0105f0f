"""Every role says that it is there, which configuration it has, and when it goes; instances have ports of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from config.digest import digest_of
from config.load import ConfigError, load
from config.start import run, status_address
from mailqueue.processes import Process, present
from relayctl.instance import is_free
from relayctl.main import app
from relayctl.reload import Follower, ask, judge, sort
from tests.conftest import REPOSITORY, RedisServer
from tests.queue_kit import eventually, opened
from tests.test_intake import audits

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


@contextmanager
def four_roles(path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The second instance of each role on one file."""
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    children = {
        role: subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(path), "--instance", "2"],
            stderr=subprocess.DEVNULL,
            env=environ | {"PYTHONHASHSEED": str(number)},
        )
        for number, (role, module) in enumerate(MODULES.items())
    }
    try:
        yield children
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def when(url: str, holds: Callable[[list[Process]], bool]) -> list[Process]:
    """Who is there, as soon as it holds."""

    async def scenario() -> list[Process]:
        found: list[Process] = []

        async def look() -> bool:
            found[:] = await present(queue.shards[0])
            return holds(found)

        async with opened(url) as queue:
            await eventually(look, 30)
        return found

    return asyncio.run(scenario())


def test_four_roles_agree_on_a_new_configuration(redis_server: RedisServer, tmp_path: Path) -> None:
    path, ports, url = tmp_path / "tambo.toml", free_ports(), redis_server.url

    def write(sessions: int, hostname: str = "relay.test") -> str:
        text = FILE.format(url=url, sessions=sessions, **ports)
        path.write_text(text.replace('hostname = "relay.test"\nsandbox', f'hostname = "{hostname}"\nsandbox'))
        return digest_of(load(path, {})) if sessions else ""

    def reload(*words: str) -> Any:
        return CliRunner().invoke(app, ["config", "reload", "--config", str(path), *words])

    first = write(7)
    with four_roles(path) as children:
        there = when(url, lambda found: len(found) == 4)
        assert {one.role: one.pid for one in there} == {role: child.pid for role, child in children.items()}
        assert {one.digest for one in there} == {first}
        assert {one.instance for one in there} == {"2"} and {one.config for one in there} == {str(path)}
        offsets = dict(zip(MODULES, range(4), strict=True))
        for one in there:
            assert one.status == f"127.0.0.1:{ports['port'] + offsets[one.role] + 10}"
            assert one.generation == 1 and one.version != "" and one.refused == ()

        second = write(8, "other.test")
        said = reload("--reason", "more sessions")
        assert said.exit_code == 0, said.output
        assert "delivery.max_sessions: 7 → 8" in said.stdout and said.stdout.count(": has it") == 4
        assert "delivery.hostname" in said.stderr.partition("restart")[2]
        there = when(url, lambda found: True)
        assert {(one.generation, one.digest, one.restart) for one in there} == {(2, second, ("delivery.hostname",))}

        write(0)
        said = reload()
        assert said.exit_code == 1 and "delivery.max_sessions" in said.stderr
        for child in children.values():
            child.send_signal(signal.SIGHUP)
        there = when(url, lambda found: all(one.reloads == 2 for one in found))
        assert {(one.generation, one.digest) for one in there} == {(2, second)}
        assert all("delivery.max_sessions" in one.refused[0] for one in there)

        path.write_text(
            path.read_text().replace("max_sessions = 0", "max_sessions = 8") + '[signing]\ndirectory = "gone"\n'
        )
        said = reload("--json")
        assert said.exit_code == 1
        why = {row["name"].partition("@")[0]: row["why"] for row in orjson.loads(said.stdout)["processes"]}
        assert why["relayd"].startswith("refused: ") and "gone" in why["relayd"], "only it sees that there are no keys"
        assert why["delivery"] == why["inbound"] == ""

        third = write(9)
        children["delivery"].send_signal(signal.SIGSTOP)
        said = orjson.loads(reload("--timeout", "1", "--json").stdout)
        why = {row["name"].partition("@")[0]: row["why"] for row in said["processes"]}
        assert why == {"relayd": "", "inbound": "", "maintenance": "", "delivery": "has not answered within 1 s"}
        assert said["restart"] == []
        children["delivery"].send_signal(signal.SIGCONT)
        when(url, lambda found: {one.digest for one in found} == {third})

        for child in children.values():
            child.send_signal(signal.SIGTERM)
        when(url, lambda found: found == [])
        assert [child.wait(20) for child in children.values()] == [0, 0, 0, 0]
    assert reload().exit_code == 1
    assert audits(url)[0][:2] == ("config reload", "more sessions")


def test_who_is_not_to_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text("")
    host = socket.gethostname()

    def one(**said: Any) -> Process:
        facts = {"role": "relayd", "host": host, "pid": os.getpid(), "instance": "1", "started": 0.0, "version": "1"}
        return Process(**{**facts, "schema": 1, "config": str(path), **said})

    here, elsewhere = sort([one(), one(host="far.test"), one(config="/etc/other.toml")], path)
    assert [each.process.host for each in here] == [host] and len(elsewhere) == 2
    ask(here[0], path)  # this very process is pytest, which SIGHUP would end
    assert "is another program" in here[0].why
    nobody = Follower(one(pid=2**22 - 1))
    ask(nobody, path)
    assert "no process" in nobody.why


@pytest.mark.parametrize(
    ("now", "followed", "why"),
    [
        (None, False, "is gone"),
        ({"reloads": 3, "digest": "new"}, False, ""),
        ({"reloads": 4, "digest": "new"}, True, ""),
        ({"reloads": 4, "digest": "old", "refused": ("a: b", "c: d")}, False, "refused: a: b; c: d"),
        ({"reloads": 4, "digest": "third"}, False, "has another configuration than this file: was it changed again?"),
    ],
)
def test_what_became_of_a_process(now: dict[str, Any] | None, followed: bool, why: str) -> None:
    before = Process("relayd", "h", 1, "1", 0.0, "1", 1, reloads=3, digest="old")
    one = Follower(before, expected="new")
    judge(one, replace(before, **now) if now else None)
    assert (one.followed, one.why) == (followed, why)


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
