"""A machine of its own: a small Debian with systemd as process 1, booted by systemd-nspawn on a tree of tools/machine.

What it writes goes to an overlay that outlives its boots, not into the tree. It has a network of its own with nothing
but loopback. All of it ends with its first process: mounts are in a mount namespace of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.harness import REPOSITORY, TOOLS

T = TypeVar("T")
HALT = signal.SIGRTMIN + 3  # to process 1: power off (systemd(1))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Control groups of its own, so that neither systemd meets the other one's.
BOOT = """\
set -eu
for groups in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -e "$groups/cgroup.procs" ] || continue
    mkdir -p "$groups/$NAME"
    echo $$ >"$groups/$NAME/cgroup.procs"
done
mount -t overlay overlay -o "lowerdir=$TREE,upperdir=$TOP/upper,workdir=$TOP/work" "$TOP/root"
exec "$NSPAWN" --boot --register=no --keep-unit --private-network --settings=no --link-journal=no --resolv-conf=off \\
    --timezone=off --console=pipe --machine="$NAME" --directory="$TOP/root" "$@"
"""


def tree() -> Path:
    """The file tree, made if need be; RuntimeError says why there is none."""
    made = subprocess.run([REPOSITORY / "tools" / "machine"], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(made.stderr.strip())
    return Path(made.stdout.strip())


@dataclass
class Machine:
    """``with Machine(directory, {"/src": checkout}) as machine:``; ``binds``: its path → a directory of ours, read-only."""

    directory: Path
    binds: Mapping[str, Path] = field(default_factory=dict)
    leader: int = 0  # its process 1, by our number
    boots: int = 0
    _child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        try:
            for name in ("upper", "work", "root"):
                (self.directory / name).mkdir(parents=True)
            self.boot()
        except BaseException:
            self.off()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

    def boot(self, seconds: float = 90.0) -> float:
        """Seconds until systemd has started what is to be started; RuntimeError when it does not."""
        started, self.boots = time.monotonic(), self.boots + 1
        log = self.directory / f"boot-{self.boots}.log"
        environment = {
            "PATH": PATH,
            "NAME": self._name,
            "TREE": str(tree()),
            "TOP": str(self.directory),
            "NSPAWN": str(TOOLS / "systemd-nspawn"),
        }
        binds = [f"--bind-ro={path}:{inside}" for inside, path in self.binds.items()]
        command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", BOOT, "boot", *binds]
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        while True:
            if self._child.poll() is not None or time.monotonic() - started > seconds:
                raise RuntimeError(f"the machine does not boot:\n{log.read_text(errors='replace')[-2000:]}")
            self.leader = _first_child(self._child.pid)
            if self.leader and self._state() in ("running", "degraded"):
                return time.monotonic() - started
            time.sleep(0.1)

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def off(self, seconds: float = 60.0) -> None:
        """In order, as by the power button; killed when that takes too long."""
        if self._child is None or self._child.poll() is not None:
            return
        for number in (HALT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader or self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(seconds)
                break
        self._child, self.leader = None, 0
        for groups in Path("/sys/fs/cgroup").glob(f"**/{self._name}"):
            for folder in sorted((groups, *groups.glob("**/")), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    @property
    def _name(self) -> str:
        return f"tambo-{os.getpid()}"

    def run(
        self, *words: str, check: bool = True, seconds: float = 120.0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, as root; RuntimeError with what it said when it fails."""
        inside = ["nsenter", "--target", str(self.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        clean = ["/usr/bin/env", "-i", "--chdir=/", f"PATH={PATH}", "LC_ALL=C.UTF-8", "HOME=/root"]
        given = [f"{name}={value}" for name, value in (environment or {}).items()]
        ran = subprocess.run(
            [*inside, "--root", "--", *clean, *given, *words],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and ran.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit {ran.returncode}\n{(ran.stdout + ran.stderr)[-3000:]}")
        return ran

    def path(self, inside: str) -> Path:
        """A file of the machine, as we see it."""
        return Path(f"/proc/{self.leader}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def network(self, work: Callable[[], T]) -> T:
        """``work`` in a thread that lives in the machine's network; what it raises is raised here."""
        return InNetwork(self, work).result()

    # ── units ──────────────────────────────────────────────────────────────────────────────────────────────────

    def systemctl(self, *words: str, check: bool = True, seconds: float = 120.0) -> str:
        return self.run("systemctl", *words, check=check, seconds=seconds).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def pid(self, unit: str) -> int:
        """Of its main process, as the machine numbers it; 0 = none."""
        return int(self.show(unit, "MainPID") or 0)

    def signal(self, unit: str, number: signal.Signals) -> None:
        self.run("kill", f"-{int(number)}", str(self.pid(unit)))

    def journal(self, unit: str, lines: int = 30) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", unit, check=False).stdout

    def exposure(self, units: Sequence[str]) -> dict[str, float]:
        """Unit → exposure, as systemd-analyze measures what is loaded."""
        found = {}
        for unit in units:
            said = self.run("systemd-analyze", "security", "--no-pager", unit).stdout
            line = next(line for line in said.splitlines() if "Overall exposure level" in line)
            found[unit] = float(line.partition(": ")[2].split()[0])
        return found


class InNetwork:
    """One piece of work in a thread that lives in the machine's network, from now on."""

    def __init__(self, machine: Machine, work: Callable[[], T]) -> None:
        self._work = work
        self._namespace = f"/proc/{machine.leader}/ns/net"
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float = 600.0):  # type: ignore[no-untyped-def]
        self._thread.join(seconds)
        if not self.done:
            raise RuntimeError(f"not done after {seconds:.0f} s")
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            with open(self._namespace, "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._result = self._work()
        except BaseException as error:
            self._error = error


def _first_child(pid: int) -> int:
    """nspawn's child, which is the machine's process 1; 0 = not there yet."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        if (Path(f"/proc/{pid}") / "comm").read_text().strip() == "systemd-nspawn":
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return 0
