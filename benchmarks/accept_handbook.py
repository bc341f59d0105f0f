"""The drills of the handbook, played by one who knows nothing but the page: each alarm rings and ends as it is written.

Every drill has a relay of its own (``relayctl up``), a shell in which its lines are typed as they stand, and a Prometheus
where the page asks for one. ``seen`` says after how many seconds of those that the page allows it rang, fired, ended.

python -m benchmarks.accept_handbook [alert …]     (root: two of them mount a small disk)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import orjson

from benchmarks.books import await_that
from benchmarks.drills import Drill, Line, drills
from benchmarks.harness import REPOSITORY, TOOLS, free_port, scratch
from benchmarks.outcome import Outcome

PAGE = REPOSITORY / "docs" / "handbook.md"
UP = "relayctl up"
TYPED_SECONDS = 120.0
LOOK_SECONDS = 2.0
AT_ONCE = 6  # drills, which mostly wait
PATH = f"{Path(sys.executable).parent}:{TOOLS}:{os.environ['PATH']}"


class Broken(Exception):
    """A line of the page does not do what it says."""


class Shell:
    """The second terminal: what is typed, one line after the other, and what is printed."""

    def __init__(self, directory: Path) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=directory,
            env={"PATH": PATH, "HOME": str(directory), "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def type(self, command: str) -> tuple[int, str]:
        """(exit status, output); Broken when it does not return."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\nprintf '\\n:end:%s:\\n' $?\n".encode())
        self._bash.stdin.flush()
        said, deadline = b"", time.monotonic() + TYPED_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._bash.stdout, selectors.EVENT_READ)
            while not (said.endswith(b":\n") and b"\n:end:" in said):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise Broken(f"{command}: nothing after {TYPED_SECONDS:g} s")
                piece = os.read(self._bash.stdout.fileno(), 65536)
                if not piece:
                    raise Broken(f"{command}: the shell ended")
                said += piece
        output, _, status = said.decode("utf-8", "replace").rpartition("\n:end:")
        return int(status.strip(":\n")), output.strip()

    def close(self) -> None:
        self._bash.kill()
        self._bash.wait()


class Player:
    """One drill."""

    def __init__(self, drill: Drill, directory: Path) -> None:
        self.drill = drill
        self.seen: list[str] = []
        self._directory = directory
        self._port = free_port()
        self._rang = ""

    def play(self) -> None:
        with contextlib.ExitStack() as stack:
            self._shell = Shell(self._directory)
            stack.callback(self._shell.close)
            lines = list(self.drill.lines)
            if all(line.command != UP for line in lines):
                lines = [Line(UP), Line("export TAMBO_CONFIG=$PWD/var/tambo.toml"), *lines]
            relay = contextlib.ExitStack()
            stack.push(relay)
            for number, line in enumerate(lines):
                if line.command == UP:
                    relay.enter_context(self._up())
                    if self.drill.prometheus:
                        relay.enter_context(self._prometheus())
                    continue
                if number == len(lines) - 1 and "umount" in line.command:  # "after Ctrl-C in the first terminal"
                    relay.close()
                self._line(line)

    def _line(self, line: Line) -> None:
        status, said = self._shell.type(line.command) if line.command else (0, "")
        if line.refused:
            if not (status == 1 and f" {line.refused} " in said):
                raise Broken(f"{line.command}: {status}, {said}; to be refused with {line.refused}")
            self.seen.append(f"refused with {line.refused}")
        elif status:
            raise Broken(f"{line.command}: exit {status}, {said}")
        if line.when:
            self._await(line)

    def _await(self, line: Line) -> None:
        on = self._fires if "fires" in (line.when, self._rang) else self._rings
        if line.when != "ends":
            self._rang = line.when
        started = time.monotonic()
        while on() is (line.when == "ends"):
            if time.monotonic() - started > line.seconds:
                raise Broken(f"{line.command}: not within {line.seconds} s that it {line.when}; {self._state()}")
            time.sleep(LOOK_SECONDS)
        self.seen.append(f"{line.when} after {time.monotonic() - started:.0f} of {line.seconds} s")

    # ── what an operator looks at ──────────────────────────────────────────────────────────────────────────────

    def _rings(self) -> bool:
        if self.drill.alarm == "queue-away":  # only maintenance knows
            found = orjson.loads((self._var / "endpoints.json").read_bytes())
            with urlopen(f"http://{found['metrics']['maintenance']}/metrics", timeout=5) as answer:
                return b'tambo_alarm{name="queue-away"} 1.0' in answer.read()
        _, said = self._shell.type("relayctl alarms")
        return any(row.split()[:1] and row.split()[0].startswith(self.drill.alarm) for row in said.splitlines()[1:])

    def _fires(self) -> bool:
        with urlopen(f"http://127.0.0.1:{self._port}/api/v1/alerts", timeout=10) as answer:
            alerts = orjson.loads(answer.read())["data"]["alerts"]
        return any(a["labels"]["alertname"] == self.drill.alert and a["state"] == "firing" for a in alerts)

    def _state(self) -> str:
        return self._shell.type("relayctl alarms; relayctl queue summary")[1][-1500:]

    # ── the first terminal, and Prometheus ─────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _up(self) -> Iterator[None]:
        self._var = Path(self._shell.type("pwd")[1]) / "var"
        with (self._directory / "up.log").open("wb") as log, process(UP.split(), self._var.parent, log) as up:
            text = self._directory / "up.log"
            if await_that(lambda: b"Ctrl-C" in text.read_bytes() or up.poll() is not None, 60.0) < 0 or up.poll():
                raise Broken(f"relayctl up: {text.read_text()[-1500:]}")
            yield

    @contextlib.contextmanager
    def _prometheus(self) -> Iterator[None]:
        command = ["prometheus", f"--config.file={self._var}/prometheus.yml", f"--storage.tsdb.path={self._var}/tsdb"]
        command.append(f"--web.listen-address=127.0.0.1:{self._port}")
        with (self._directory / "prometheus.log").open("wb") as log, process(command, self._directory, log):
            if await_that(self._scrapes, 60.0) < 0:
                raise Broken(f"prometheus: {(self._directory / 'prometheus.log').read_text()[-1500:]}")
            yield

    def _scrapes(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/api/v1/query?query=sum(up)", timeout=5) as answer:
                found = orjson.loads(answer.read())["data"]["result"]
        except (URLError, ConnectionError, TimeoutError):
            return False
        return bool(found) and float(found[0]["value"][1]) == 4


@contextlib.contextmanager
def process(command: list[str], directory: Path, log: object) -> Iterator[subprocess.Popen[bytes]]:
    """Interrupted at the end, as by Ctrl-C; killed after two minutes."""
    started = subprocess.Popen(
        [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
        cwd=directory,
        env={"PATH": PATH, "HOME": str(directory), "PYTHONPATH": str(REPOSITORY)},
        stdout=log,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        try:
            started.wait(120)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def played(drill: Drill, directory: Path) -> tuple[Drill, bool, str]:
    directory.mkdir()
    player = Player(drill, directory)
    try:
        player.play()
    except (Broken, OSError) as error:
        return drill, False, "; ".join([*player.seen, str(error)])
    return drill, True, ", ".join(player.seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alerts", nargs="*", metavar="alert")
    options = parser.parse_args()
    found = drills(PAGE)
    known = {drill.alert for drill in found}
    if unknown := set(options.alerts) - known:
        parser.error(f"no drill for {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    wanted = sorted((d for d in found if not options.alerts or d.alert in options.alerts), key=lambda d: -d.seconds)
    outcome = Outcome("handbook", full=not options.alerts)
    with scratch("drills") as directory, ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(played, drill, directory / str(number)) for number, drill in enumerate(wanted)]
        for job in as_completed(jobs):
            drill, holds, seen = job.result()
            print(f"{drill.alert}: {'as written' if holds else 'NOT'}: {seen}", flush=True)
            outcome.check(drill.alert, holds, seen)
    return outcome.close()


if __name__ == "__main__":
    sys.exit(main())
