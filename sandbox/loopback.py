"""Sockets on loopback and nowhere else, and one free port on several addresses at once."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from types import TracebackType

_ATTEMPTS = 32


def require_loopback(address: str) -> str:
    """The address itself; ValueError for any that is not loopback, names included."""
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"the sandbox binds loopback addresses only, and {address!r} is none")
    return address


def bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking socket bound to a loopback address, not yet listening; OSError when taken."""
    require_loopback(address)
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    try:
        made.setblocking(False)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


class Attempt:
    """One try at binding a set of sockets; when it fails all of them are closed, and so is a taken free port."""

    def __init__(self, port: int, last: bool) -> None:
        self.port = port
        self.done = False
        self._last = last or port != 0
        self._sockets: list[socket.socket] = []

    def hold(self, made: socket.socket) -> None:
        self._sockets.append(made)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if error is None:
            self.done = True
            return False
        for made in self._sockets:
            made.close()
        return isinstance(error, OSError) and error.errno == errno.EADDRINUSE and not self._last


class EphemeralPort:
    """``for attempt in EphemeralPort(port): with attempt: …`` until one attempt binds everything (port 0 = any)."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __iter__(self) -> Iterator[Attempt]:
        for number in range(_ATTEMPTS):
            attempt = Attempt(self._port, last=number == _ATTEMPTS - 1)
            yield attempt
            if attempt.done:
                return
