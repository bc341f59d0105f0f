"""What arrived and is not yet in its Maildir: one file, appended to before the 250, unpacked when there is time.

Making files costs ten times what accepting does. A record is a line of JSON (name, folder, size) and the octets; a torn
last one, of a process that was killed, is cut off at the next start: nobody was told that it had arrived.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import orjson


class Spool:
    """One writer, any thread that unpacks; not shared between processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._read = 0  # where the next record to be unpacked begins
        self._end = self._whole()
        os.ftruncate(self._file, self._end)

    @property
    def empty(self) -> bool:
        return not self._lines and self._read == self._end

    def add(self, folder: str, name: str, data: bytes) -> None:
        """Not on file before :meth:`flush`."""
        head = {"folder": folder, "name": name, "size": len(data)}
        self._lines += (orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE), data)

    def flush(self) -> None:
        """Everything added so far into the file; OSError when the disk is full."""
        if not self._lines:
            return
        data = memoryview(b"".join(self._lines))
        self._lines.clear()
        with self._lock:
            self._end += len(data)
            while data:
                data = data[os.write(self._file, data) :]

    def first(self) -> tuple[str, str, bytes] | None:
        """(folder, name, octets) of the oldest record; None when there is none, and the file is empty again."""
        with self._lock:
            if self._read == self._end:
                if self._end:
                    os.ftruncate(self._file, 0)
                    self._read = self._end = 0
                return None
            head, start = self._head(self._read)
            return str(head["folder"]), str(head["name"]), os.pread(self._file, int(head["size"]), start)

    def drop(self) -> None:
        """The oldest record has been unpacked."""
        with self._lock:
            head, start = self._head(self._read)
            self._read = start + int(head["size"])

    def close(self) -> None:
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1

    def _head(self, at: int) -> tuple[dict[str, int | str], int]:
        """A record's first line, and where its octets begin; ValueError when it is torn."""
        line, newline, _ = os.pread(self._file, 4096, at).partition(b"\n")
        if not newline:
            raise ValueError("torn")
        return orjson.loads(line), at + len(line) + 1

    def _whole(self) -> int:
        """The end of the last whole record."""
        at, size = 0, os.fstat(self._file).st_size
        while at < size:
            try:
                head, start = self._head(at)
                end = start + int(head["size"])
            except (ValueError, KeyError, TypeError):
                return at
            if end > size:
                return at
            at = end
        return at
