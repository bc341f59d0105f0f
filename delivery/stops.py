"""Sources that operators have stopped, as the queue's shards tell them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from delivery.pool import Source
from mailqueue.worker import Worker


class SourceStops:
    """Read anew from a shard when its version of the stops has changed."""

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}
        self._until: dict[int, dict[str, int]] = {}  # shard → source → until, Unix ms (0 = until resumed)

    async def note(self, worker: Worker, version: int) -> bool:
        """Whether anything has changed. Raises QueueDown."""
        shard = worker.shard.number
        if self._versions.get(shard) == version:
            return False
        stops = await worker.stops()
        sources = {key.removeprefix("source:"): until for key, until in stops.items() if key.startswith("source:")}
        self._versions[shard] = version
        changed = self._until.get(shard, {}) != sources
        self._until[shard] = sources
        return changed

    def now(self) -> Collection[str]:
        """Sources that may not send now."""
        moment = time.time() * 1000
        stops = [stop for shard in self._until.values() for stop in shard.items()]
        return {source for source, until in stops if until == 0 or until > moment} if stops else ()

    def silent(self, pools: Mapping[str, Sequence[Source]]) -> list[str]:
        """Pools all of whose sources are stopped: their flows wait in the queue."""
        stopped = self.now()
        if not stopped:
            return []
        return [name for name, all_ in pools.items() if all(one.address in stopped for one in all_ if one.weight)]
