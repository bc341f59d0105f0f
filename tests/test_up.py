"""``relayctl up`` as a user runs it: in an empty home, from nothing, with nothing but this interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from config.load import load
from mailqueue.events import Event
from relayctl.instance import PORTS, AlreadyRuns, is_free, locked, prepared
from relayctl.trail import Step, step_of, walk
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(120)
RELAYCTL = (sys.executable, "-m", "relayctl.main")


def environment(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "TAMBO__QUEUE__SHARDS": "7"}


def relayctl(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RELAYCTL, *words], capture_output=True, text=True, check=False, env=environment(home), cwd=home, timeout=100
    )


class Running:
    """An ``up`` in the foreground that has said it is ready."""

    @staticmethod
    def start(directory: Path, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*RELAYCTL, "up", "--directory", str(directory), *options],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(directory.parent / "home"),
            cwd=directory.parent,
        )

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.directory = directory
        self.process = process
        self.said = self.until("Ctrl-C drains")
        self.children = psutil.Process(self.process.pid).children()
        self.endpoints: dict[str, Any] = orjson.loads((directory / "endpoints.json").read_bytes())

    def until(self, text: str) -> str:
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if text in line:
                return said
        raise AssertionError(f"{text!r} was never said, but:\n{said}")

    def child(self, module: str) -> psutil.Process:
        return next(child for child in self.children if module in child.cmdline())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and last words; none of the children is left."""
        said, _ = self.process.communicate(timeout=60)
        _, alive = psutil.wait_procs(self.children, timeout=10)
        assert not alive
        return self.process.returncode, said

    def client(self) -> smtplib.SMTP:
        where = self.endpoints["submission"][0]
        client = smtplib.SMTP(where["address"], where["port"], timeout=20)
        client.starttls(context=ssl.create_default_context(cafile=str(self.directory / "certificate.pem")))
        client.login(self.endpoints["account"]["user"], self.endpoints["account"]["password"])
        return client


@contextlib.contextmanager
def running(directory: Path, *options: str) -> Iterator[Running]:
    with Running.start(directory, *options) as process:
        try:
            yield Running(directory, process)
        finally:
            process.kill()  # its children die with it


@contextlib.contextmanager
def following(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``relayctl events tail`` from the oldest event on."""
    with subprocess.Popen(
        [*RELAYCTL, "events", "tail", "--from", "0", "--json", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(home) | {"TAMBO__QUEUE__SHARDS": "1"},
    ) as tail:
        try:
            yield tail
        finally:
            tail.kill()


def test_once_in_an_empty_home(tmp_path: Path) -> None:
    """At a path too long for a unix socket, with a space in it, and variables of another relay around."""
    home = tmp_path / "home"
    directory = tmp_path / ("long " * 20) / "var"
    directory.parent.mkdir()
    started = time.monotonic()
    ran = relayctl(home, "up", "--once", "--directory", str(directory))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert time.monotonic() - started < 40
    for words in ("accepted", "queued as", "received", "delivered", "mx1.gmail.test [127.0.2.", "from 127.0.1."):
        assert words in ran.stdout
    stopped = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("stopped")]
    assert stopped == ["relayd", "delivery", "maintenance", "sandbox", "inbound", "queue"]
    assert [path.name for path in home.iterdir()] == []
    assert len(list((directory / "sandbox" / "mail" / "gmail.test" / "new").iterdir())) == 1

    path = directory / "endpoints.json"
    assert path.stat().st_mode & 0o777 == 0o600
    endpoints = orjson.loads(path.read_bytes())
    assert list(endpoints) == ["submission", "account", "returns", "metrics", "sandbox", "queue"]
    (submission,) = endpoints["submission"]
    assert submission == {"address": "127.0.0.1", "port": submission["port"], "tls": "starttls"}
    assert set(endpoints["account"]) == {"user", "password", "sender"}
    assert set(endpoints["metrics"]) == {"relayd", "inbound", "delivery", "maintenance"}
    assert endpoints["sandbox"]["dns"].startswith("127.0.0.1:") and endpoints["sandbox"]["port"] > 0
    assert endpoints["queue"]["url"].startswith("unix:///") and len(endpoints["queue"]["url"]) < 107

    line = shlex.split(next(line for line in ran.stdout.splitlines() if line.startswith("swaks ")))
    assert line[line.index("--port") + 1] == str(submission["port"])
    assert line[line.index("--auth-password") + 1] == endpoints["account"]["password"]
    load(directory / "tambo.toml", {})


def test_second_start_finds_the_queue(tmp_path: Path) -> None:
    directory, home = tmp_path / "var", tmp_path / "home"
    configured = ("--config", str(directory / "tambo.toml"))
    with running(directory) as up:
        with up.client() as client:
            client.mail(up.endpoints["account"]["sender"])
            client.rcpt("nobody@dead.test")
            _, reply = client.data(
                b"From: "
                + up.endpoints["account"]["sender"].encode()
                + b"\r\nSubject: waits\r\n\r\nfor a host that is down\r\n"
            )
        message_id = reply.decode().split()[-1]
        with following(home, *configured) as tail:
            assert tail.stdout is not None
            kinds = (event["kind"] for event in map(orjson.loads, tail.stdout) if event.get("id") == message_id)
            assert next(kinds) == "received" and next(kinds) == "deferred"
            tail.send_signal(signal.SIGINT)
            assert tail.communicate(timeout=20)[0] == "" and tail.returncode == 0

        second = relayctl(home, "up", "--directory", str(directory))
        assert second.returncode == 1 and f"as process {up.process.pid}" in second.stderr
        up.signal(signal.SIGINT)
        code, said = up.end()
        assert code == 0 and said.splitlines()[-1].startswith("stopped queue") and "killed" not in said

    first = up.endpoints
    with running(directory) as up:
        assert up.endpoints == first
        environ = environment(home)
        del environ["TAMBO__QUEUE__SHARDS"]
        shown = subprocess.run(
            [*RELAYCTL, "queue", "show", message_id, "--json", *configured],
            capture_output=True, check=True, env=environ,
        )  # fmt: skip
        (item,) = orjson.loads(shown.stdout)["items"]
        assert item["place"] == "queued" and item["state"]["attempts"] == 1

        up.child("delivery").kill()
        code, said = up.end()
        assert code == 1 and "delivery was killed by SIGKILL; the end of" in said and "stopped queue" in said


def test_second_signal_hurries(tmp_path: Path) -> None:
    with running(tmp_path / "var") as up, up.client() as busy, up.client() as idle:
        busy.mail(up.endpoints["account"]["sender"])
        busy.rcpt("a@gob.test")
        assert busy.docmd("DATA")[0] == 354
        up.signal(signal.SIGINT)
        assert idle.getreply()[0] == 421  # the drain has begun, and waits for the busy one
        up.signal(signal.SIGINT)
        code, said = up.end()
        assert code == 0 and "killed relayd" in said and "stopped queue" in said


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    with running(tmp_path / "var") as up:
        up.signal(signal.SIGKILL)
        assert up.end()[0] == -signal.SIGKILL
    with locked(tmp_path / "var"):
        pass


def test_a_child_that_cannot_start_is_named(tmp_path: Path) -> None:
    """A file where the queue server wants its directory."""
    directory = tmp_path / "var"
    (directory / "queue").mkdir(parents=True)
    (directory / "queue" / "appendonlydir").write_text("")
    ran = relayctl(tmp_path / "home", "up", "--directory", str(directory))
    assert ran.returncode == 1 and "queue ended (1); the end of" in ran.stdout and "appendonlydir" in ran.stdout
    assert "stopped sandbox" in ran.stdout


def test_the_trail_says_where_it_ended(tmp_path: Path) -> None:
    async def steps() -> list[Step]:
        with prepared(tmp_path) as instance:  # and nobody listens
            return [step async for step in walk(instance, ())]

    (step,) = asyncio.run(steps())
    assert step.failed and step.what == "refused" and "connect" in step.text.lower()
    bounce = Event(
        "bounced", 1070, recipient="a@b.test", remote_mta="mx.b.test [127.0.2.9]", diagnostic_code="smtp; 550 no"
    )
    assert step_of(bounce, 1000) == Step(70, "bounced", "a@b.test mx.b.test [127.0.2.9] 550 no", failed=True)
    deferred = step_of(Event("deferred", 1070, recipient="a@b.test", status="4.4.3"), 1000)
    assert not deferred.failed and not deferred.delivered


def test_what_is_kept_and_what_is_chosen_anew(tmp_path: Path) -> None:
    with locked(tmp_path), prepared(tmp_path) as first:
        assert len(set(first.ports.values())) == len(PORTS)
        certificate = first.certificate.read_bytes()
        with pytest.raises(AlreadyRuns, match=str(os.getpid())), locked(tmp_path):
            pass
    with socket.create_server(("127.0.0.1", first.ports["submission"])), locked(tmp_path):
        assert not is_free("127.0.0.1", first.ports["submission"])
        with prepared(tmp_path) as second:
            changed = [name for name in PORTS if first.ports[name] != second.ports[name]]
            assert changed == ["submission"] and second.password == first.password
            assert second.certificate.read_bytes() == certificate
    for name in ("up.json", "tambo.toml", "key.pem"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / "up.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"), prepared(tmp_path):
        pass
