"""Sockets that the service manager opened for us (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

FIRST = 3  # descriptors are handed down from here on
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def inherited_sockets(
    environ: MutableMapping[str, str] = os.environ, first: int = FIRST
) -> list[tuple[str, socket.socket]]:
    """(FileDescriptorName, listening socket), in order; [] when there are none for this process.

    The variables are removed: nobody below us is meant. ValueError: a descriptor that is no listening TCP socket.
    """
    said = {name: environ.pop(name, "") for name in _VARIABLES}
    if said["LISTEN_PID"] != str(os.getpid()) or not said["LISTEN_FDS"].isdigit():
        return []
    count = int(said["LISTEN_FDS"])
    names = said["LISTEN_FDNAMES"].split(":") if said["LISTEN_FDNAMES"] else []
    names += ["unknown"] * (count - len(names))
    found: list[tuple[str, socket.socket]] = []
    try:
        for number, name in zip(range(first, first + count), names, strict=False):
            found.append((name, _listening(number, name)))
    except BaseException:
        for _, one in found:
            one.close()
        raise
    return found


def _listening(number: int, name: str) -> socket.socket:
    what = f"descriptor {number} ({name}) of the service manager"
    try:
        one = socket.socket(fileno=number)
    except OSError as error:
        raise ValueError(f"{what} is no socket: {error.strerror}") from None
    accepts = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
    if not accepts or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        one.close()
        raise ValueError(f"{what} is no listening TCP socket; write ListenStream=address:port and Accept=no")
    os.set_inheritable(number, False)
    one.setblocking(False)
    return one
