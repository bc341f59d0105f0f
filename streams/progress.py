"""How far one shard has been read by a group: everything up to ``reached`` is acknowledged. Pure."""

from __future__ import annotations

from collections import deque


class Progress:
    """Ids in the order of the stream come in by :meth:`give` and :meth:`skip`; they are acknowledged in any order."""

    def __init__(self, reached: str) -> None:
        self.reached = reached
        self._open: deque[str] = deque()  # above `reached`, in order; the first one is given and not acknowledged
        self._unacked: set[str] = set()

    @property
    def unacked(self) -> int:
        return len(self._unacked)

    @property
    def span(self) -> int:
        """How much is remembered: what was given since the first that is open, acknowledged or not."""
        return len(self._open)

    def give(self, id: str) -> None:
        """Handed out, to be acknowledged."""
        self._open.append(id)
        self._unacked.add(id)

    def skip(self, id: str) -> None:
        """Passed over: acknowledged as soon as it is seen. One id stands for all that are done one after the other."""
        if not self._open:
            self.reached = id
        elif self._open[-1] in self._unacked:
            self._open.append(id)
        else:
            self._open[-1] = id

    def ack(self, id: str) -> bool:
        """False when it had been acknowledged before, or was never given."""
        if id not in self._unacked:
            return False
        self._unacked.remove(id)
        while self._open and self._open[0] not in self._unacked:
            self.reached = self._open.popleft()
        return True
