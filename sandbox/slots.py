"""How many connections each source holds to each site, exactly: a slot counts from accept until 221 or EOF.

An accept may be seen before the EOF of a connection that the peer closed earlier. So before a new peak (or a broken
limit) is believed, the kernel is asked which of the counted connections have ended already.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[str, str]  # (site, source)
_ENDED = frozenset((6, 7, 8, 9, 11))  # tcpi_state: TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK CLOSING


@dataclass(eq=False, slots=True)
class Slot:
    """One connection's claim; ``gone`` tells whether the peer has closed already."""

    key: Key
    number: int
    gone: Callable[[], bool]


@dataclass(slots=True)
class Slots:
    """All open connections by (site, source), and the most there ever were at once."""

    peaks: dict[Key, int] = field(default_factory=dict)
    _open: dict[Key, set[Slot]] = field(default_factory=dict)

    def take(self, slot: Slot, limit: int = 0) -> int:
        """Count a new connection; returns how many are open now, this one included."""
        held = self._open.setdefault(slot.key, set())
        held.add(slot)
        peak = self.peaks.get(slot.key, 0)
        if len(held) > peak or (limit and len(held) > limit):
            for ended in [other for other in held if other is not slot and other.gone()]:
                held.discard(ended)
        self.peaks[slot.key] = max(peak, len(held))
        return len(held)

    def give(self, slot: Slot) -> None:
        """The connection has ended; a second call changes nothing."""
        held = self._open.get(slot.key)
        if held is not None:
            held.discard(slot)
            if not held:
                del self._open[slot.key]

    def open(self, key: Key) -> list[int]:
        """Numbers of the connections that hold a slot now."""
        return sorted(slot.number for slot in self._open.get(key, ()))

    @property
    def total(self) -> int:
        return sum(len(held) for held in self._open.values())


def peer_has_closed(descriptor: int) -> bool:
    """Whether the kernel has seen the peer's FIN or RST on this TCP socket, read or not."""
    if descriptor < 0:
        return True
    try:
        view = socket.socket(fileno=descriptor)
    except OSError:
        return True
    try:
        return view.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED
    except OSError:
        return True
    finally:
        view.detach()
