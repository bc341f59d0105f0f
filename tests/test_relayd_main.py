"""The process: starts on a real queue, takes mail, obeys SIGHUP and SIGTERM, says why it cannot run."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FILE = """\
[queue]
url = "{url}"
[relayd]
hostname = "relay.test"
max_message_bytes = {size}
[[relayd.listeners]]
name = "a"
address = "127.0.0.1"
port = 0
tls = "none"
[[accounts]]
name = "app"
networks = ["127.0.0.0/16"]
[metrics]
relayd = ""
"""


@contextmanager
def relayd(path: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """The process and a reader of its log lines: ``told("event")`` waits for that line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "relayd", "--config", str(path)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip

    def told(event: str) -> dict[str, Any]:
        assert process.stderr is not None
        for line in process.stderr:
            record: dict[str, Any] = json.loads(line)
            if record["event"] == event:
                return record
        raise AssertionError(f"{event!r} was never logged")

    try:
        yield process, told
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_mail_reload_and_drain(redis_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text(FILE.format(url=redis_server.url, size=100_000))
    with relayd(path) as (process, told):
        port = told("listening")["port"]
        with smtplib.SMTP("127.0.0.1", port) as smtp:
            smtp.ehlo()
            assert smtp.esmtp_features["size"] == "100000"
            assert smtp.sendmail("a@b.example", ["c@d.example"], "From: a@b.example\r\n\r\nhi\r\n") == {}
        path.write_text(FILE.format(url=redis_server.url, size=200_000))
        process.send_signal(signal.SIGHUP)
        told("configuration reloaded")
        with smtplib.SMTP("127.0.0.1", port) as smtp:
            smtp.ehlo()
            assert smtp.esmtp_features["size"] == "200000"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            with pytest.raises(smtplib.SMTPServerDisconnected):
                assert smtp.noop()[0] == 421
                smtp.noop()


def test_a_certificate_that_is_gone_leaves_the_old_configuration(redis_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text(FILE.format(url=redis_server.url, size=100_000))
    with relayd(path) as (process, told):
        port = told("listening")["port"]
        lost = FILE.replace('tls = "none"', 'certificate = "gone.pem"\nkey = "gone.pem"')
        path.write_text(lost.format(url=redis_server.url, size=200_000))
        process.send_signal(signal.SIGHUP)
        assert "FileNotFoundError" in told("configuration refused")["problems"][0]
        with smtplib.SMTP("127.0.0.1", port) as smtp:
            smtp.ehlo()
            assert smtp.esmtp_features["size"] == "100000"


def test_a_bad_file_is_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text("[relayd]\nhostnam = 'x'\n")
    done = subprocess.run(
        [sys.executable, "-m", "relayd", "--config", str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "hostnam" in done.stderr
