"""The protocol of a connection's first moment: counts it, turns it away or hands it to a session.

A refused connection costs a counter and one line, not a session (which is ten times dearer).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import cast

from relayd import replies
from relayd.listener.connection import Connection
from relayd.metrics import ListenerMetrics
from relayd.replies import Reply


class Census:
    """Open connections, in all and by address. One for all listeners of a process."""

    def __init__(self) -> None:
        self.total = 0
        self._by_address: Counter[str] = Counter()

    def join(self, address: str, most: int, most_per_address: int) -> Reply | None:
        """Count the connection in, or the refusal."""
        if self.total >= most:
            return replies.TOO_MANY_CONNECTIONS
        if self._by_address[address] >= most_per_address:
            return replies.TOO_MANY_FROM_ADDRESS
        self.total += 1
        self._by_address[address] += 1
        return None

    def leave(self, address: str) -> None:
        self.total -= 1
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]


def plain_address(peer: object) -> str:
    """The peer's IP address without port and zone, IPv4 where it is one in IPv6 clothes."""
    text = str(peer[0]) if isinstance(peer, tuple) and peer else "0.0.0.0"  # noqa: S104 - no bind
    if ":" not in text:
        return text
    parsed = ipaddress.IPv6Address(text.partition("%")[0])
    return str(parsed.ipv4_mapped or parsed)


class Gate(asyncio.Protocol):
    """`admit(address)` counts and says None or a refusal; `build(address)` makes the session."""

    def __init__(
        self,
        admit: Callable[[str], Reply | None],
        build: Callable[[str], Connection],
        metrics: ListenerMetrics,
    ) -> None:
        self._admit = admit
        self._build = build
        self._metrics = metrics

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        address = plain_address(transport.get_extra_info("peername"))
        refusal = self._admit(address)
        if refusal is not None:
            self._metrics.connections_denied.inc()
            self._metrics.rejected(refusal.reason)
            transport.write(refusal.line)
            transport.close()
            return
        session = self._build(address)
        transport.set_protocol(session)
        session.connection_made(transport)
