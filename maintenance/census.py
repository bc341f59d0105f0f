"""How much is queued, by provider and class: counted flow by flow, so that the server is not held up for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from mailqueue import keys
from mailqueue.inspect import flows
from mailqueue.scripts import Shard

MOST = 20_000  # destinations of a lane that are counted; what lies beyond counts as the default's
Lane = tuple[str, str]  # provider group, class


class Census:
    """What is in workers' hands or on hold is counted as the group "default", in which nobody looks for it."""

    def __init__(self, shards: Sequence[Shard], registry: CollectorRegistry) -> None:
        self._shards = shards
        self._gauge = Gauge(
            "tambo_queued", "Recipients not yet final, by provider and class", ["provider", "class"], registry=registry
        )
        self._seen: set[Lane] = {("default", class_) for class_ in keys.CLASS_LETTER}
        self.last: Counter[Lane] = Counter()

    async def take(self) -> Counter[Lane]:
        """Raises QueueDown."""
        found: Counter[Lane] = Counter()
        for shard in self._shards:
            found += await self._of(shard)
        for lane in self._seen - found.keys():
            self._gauge.labels(*lane).set(0)
        for lane, count in found.items():
            self._gauge.labels(*lane).set(count)
        self._seen |= found.keys()
        self.last = found
        return found

    async def _of(self, shard: Shard) -> Counter[Lane]:
        open_: Counter[str] = Counter()
        for flow in await flows(shard):
            open_[flow.class_] += flow.open
        found: Counter[Lane] = Counter()
        for group in sorted(word.decode() for word in await shard.command("SMEMBERS", shard.prefix + "lanes")):
            for letter, class_ in keys.CLASS_NAME.items():
                if group != "default":
                    found[group, class_] += await self._in_lane(shard, f"{letter}:{group}")
        for class_, count in open_.items():
            others = sum(number for (_, of), number in found.items() if of == class_)
            found["default", class_] = max(count - others, 0)
        return found

    async def _in_lane(self, shard: Shard, lane: str) -> int:
        count = queues = 0
        for flow in await shard.command("ZRANGE", f"{shard.prefix}lf:{lane}", 0, -1):
            items, looked = await shard.run("census", [lane, flow, MOST - queues])
            count += int(items)
            queues += int(looked)
            if queues >= MOST:
                break
        return count
