"""Load from Postfix's smtp-source, and its smtp-sink as a next hop that keeps what it got on disk."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import TOOLS, Process

START = b"X-Client-Addr: "  # first line of each message in a dump
_RECIPIENT = re.compile(rb"^X-Rcpt-Args: <([^>]*)>", re.MULTILINE)
_QUEUE_ID = re.compile(rb"\sby (?!smtp-sink)\S+ (?:\(\S+\) )?with \S+ id ([A-Za-z0-9]+)[;\s]")
_MESSAGE_ID = re.compile(rb"^Message-Id: *(\S+)", re.MULTILINE | re.IGNORECASE)
_HEAD = 4096  # octets of a message in which its header section ends
_UNPRIVILEGED = "uucp"  # smtp-sink gives up root and wants to know for whom


@dataclass(frozen=True, slots=True)
class Submission:
    """What smtp-source is to send: ``numbered`` makes recipients 1u@…, 2u@…, each once."""

    messages: int
    recipient: str
    sessions: int = 20
    octets: int = 10240
    numbered: bool = True
    reuse: bool = False

    def command(self, address: str) -> list[str]:
        numbered = ["-N"] if self.numbered else []
        reuse = ["-d"] if self.reuse else []
        figures = ["-s", str(self.sessions), "-m", str(self.messages), "-l", str(self.octets)]
        ends = ["-f", "load@entidad.test", "-t", self.recipient]
        return [str(program("smtp-source")), *figures, *numbered, *reuse, *ends, address]


def program(name: str) -> Path:
    """From ``make tools``, else the host's; RuntimeError says what to do."""
    found = TOOLS / name if (TOOLS / name).exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"no {name} here: run make tools")
    return Path(found)


def submit(what: Submission, address: str, seconds: float = 1800.0) -> float:
    """Seconds until each message had its 250. Raises CalledProcessError for the first reply of another kind."""
    started = time.monotonic()
    subprocess.run(what.command(address), check=True, timeout=seconds, capture_output=True)
    return time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Received:
    """One mail transaction in a dump: ``queue_id`` is the relay's, from its Received field ("" = none there)."""

    recipients: tuple[str, ...]
    queue_id: str
    message_id: str
    octets: int


class Sink:
    """``with Sink(directory, "127.0.2.250", port) as sink:`` smtp-sink, appending all mail to one file."""

    def __init__(self, directory: Path, address: str, port: int) -> None:
        self.folder = directory / "sink"
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o777)
        for parent in (directory, *directory.parents[:-2]):  # smtp-sink gives up root and must still get there
            if parent.stat().st_uid == os.geteuid():
                parent.chmod(parent.stat().st_mode | 0o001)
        self.dump = self.folder / "dump"
        self.address = f"{address}:{port}"
        user = ["-u", _UNPRIVILEGED] if os.geteuid() == 0 else []
        command = [str(program("smtp-sink")), *user, "-m", "1000", "-D", str(self.dump), self.address, "1000"]
        self.process = Process("sink", command, directory / "sink.log")

    def __enter__(self) -> Sink:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.running:
            self.process.stop()

    def size(self) -> int:
        try:
            return self.dump.stat().st_size
        except FileNotFoundError:
            return 0

    def await_messages(self, count: int, octets: int, patience: float = 120.0) -> float:
        """When (monotonic) ``count`` messages of at least ``octets`` were there; RuntimeError after ``patience``
        seconds without a new one."""
        size, moved = self.size(), time.monotonic()
        while True:
            now = time.monotonic()
            if size >= count * octets and self.count() >= count:
                return now
            if now - moved > patience:
                raise RuntimeError(f"{self.count()} of {count} messages arrived, then none for {patience:.0f} s")
            time.sleep(0.02)
            before, size = size, self.size()
            if size != before:
                moved = now

    def count(self) -> int:
        return sum(1 for _ in self._starts())

    def received(self) -> Iterator[Received]:
        """Every transaction on file, in order."""
        starts = [*self._starts(), self.size()]
        if len(starts) == 1:
            return
        with self.dump.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            for start, end in pairwise(starts):
                head = text[start : min(end, start + _HEAD)]
                queue_id, message_id = _QUEUE_ID.search(head), _MESSAGE_ID.search(head)
                yield Received(
                    tuple(found.decode() for found in _RECIPIENT.findall(head)),
                    queue_id[1].decode() if queue_id else "",
                    message_id[1].decode() if message_id else "",
                    end - start,
                )

    def _starts(self) -> Iterator[int]:
        return _starts(self.dump)


def contents(dump: Path) -> Iterator[bytes]:
    """Each message of a dump as it arrived, CRLF line ends, with smtp-sink's own fields on top."""
    starts = [*_starts(dump), dump.stat().st_size]
    with dump.open("rb") as file:
        for start, end in pairwise(starts):
            file.seek(start)
            yield file.read(end - start).replace(b"\n", b"\r\n")


def _starts(dump: Path) -> Iterator[int]:
    """Where each message begins. Read, not mapped: smtp-sink is writing."""
    mark = b"\n" + START
    kept, base = b"\n", -1  # as if a line had ended before the first byte
    try:
        file = dump.open("rb")
    except FileNotFoundError:
        return
    with file:
        while block := file.read(1 << 20):
            text = kept + block
            at = text.find(mark)
            while at >= 0:
                yield base + at + 1
                at = text.find(mark, at + 1)
            kept = text[1 - len(mark) :]
            base += len(text) - len(kept)


def numbered(what: Submission) -> Counter[str]:
    """The recipients that smtp-source makes for ``numbered``, each once."""
    return Counter(f"{number}{what.recipient}" for number in range(1, what.messages + 1))
