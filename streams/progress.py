"""How far one shard has been read by a group: everything up to ``reached`` is acknowledged. Pure."""

from __future__ import annotations

from collections import deque


class Progress:
    """Ids in the order of the stream come in by :meth:`give` and :meth:`skip`; they are acknowledged in any order."""

    def __init__(self, reached: str) -> None:
        self.reached = reached
        self._open: deque[str] = deque()  # given or skipped above `reached`, in order
        self._unacked: set[str] = set()

    @property
    def unacked(self) -> int:
        return len(self._unacked)

    def give(self, id: str) -> None:
        """Handed out, to be acknowledged."""
        self._open.append(id)
        self._unacked.add(id)

    def skip(self, id: str) -> None:
        """Passed over: acknowledged as soon as it is seen."""
        if self._open:
            self._open.append(id)
        else:
            self.reached = id

    def ack(self, id: str) -> bool:
        """False when it had been acknowledged before, or was never given."""
        if id not in self._unacked:
            return False
        self._unacked.remove(id)
        while self._open and self._open[0] not in self._unacked:
            self.reached = self._open.popleft()
        return True
