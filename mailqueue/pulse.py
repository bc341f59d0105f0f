"""Whether the server answers, asked though nobody puts: a relay without mail must know it, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.scripts import Shard

EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 2.0  # for the answers of all shards

log = structlog.get_logger("queue")


class Pulse:
    """One PING a second to each shard; `felt` is what the last round found, so at most three seconds old. Each of `also`
    is asked in each round."""

    def __init__(self, shards: Sequence[Shard], *also: Callable[[], Awaitable[object]]) -> None:
        self._shards = shards
        self._also = also
        self._task: asyncio.Task[None] | None = None
        self.felt = True  # who opens a queue has just had answers

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._beat(), name="pulse")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _beat(self) -> None:
        while True:
            why = await self._ask()
            if self.felt and why:
                log.warning("queue server does not answer", why=why)
            elif why == "" and not self.felt:
                log.info("queue server answers again")
            self.felt = not why
            await asyncio.sleep(EVERY_SECONDS)

    async def _ask(self) -> str:
        """ "" when all answer. A server that reads its file says LOADING, which is no answer to build on."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for shard in self._shards:
                    await shard.command("PING")
                for ask in self._also:
                    await ask()
        except (QueueDown, ServerAnswer, TimeoutError) as error:
            return str(error) or "no answer in time"
        return ""
