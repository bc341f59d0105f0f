"""A PostgreSQL server of this run's own, unpacked or installed; as nobody when we are root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import TOOLS, free_port

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "10",
    "jit": "off",
    "timezone": "UTC",
}
# PostgreSQL refuses root. As nobody it must still find its own programs, wherever this repository lies.
NOBODY = 65534
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
)


def program(name: str) -> Path | None:
    """initdb or postgres, unpacked or installed; None where there is none."""
    found = [TOOLS / name, *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)]
    return next((path for path in found if path.exists()), None)


class Postgres:
    """``with Postgres(directory) as server: server.url``. Its data lie under /tmp, for the other user must reach them."""

    def __init__(self, directory: Path) -> None:
        if program("postgres") is None:
            raise RuntimeError("no PostgreSQL here: make tools, or apt-get install postgresql-15")
        self._log = directory.with_suffix(".log")
        self._data = Path(tempfile.mkdtemp(prefix="tambo-pg-", dir="/tmp"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as_nobody = AS_NOBODY if os.geteuid() == 0 else ()

    @property
    def url(self) -> str:
        return f"postgresql://tambo@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        try:
            if self._as_nobody:
                os.chown(self._data, NOBODY, NOBODY)
            data = str(self._data / "data")
            self._run("initdb", "-D", data, "-U", "tambo", "-A", "trust", "-E", "UTF8", "--no-sync").wait(
                60
            )  # says why in the log
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

    def _run(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [*self._as_nobody, str(program(name)), *words], cwd="/tmp", stdout=output, stderr=output
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
