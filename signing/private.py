"""Files that their owner alone may read: how they are read and written. OSError and ValueError name the file."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read(path: Path) -> bytes:
    """ValueError when group or others may do anything with it, or when it is another user's.

    Root's process also takes what belongs to the owner of the directory, since operators look after a service's keys
    as root. A credential that systemd gave to this process is taken as it is.
    """
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{path}: is no regular file")
        if not _is_credential(path):
            _refuse_shared(path, facts)
        return file.read()


def _refuse_shared(path: Path, facts: os.stat_result) -> None:
    if facts.st_mode & _OTHERS:
        mode = stat.S_IMODE(facts.st_mode)
        raise ValueError(f"{path}: mode {mode:04o} lets others at a private key; run: chmod 600 {path}")
    user = os.geteuid()
    owners = {0, user} if user else {0, path.parent.stat().st_uid}
    if facts.st_uid not in owners:
        raise ValueError(
            f"{path}: belongs to user {facts.st_uid}; run: chown {min(owners - {0}, default=0)} {path} && "
            f"chmod 600 {path}"
        )


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces the file whole and on disk, with its directory if need be (mode 0700).

    What root writes belongs to the owner of the directory: the service must be able to read what was made for it.
    """
    _make_directory(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _give(file.fileno(), path.parent)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=0o700)
    folder = os.open(path, os.O_RDONLY)
    try:
        _give(folder, path.parent)
    finally:
        os.close(folder)


def _give(descriptor: int, directory: Path) -> None:
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _is_credential(path: Path) -> bool:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and path.resolve().is_relative_to(Path(str(directory)).resolve())
