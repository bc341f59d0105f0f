"""What is being made durable, and who waits for it: a client that goes cancels nothing, a fault of ours is said once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

import structlog

from mailqueue.errors import QueueDown
from relayd.volume import Share

_TEXT_LIMIT = 320
Verdict = TypeVar("Verdict")

log = structlog.get_logger()


class Commits(Generic[Verdict]):
    """One per process; commits under way outlive their sessions."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Verdict]] = set()

    async def outcome(self, commit: Coroutine[Any, Any, Verdict], share: Share) -> Verdict | None:
        """The verdict, or None when the fault is ours, whatever it was: the client may try again. ``share`` is held until
        the commit is over."""
        task = asyncio.get_running_loop().create_task(commit)
        self._under_way.add(task)
        share.keep_until(task)
        task.add_done_callback(self._over)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            session = asyncio.current_task()
            if not task.cancelled() or (session is not None and session.cancelling()):
                raise
            return None  # it was the commit that was cancelled, and the client still waits
        except Exception:  # said by _over
            return None

    def _over(self, task: asyncio.Task[Verdict]) -> None:
        """Keeps the set small and looks at the outcome, so that nothing is lost in silence when nobody waits."""
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, QueueDown):
            log.warning("queue down", text=str(error)[:_TEXT_LIMIT])
        elif error is not None:
            log.error("commit failed", exc_info=error)

    async def settle(self, timeout: float) -> bool:
        """Wait for commits whose clients may have gone; False when some are still under way after `timeout` seconds."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=timeout)
        return not self._under_way
