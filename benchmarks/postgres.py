"""A PostgreSQL server of this run's own, of whatever version is unpacked or installed; as another user when we are root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import TOOLS, free_port

USER = "nobody"  # PostgreSQL refuses root
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "on", "max_connections": "10"}


def programs() -> Path | None:
    """Directory of initdb and postgres; None where there are none."""
    for root in (TOOLS.parent / "root", Path("/")):
        for found in sorted((root / "usr/lib/postgresql").glob("*/bin/postgres"), reverse=True):
            return found.parent
    return None


class Postgres:
    """``with Postgres(directory) as server: server.url``. Its data lie under /tmp, for the other user must reach them."""

    def __init__(self, directory: Path) -> None:
        found = programs()
        if found is None:
            raise RuntimeError("no PostgreSQL here: apt-get install postgresql-15, or make tools")
        self._programs = found
        self._log = directory.with_suffix(".log")
        self._data = Path(tempfile.mkdtemp(prefix="tambo-pg-", dir="/tmp"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = pwd.getpwnam(USER) if os.geteuid() == 0 else None

    @property
    def url(self) -> str:
        return f"postgresql://tambo@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        try:
            if self._user is not None:
                os.chown(self._data, self._user.pw_uid, self._user.pw_gid)
            data = str(self._data / "data")
            self._run("initdb", "-D", data, "-U", "tambo", "-A", "trust", "-E", "UTF8", "--no-sync").wait(60)
            words = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
            self._process = self._run("postgres", "-D", data, "-p", str(self._port), *words)
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            self._process.wait(30)
        shutil.rmtree(self._data, ignore_errors=True)

    def _run(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        who: dict[str, Any] = {}
        if self._user is not None:
            who = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [str(self._programs / program), *words], cwd="/tmp", stdout=output, stderr=output, **who
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.query(self.url, "SELECT 1")
                return
            except Exception as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("PostgreSQL did not start:\n" + self._log.read_text()[-2000:]) from error
                time.sleep(0.05)

    @staticmethod
    def query(url: str, statement: str) -> list[Any]:
        from examples.bounce_processor import _postgres

        connection = _postgres(url)
        try:
            cursor = connection.cursor()
            cursor.execute(statement)
            found = list(cursor.fetchall()) if cursor.description else []
            connection.commit()
            return found
        finally:
            connection.close()
