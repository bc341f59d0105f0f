"""SIGHUP in a real process: swap, say the difference, or keep the old configuration."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from config.load import Loaded, load
from config.reload import NEEDS_RESTART, Reloader, differences

PROGRAM = """
import asyncio, sys
import structlog
from prometheus_client import CollectorRegistry
from config.load import load
from config.logs import configure
from config.process import Service
from config.reload import Reloader

async def main(path):
    loaded = load(path, {})
    configure(loaded.settings.log, "delivery")
    registry = CollectorRegistry()
    reloader = Reloader(path, {}, loaded, structlog.get_logger(), registry)
    reloader.subscribe(lambda old, new: print("told", new.settings.delivery.max_sessions, flush=True))
    def reload():
        print("reloaded", reloader.reload(), reloader.generation,
              registry.get_sample_value("tambo_config_generation"), reloader.settings.delivery.max_sessions, flush=True)
    async with Service("delivery", "", registry, list, reload=reload) as service:
        service.started()
        print("ready", flush=True)
        await service.stop.wait()
    print("stopped", flush=True)

asyncio.run(main(sys.argv[1]))
"""


@contextmanager
def running(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def logged(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    record: dict[str, Any] = json.loads(process.stderr.readline())
    return record


def test_sighup(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    head = '[delivery]\nhostname = "out.example"\n'
    path.write_text(head + "max_sessions = 1\n")
    with running(path) as process:
        assert said(process) == "ready"

        path.write_text(head + "max_sessions = 2\n" + '[queue]\npassword = "hunter2"\nurl = "redis://u:hunter2@h/0"\n')
        process.send_signal(signal.SIGHUP)
        assert said(process) == "told 2" and said(process) == "reloaded True 2 2.0 2"
        record = logged(process)
        assert (record["event"], record["level"], record["generation"]) == ("configuration reloaded", "info", 2)
        assert record["changes"] == {
            "queue.url": "unix:///run/tambo/queue.sock → redis://******@h/0",
            "queue.password": "None → ******",
            "delivery.max_sessions": "1 → 2",
        }
        record = logged(process)
        assert (record["event"], record["keys"]) == ("configuration needs restart", ["queue.url", "queue.password"])
        assert logged(process)["text"].startswith("queue.disk_mark_mb: the server is on another host")

        path.write_text("[delivery]\nmax_sessions = 0\nzz = 1\n")
        process.send_signal(signal.SIGHUP)
        assert said(process) == "reloaded False 2 2.0 2"
        record = logged(process)
        assert (record["event"], record["level"]) == ("configuration refused", "error")
        assert [problem.partition(":")[0] for problem in record["problems"]] == ["delivery.zz", "delivery.max_sessions"]

        path.unlink()
        process.send_signal(signal.SIGHUP)
        assert said(process) == "reloaded False 2 2.0 2"
        assert logged(process)["problems"] == [f"{path}: no such file"]

        process.send_signal(signal.SIGTERM)
        assert said(process) == "stopped" and process.wait(10) == 0


def loaded_from(path: Path, text: str) -> Loaded:
    path.write_text(text)
    return load(path, {})


def test_differences(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('extends = "packaged"\n')
    head = '[delivery]\nproviders = "own.toml"\n'
    secret = '[queue]\npassword = "%s"\n'
    old = loaded_from(tmp_path / "t.toml", head + secret % "hunter1")
    own.write_text('extends = "packaged"\nunset = ["qq"]\n[providers.google]\nconnections = 4\n')
    new = loaded_from(
        tmp_path / "t.toml",
        head + secret % "hunter2" + '[[accounts]]\nname = "a"\nnetworks = ["127.0.0.0/24"]\n[log]\nlevel = "debug"\n',
    )
    changes = differences(old, new)
    assert changes["queue.password"] == "changed"
    assert changes["accounts[0].name"] == "absent → a" and "accounts" not in changes
    assert changes["log.level"] == "info → debug"
    assert changes["providers.google"] == "changed" and changes["providers.qq"] == "removed"
    assert differences(new, old)["providers.qq"] == "new"
    assert differences(old, old) == {} and "hunter" not in repr(changes)


def test_a_guard_keeps_the_old_configuration(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path / "t.toml", "")
    out = io.StringIO()
    reloader = Reloader(tmp_path / "t.toml", {}, loaded, logger(out), CollectorRegistry())

    def lost(new: Loaded) -> list[str]:
        raise FileNotFoundError("no such certificate")

    reloader.guard(lambda new: ["not while it rains"])
    reloader.guard(lost)
    assert not reloader.reload() and reloader.loaded is loaded and reloader.generation == 1
    assert json.loads(out.getvalue())["problems"] == ["not while it rains", "FileNotFoundError: no such certificate"]


def logger(out: io.StringIO) -> Any:
    render = structlog.processors.JSONRenderer()
    return structlog.wrap_logger(structlog.PrintLogger(out), processors=[render], wrapper_class=structlog.BoundLogger)


def test_a_failing_subscriber_does_not_stop_the_others(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path / "t.toml", "")
    out = io.StringIO()
    reloader = Reloader(tmp_path / "t.toml", {}, loaded, logger(out), CollectorRegistry())
    told: list[tuple[Loaded, Loaded]] = []

    def broken(old: Loaded, new: Loaded) -> None:
        raise RuntimeError("subscriber")

    reloader.subscribe(broken)
    reloader.subscribe(lambda old, new: told.append((old, new)))
    assert reloader.reload() and reloader.generation == 2
    assert told == [(loaded, reloader.loaded)] and reloader.providers is reloader.loaded.providers
    assert "configuration subscriber failed" in out.getvalue()


@pytest.mark.parametrize(
    "key",
    [
        "queue.url",
        "queue.shards",
        "queue.memory_mark",
        "relayd.listeners[0].address",
        "metrics.relayd",
        "delivery.port",
        "delivery.nameservers",
        "accounts[0].weight",
    ],
)
def test_needs_restart(key: str) -> None:
    assert NEEDS_RESTART.fullmatch(key)


@pytest.mark.parametrize(
    "key",
    [
        "accounts[0].networks",
        "relayd.listeners[0].key",
        "delivery.retry.jitter",
        "delivery.pools[0].sources[0].weight",
        "providers.google",
    ],
)
def test_taken_over_at_once(key: str) -> None:
    assert not NEEDS_RESTART.fullmatch(key)
