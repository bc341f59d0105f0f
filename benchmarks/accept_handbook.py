"""The drills of the handbook, played by one who knows nothing but the page: each alarm rings and ends as it is written.

Every drill has a relay of its own (``relayctl up``), a shell in which its lines are typed as they stand, and a Prometheus
where the page asks for one. ``seen`` says after how many seconds of those that the page allows it rang, fired, ended, and
which other alarms rang besides. When it has ended the queue must run empty: a drill leaves no mail behind.

python -m benchmarks.accept_handbook [alert …]     (root: two of them mount a small disk)
python -m benchmarks.accept_handbook --together    (those that need no Prometheus, in one relay, one after the other)
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
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
CONFIG = "export TAMBO_CONFIG=$PWD/var/tambo.toml"
TYPED_SECONDS = 120.0
LOOK_SECONDS = 2.0
AT_ONCE = 6  # drills, which mostly wait
STARTING = threading.Lock()  # two that look for free ports at once may find the same
EMPTY_SECONDS = 360.0  # the longest wait of one that was deferred twice
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


class House:
    """A relay, a shell beside it, and a Prometheus if there is to be one."""

    def __init__(self, directory: Path, *, prometheus: bool) -> None:
        self.directory = directory
        self._prometheus_wanted = prometheus
        self._port = free_port()
        self._running = contextlib.ExitStack()
        self.is_up = False

    def __enter__(self) -> House:
        self.directory.mkdir()
        self.shell = Shell(self.directory)
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self.shell.close()

    def up(self) -> None:
        """``relayctl up`` where the shell stands."""
        self.is_up = True
        with STARTING:
            self._running.enter_context(self._up())
        if self._prometheus_wanted:
            self._running.enter_context(self._prometheus())

    def down(self) -> None:
        """Ctrl-C in the first terminal."""
        self._running.close()
        self.is_up = False

    # ── what an operator looks at ──────────────────────────────────────────────────────────────────────────────

    def alarms(self) -> set[str]:
        """Names of those that ring; none while nobody can say."""
        status, said = self.shell.type("relayctl alarms --json")
        return {one["name"] for one in orjson.loads(said)} if not status else set()

    def queue_away(self) -> bool:
        """Only maintenance knows."""
        found = orjson.loads((self._var / "endpoints.json").read_bytes())
        with urlopen(f"http://{found['metrics']['maintenance']}/metrics", timeout=5) as answer:
            return b'tambo_alarm{name="queue-away"} 1.0' in answer.read()

    def fires(self, alert: str) -> bool:
        with urlopen(f"http://127.0.0.1:{self._port}/api/v1/alerts", timeout=10) as answer:
            alerts = orjson.loads(answer.read())["data"]["alerts"]
        return any(a["labels"]["alertname"] == alert and a["state"] == "firing" for a in alerts)

    def empty(self) -> bool:
        """Nothing waits, nothing is under way; held mail may lie."""
        _, said = self.shell.type("relayctl queue summary --json")
        found = orjson.loads(said)
        return bool(found["open"] == found["held"])

    def state(self) -> str:
        return self.shell.type("relayctl alarms; relayctl queue summary")[1][-1500:]

    # ── the first terminal, and Prometheus ─────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _up(self) -> Iterator[None]:
        self._var = Path(self.shell.type("pwd")[1]) / "var"
        with (self.directory / "up.log").open("wb") as log, process(UP.split(), self._var.parent, log) as up:
            text = self.directory / "up.log"
            if await_that(lambda: b"Ctrl-C" in text.read_bytes() or up.poll() is not None, 60.0) < 0 or up.poll():
                raise Broken(f"relayctl up: {text.read_text()[-1500:]}")
            yield

    @contextlib.contextmanager
    def _prometheus(self) -> Iterator[None]:
        command = ["prometheus", f"--config.file={self._var}/prometheus.yml", f"--storage.tsdb.path={self._var}/tsdb"]
        command.append(f"--web.listen-address=127.0.0.1:{self._port}")
        with (self.directory / "prometheus.log").open("wb") as log, process(command, self.directory, log):
            if await_that(self._scrapes, 60.0) < 0:
                raise Broken(f"prometheus: {(self.directory / 'prometheus.log').read_text()[-1500:]}")
            yield

    def _scrapes(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/api/v1/query?query=sum(up)", timeout=5) as answer:
                found = orjson.loads(answer.read())["data"]["result"]
        except (URLError, ConnectionError, TimeoutError):
            return False
        return bool(found) and float(found[0]["value"][1]) == 4


class Player:
    """One drill."""

    def __init__(self, drill: Drill, house: House) -> None:
        self.drill = drill
        self.seen: list[str] = []
        self._house = house
        self._rang = ""
        self._besides: set[str] = set()

    def play(self) -> None:
        """Raises Broken. The house is up already unless the drill says when."""
        for number, line in enumerate(self.drill.lines):
            if line.command == UP:
                self._house.up()
                continue
            if number == len(self.drill.lines) - 1 and "umount" in line.command:  # "after Ctrl-C in the first terminal"
                self._house.down()
            self._line(line)
        if self._besides:
            self.seen.append(f"besides rang {', '.join(sorted(self._besides))}")
        if self.drill.ends and self._house.is_up:
            started = time.monotonic()
            if await_that(self._house.empty, EMPTY_SECONDS) < 0:
                raise Broken(f"mail is left behind: {self._house.state()}")
            self.seen.append(f"queue empty after {time.monotonic() - started:.0f} s")

    def _line(self, line: Line) -> None:
        status, said = self._house.shell.type(line.command) if line.command else (0, "")
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
                raise Broken(f"{line.command}: not within {line.seconds} s that it {line.when}; {self._house.state()}")
            time.sleep(LOOK_SECONDS)
        self.seen.append(f"{line.when} after {time.monotonic() - started:.0f} of {line.seconds} s")

    def _fires(self) -> bool:
        return self._house.fires(self.drill.alert)

    def _rings(self) -> bool:
        if self.drill.alarm == "queue-away":
            return self._house.queue_away()
        found = self._house.alarms()
        mine = {name for name in found if name.startswith(self.drill.alarm)}
        self._besides |= found - mine
        return bool(mine)


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


def played(drill: Drill, directory: Path) -> Iterator[tuple[Drill, bool, str]]:
    """In a house of its own."""
    given = () if any(line.command == UP for line in drill.lines) else (Line(UP), Line(CONFIG))
    with House(directory, prometheus=drill.prometheus) as house:
        yield tried(replace(drill, lines=(*given, *drill.lines)), house)


def played_together(wanted: Sequence[Drill], directory: Path) -> Iterator[tuple[Drill, bool, str]]:
    """One after the other in one house, as somebody does who has an hour to learn."""
    with House(directory, prometheus=False) as house:
        house.up()
        house.shell.type(CONFIG)
        for drill in wanted:
            yield tried(drill, house)


def tried(drill: Drill, house: House) -> tuple[Drill, bool, str]:
    player = Player(drill, house)
    try:
        player.play()
    except (Broken, OSError) as error:
        return drill, False, "; ".join([*player.seen, str(error)])
    return drill, True, ", ".join(player.seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alerts", nargs="*", metavar="alert")
    parser.add_argument("--together", action="store_true", help="in one relay, one after the other")
    options = parser.parse_args()
    found = drills(PAGE)
    known = {drill.alert for drill in found}
    if unknown := set(options.alerts) - known:
        parser.error(f"no drill for {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    wanted = [drill for drill in found if not options.alerts or drill.alert in options.alerts]
    outcome = Outcome("handbook-together" if options.together else "handbook", full=not options.alerts)

    def tell(results: Iterable[tuple[Drill, bool, str]]) -> None:
        for drill, holds, seen in results:
            print(f"{drill.alert}: {'as written' if holds else 'NOT'}: {seen}", flush=True)
            outcome.check(drill.alert, holds, seen)

    with scratch("drills") as directory, ThreadPoolExecutor(AT_ONCE) as pool:
        if options.together:
            tell(played_together([drill for drill in wanted if alone(drill)], directory / "house"))
        else:
            wanted.sort(key=lambda drill: -drill.seconds)
            list(pool.map(lambda job: tell(played(job[1], directory / str(job[0]))), enumerate(wanted)))
    return outcome.close()


def alone(drill: Drill) -> bool:
    """It needs nothing but a relay as ``relayctl up`` starts it, and ends."""
    return not drill.prometheus and all(line.command != UP for line in drill.lines) and drill.ends


if __name__ == "__main__":
    sys.exit(main())
