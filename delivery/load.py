"""What one process has under way – sessions, items, their bytes – and how much more it may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from config.settings import DeliverySettings
from mailqueue.message import QueueItem


class Load:
    def __init__(self, settings: DeliverySettings) -> None:
        self.settings = settings
        self.sessions = self.items = self.bytes = 0
        self._weights: dict[bytes, int] = {}  # item → its share of the bytes

    def free_sessions(self) -> int:
        return self.settings.max_sessions - self.sessions

    def ample_sessions(self) -> bool:
        """Half of them are free: room for what is a guess."""
        return 2 * self.sessions <= self.settings.max_sessions

    def free_items(self) -> int:
        return self.settings.max_in_flight - self.items if self.free_bytes() > 0 else 0

    def free_bytes(self) -> int:
        return self.settings.max_in_flight_bytes - self.bytes

    def claimed(self, items: Sequence[QueueItem]) -> None:
        """Recipients of one message share its bytes."""
        sharing = Counter(id(item.message) for item in items)
        for item in items:
            self._weights[item.key] = len(item.message.content) // sharing[id(item.message)]
            self.bytes += self._weights[item.key]
        self.items += len(items)

    def settled(self, item: QueueItem) -> None:
        self.items -= 1
        self.bytes -= self._weights.pop(item.key, 0)
