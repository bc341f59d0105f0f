"""System calls of running processes, on one clock: attach strace, read what it wrote."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import program

_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)", re.DOTALL)  # process ids are padded to five columns
_BEGIN = re.compile(r"(\w+)\((.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_END = re.compile(r"\) += (-?\d+).* <(\d+\.\d+)>$")
_FILE = re.compile(r"\d+<([^>]*)>")
_UNFINISHED = "<unfinished ...>"


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that returned; times are Unix seconds, ``text`` its arguments as strace prints them."""

    process: int  # or thread
    name: str
    began: float
    ended: float
    result: int
    text: str

    @property
    def file(self) -> str:
        """Path of the first argument's descriptor; "socket:[…]" and the like for what has none."""
        found = _FILE.match(self.text)
        return found[1] if found else ""


class Strace:
    """``with Strace(file, pids, calls):`` the named calls of these processes and all their threads go to the file.

    Entered when strace is attached to all of them. Needs the right to trace (root, or one's own processes where
    the kernel allows it): else RuntimeError with strace's words.
    """

    def __init__(self, file: Path, pids: Sequence[int], calls: Sequence[str]) -> None:
        self.file = file
        self._pids = {str(pid) for pid in pids}
        command = [str(program("strace")), "-f", "-ttt", "-T", "-y", "-s", "4000000", "-e", f"trace={','.join(calls)}"]
        self._command = [*command, "-o", str(file), *(word for pid in pids for word in ("-p", str(pid)))]
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Strace:
        self._child = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._child.stderr is not None
        said = []
        while self._pids:
            line = self._child.stderr.readline()
            said.append(line)
            if not line:
                raise RuntimeError(f"strace ended: {''.join(said)}")
            attached = re.search(r"Process (\d+) attached", line)
            if attached:
                self._pids.discard(attached[1])
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child is not None and self._child.stderr is not None
        self._child.send_signal(signal.SIGINT)
        self._child.stderr.read()
        self._child.wait(30)
        self._child.stderr.close()


def calls(lines: Iterator[str]) -> Iterator[Call]:
    """From the lines of ``strace -f -ttt -T``: each call when it returned; what never returned is left out."""
    under_way: dict[str, tuple[str, float, str]] = {}
    for line in lines:
        found = _LINE.fullmatch(line.rstrip("\n"))
        if not found:
            continue
        process, at, rest = found[1], float(found[2]), found[3]
        resumed = _RESUMED.fullmatch(rest)
        begin = _BEGIN.fullmatch(rest)
        if resumed:
            name, began, text = under_way.pop(process, (resumed[1], 0.0, ""))
            end = _END.search(resumed[2])
            if end and began:
                yield Call(int(process), name, began, at, int(end[1]), text + resumed[2][: end.start()])
        elif begin and rest.endswith(_UNFINISHED):
            under_way[process] = (begin[1], at, begin[2].removesuffix(_UNFINISHED))
        elif begin:
            end = _END.search(begin[2])
            if end:
                took = float(end[2])
                yield Call(int(process), begin[1], at, at + took, int(end[1]), begin[2][: end.start()])
