"""A private Postfix beside which the relay is measured: stock settings of Debian, synced to disk, nothing signed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import REPOSITORY, TOOLS, free_port

INSTANCE = REPOSITORY / "tools" / "postfix-instance"
_TICKS = os.sysconf("SC_CLK_TCK")


def hindrance() -> str:
    """Why it cannot run here; "" when it can."""
    if os.geteuid() != 0:
        return "Postfix needs root to start"
    if not (TOOLS / "postconf").exists():
        return "no Postfix here: run make tools"
    return ""


class Postfix:
    """``with Postfix(directory, "127.0.2.250:2525") as postfix:`` relays everything to that next hop. ``settings`` are
    further ones of main.cf."""

    def __init__(self, directory: Path, next_hop: str, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.submission = free_port()
        host, _, self._port = next_hop.rpartition(":")
        self._main = {"relayhost": f"[{host}]:{self._port}", **(settings or {})}

    def __enter__(self) -> Postfix:
        for parent in (self.directory.parent, self.directory):
            parent.mkdir(exist_ok=True)
            parent.chmod(parent.stat().st_mode | 0o001)
        self._run("start", str(self.submission), self._port, *(f"{name}={value}" for name, value in self._main.items()))
        return self

    def __exit__(self, *_: object) -> None:
        self._run("stop")

    def queued(self) -> int:
        return int(self._run("queued"))

    def await_empty(self, seconds: float = 300.0) -> None:
        """RuntimeError when mail is left after that."""
        deadline = time.monotonic() + seconds
        while left := self.queued():
            if time.monotonic() > deadline:
                raise RuntimeError(f"Postfix still has {left} messages")
            time.sleep(0.2)

    def settings(self) -> dict[str, str]:
        """What its main.cf sets, and the defaults that bear on a rate."""
        names = (
            "default_process_limit",
            "default_destination_concurrency_limit",
            "initial_destination_concurrency",
            "in_flow_delay",
            "smtp_connection_cache_on_demand",
            "qmgr_message_active_limit",
        )
        environment = {**os.environ, "MAIL_CONFIG": str(self.directory / "etc")}
        found: dict[str, str] = {}
        for arguments in (["-n"], [*names]):
            answer = subprocess.run(
                [TOOLS / "postconf", *arguments], capture_output=True, text=True, check=True, env=environment
            ).stdout
            lines = (line.partition(" = ") for line in answer.splitlines())
            found.update({name: value for name, _, value in lines if "directory" not in name and "/" not in value})
        return found

    def cpu_seconds(self) -> float:
        """Of the master, all its children that have ended, and all that run."""
        master = int((self.directory / "queue" / "pid" / "master.pid").read_text())
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return sum(_cpu(process) for process in (str(master), *children))

    def _run(self, verb: str, *arguments: str) -> str:
        command = [str(INSTANCE), verb, str(self.directory), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stderr}")
        return ended.stdout


def _cpu(process: str) -> float:
    """Seconds of a process and of its ended children; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS
