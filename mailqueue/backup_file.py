"""A copy of the queue as a file: a head that says of what and when, the server's RDB file compressed, a checksum.

Layout: ``TAMBO-QUEUE-COPY 1\\n`` · length of the head (4 bytes, big-endian) · head (JSON) · zstd frame of the RDB file ·
``TAMBOEND`` · SHA-256 of all before it. It holds mail and password hashes: made with mode 0600, and under its name only
when it is whole and on disk. Blocking.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import orjson
import zstandard

FORMAT = 1
_MAGIC = b"TAMBO-QUEUE-COPY %d\n" % FORMAT
_END = b"TAMBOEND"
_TAIL_BYTES = len(_END) + 32
_MOST_HEAD = 1024 * 1024
_PIECE = 1024 * 1024
LEVEL = 3


class CopyDamaged(Exception):
    """The file is no copy, or not as it was written; the text says which."""


@dataclass(frozen=True, slots=True)
class Head:
    """``at``: Unix ms by the server's clock when the copy was asked for; ``newest``: shard → last event at that time (the
    copy may hold some more)."""

    schema: int
    shards: int
    at: int
    newest: Mapping[str, str]
    host: str
    server: str
    version: str

    @classmethod
    def read(cls, text: bytes) -> Self:
        try:
            said = orjson.loads(text)
            return cls(**{name: said[name] for name in cls.__slots__})
        except (ValueError, KeyError, TypeError) as error:
            raise CopyDamaged(f"its head can't be read: {error}") from None


class Writer:
    """``with Writer(path, head) as file: file.write(…); file.finish()``. Without finish nothing stays. FileExistsError for
    a name that is taken."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._head = head
        self._sum = hashlib.sha256()
        self._done = False

    def __enter__(self) -> Self:
        if self._path.exists():
            raise FileExistsError(f"{self._path} is there already")
        try:
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            why = "is there: another copy is being made, or one was broken off; remove it then"
            raise FileExistsError(f"{self._part} {why}") from None
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        text = orjson.dumps(asdict(self._head))
        self._put(_MAGIC + len(text).to_bytes(4, "big") + text)
        self._pack = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
        return self

    def write(self, piece: bytes) -> None:
        self._put(self._pack.compress(piece))

    def finish(self) -> int:
        """On disk under its name when this returns; the size."""
        self._put(self._pack.flush())
        self._file.write(_END + self._sum.digest())
        size = self._file.tell()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self._part, self._path)
        self._done = True
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return size

    def _put(self, data: bytes) -> None:
        self._sum.update(data)
        self._file.write(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._done:
            self._file.close()
            with suppress(FileNotFoundError):
                self._part.unlink()


def read_head(path: Path) -> Head:
    """Raises CopyDamaged, OSError."""
    with path.open("rb") as file:
        return _head(file)[0]


def verify(path: Path, take: Callable[[bytes], object] | None = None) -> Head:
    """Reads all of it, checks every byte, and hands the RDB file to ``take`` piece by piece: to be believed only when this
    returns. Raises CopyDamaged, OSError."""
    with path.open("rb") as file:
        head, begin = _head(file)
        checksum = hashlib.sha256(begin)
        left = path.stat().st_size - len(begin) - _TAIL_BYTES
        unpack = zstandard.ZstdDecompressor().decompressobj()
        first = b""
        while left > 0:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise CopyDamaged("it ends too early")
            left -= len(piece)
            checksum.update(piece)
            try:
                data = unpack.decompress(piece)
            except zstandard.ZstdError as error:
                raise CopyDamaged(f"its content is damaged: {error}") from None
            first = first or data[:8]
            if take is not None:
                take(data)
        tail = file.read()
        if tail[: len(_END)] != _END or tail[len(_END) :] != checksum.digest():
            raise CopyDamaged("its checksum does not hold: it is cut short or was changed")
        if not first.startswith((b"REDIS", b"VALKEY")):
            raise CopyDamaged("what it holds is no RDB file")
    return head


def _head(file: BinaryIO) -> tuple[Head, bytes]:
    """The head, and the bytes up to its end."""
    begin = file.read(len(_MAGIC) + 4)
    if not begin.startswith(_MAGIC[:17]):
        raise CopyDamaged("it is no copy of a queue")
    if not begin.startswith(_MAGIC):
        raise CopyDamaged(f"it has another format than {FORMAT}, which this program knows")
    length = int.from_bytes(begin[-4:], "big")
    text = file.read(length) if length <= _MOST_HEAD else b""
    if len(text) != length or not length:
        raise CopyDamaged("its head is cut short")
    return Head.read(text), begin + text
