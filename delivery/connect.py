"""From an address to a connected socket, bound to the source; and the one error an opening session raises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Literal

from delivery.reply import Phase, Reply

# Linux ≥ 4.2, missing in the socket module: bind chooses no port, connect does. Without it one source has about
# 28 000 ports in all instead of per next hop, and EADDRINUSE looks like a dead source.
IP_BIND_ADDRESS_NO_PORT = 24

Kind = Literal["refused", "timeout", "address_in_use", "address_gone", "reply", "lost", "tls", "auth", "dns"]

# Ours, and passing: no free port or descriptor. Neither the source nor the host is to blame.
_EXHAUSTED = {errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}


class SessionFailed(Exception):
    """No session came about. ``kind`` says whom to blame, ``phase`` where, ``reply`` what the peer said, if it did.

    refused: no connection to that address · timeout · address_in_use: no free port or descriptor here, now ·
    address_gone: the source is not an address of this machine · reply: the peer said no · lost: the peer hung up or
    broke the protocol · tls: STARTTLS missing though required, or broken ·
    auth: a smarthost does not know us · dns: for callers that resolve.
    """

    def __init__(self, kind: Kind, phase: Phase, text: str, reply: Reply | None = None) -> None:
        super().__init__(f"{phase}: {text}")
        self.kind: Kind = kind
        self.phase = phase
        self.text = text
        self.reply = reply


async def connect(address: str, port: int, source: str | None, timeout: float) -> socket.socket:
    """A connected non-blocking socket. Raises SessionFailed with one of the first four kinds, phase CONNECT."""
    loop = asyncio.get_running_loop()
    opened: socket.socket | None = None
    try:
        opened = _bound(address, source)
        async with asyncio.timeout(timeout):
            await loop.sock_connect(opened, (address, port))
        return opened
    except BaseException as error:
        if opened is not None:
            opened.close()
        if isinstance(error, TimeoutError) and not error.errno:  # ours; the kernel's ETIMEDOUT carries its number
            raise SessionFailed("timeout", Phase.CONNECT, f"no connection within {timeout:g} s") from None
        if isinstance(error, OSError):
            raise SessionFailed(_kind(error), Phase.CONNECT, _said(error)) from error
        raise


def _bound(address: str, source: str | None) -> socket.socket:
    if source is not None and (":" in source) != (":" in address):
        raise SessionFailed("refused", Phase.CONNECT, f"{address} cannot be reached from {source}")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if source is None:
        return made
    with contextlib.suppress(OSError):  # another kernel: more ports are used up, nothing else changes
        made.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    try:
        made.bind((source, 0))  # never SO_REUSEADDR: two sockets must not share a port by accident
    except OSError as error:
        made.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL):
            raise SessionFailed("address_gone", Phase.CONNECT, f"{source}: {error.strerror}") from error
        raise
    return made


def _said(error: OSError) -> str:
    """The system's words; the loop's would show its arguments."""
    return os.strerror(error.errno) if error.errno else str(error)


def _kind(error: OSError) -> Kind:
    if error.errno == errno.ETIMEDOUT:
        return "timeout"
    # After a good bind, connect's EADDRNOTAVAIL means that the source has no port left towards this next hop.
    if error.errno in _EXHAUSTED or error.errno == errno.EADDRNOTAVAIL:
        return "address_in_use"
    return "refused"
