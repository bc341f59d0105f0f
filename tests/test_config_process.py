"""The frame of a process: what systemd hears, signals, readiness through a life; log lines of a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from config.process import Service, notify, watchdog_seconds


def listener(path: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(path)
    receiver.settimeout(10)
    return receiver


def test_notify(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with listener(path) as receiver:
        assert notify("READY=1", {"NOTIFY_SOCKET": path})
        assert receiver.recv(100) == b"READY=1"
    with listener(f"\0tambo-test-{os.getpid()}") as receiver:
        assert notify("STOPPING=1", {"NOTIFY_SOCKET": f"@tambo-test-{os.getpid()}"})
        assert receiver.recv(100) == b"STOPPING=1"
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": path + "x"})
    assert not notify("READY=1", {"NOTIFY_SOCKET": "relative"})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "x"}, 0.0),
    ],
)
def test_watchdog_seconds(environ: dict[str, str], expected: float) -> None:
    assert watchdog_seconds(environ) == expected


def readiness(port: tuple[str, int] | None) -> tuple[int, list[str]]:
    assert port is not None
    try:
        with urllib.request.urlopen(f"http://{port[0]}:{port[1]}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)["reasons"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["reasons"]


def test_life_of_a_service(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    reloads: list[int] = []
    environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000000"}

    async def main(receiver: socket.socket) -> None:
        loop, reasons = asyncio.get_running_loop(), ["queue: down"]
        reloaded = asyncio.Event()

        def reload() -> None:
            reloads.append(1)
            reloaded.set()
            raise RuntimeError("said by the loop, and READY follows all the same")

        loop.set_exception_handler(lambda loop, context: None)
        registry = CollectorRegistry()
        async with Service(
            "delivery", "127.0.0.1:0", registry, lambda: reasons, reload=reload, environ=environ
        ) as service:
            assert await asyncio.to_thread(receiver.recv, 100) == b"WATCHDOG=1"
            assert await asyncio.to_thread(readiness, service.port) == (503, ["starting"])
            service.started()
            assert receiver.recv(100) == b"READY=1"
            assert await asyncio.to_thread(readiness, service.port) == (503, ["queue: down"])
            reasons.clear()
            assert await asyncio.to_thread(readiness, service.port) == (200, [])

            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(reloaded.wait(), 10)
            assert receiver.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert await asyncio.to_thread(receiver.recv, 100) == b"READY=1"

            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(service.stop.wait(), 10)
            assert receiver.recv(100) == b"STOPPING=1"
            assert await asyncio.to_thread(readiness, service.port) == (503, ["stopping"])
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)

    for run in (asyncio.run, uvloop.run):
        with listener(path) as receiver:
            run(main(receiver))
        os.unlink(path)
    assert reloads == [1, 1]


LOGGING = """
import logging, structlog, sys
from pydantic import SecretStr
from config.logs import configure
from config.settings import LogSettings
configure(LogSettings(level="info", format=sys.argv[1]), "relayd")
log = structlog.get_logger()
log.debug("not this")
log.info("accepted", id="x1", password="hunter2", hash=SecretStr("hunter2"), url="redis://u:hunter2@h/0", recipient="ñ@a.test")
def fail():
    hidden = "hunter2"
    raise ValueError("broken")
try:
    fail()
except ValueError:
    log.exception("failed")
    logging.getLogger("other").exception("library failed")
logging.getLogger("mail.log").warning("not this either")
logging.getLogger("mail.log").error("aiosmtpd %s", "says")
"""


def lines_of(form: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", LOGGING, form], capture_output=True, text=True, check=True)
    assert ran.stdout == "" and "hunter2" not in ran.stderr and "not this" not in ran.stderr
    return ran.stderr.splitlines()


def test_json_lines() -> None:
    records = [json.loads(line) for line in lines_of("json")]
    assert [record["event"] for record in records] == ["accepted", "failed", "library failed", "aiosmtpd says"]
    first = records[0]
    assert first["timestamp"].endswith("Z") and first["level"] == "info" and first["role"] == "relayd" and first["pid"]
    assert (first["password"], first["url"], first["recipient"]) == ("******", "redis://******@h/0", "ñ@a.test")
    assert "ValueError: broken" in records[1]["exception"] and "ValueError: broken" in records[2]["exception"]
    assert records[3]["logger"] == "mail.log" and records[3]["role"] == "relayd"


def test_console() -> None:
    lines = lines_of("console")
    assert any("accepted" in line and "x1" in line for line in lines)
    assert any("ValueError: broken" in line for line in lines)
