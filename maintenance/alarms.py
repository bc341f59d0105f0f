"""What an operator must look at: on or off, as metric, event, log line and entry in the queue.

Steps of the rounds say :meth:`Alarms.set` each time they look; only a change is told. What is on lies in the queue, so
that it is not told again after a restart, nor by a second maintenance process. An alarm does not make maintenance
unready: /readyz says whether this process works, and it does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import structlog
from prometheus_client import CollectorRegistry, Gauge

from mailqueue.alarms import Alarm, change, raised
from mailqueue.errors import QueueDown
from mailqueue.events import Event
from mailqueue.scripts import Shard

log = structlog.get_logger("maintenance")


class Alarms:
    """``shard``: number 0. Names are words with hyphens, a family's members ``<family>:<whom>``."""

    def __init__(self, shard: Shard, registry: CollectorRegistry) -> None:
        self._shard = shard
        self._gauge = Gauge("tambo_alarm", "1 while an alarm is on, by its name", ["name"], registry=registry)
        self._on: dict[str, Alarm] = {}
        self._unwritten: set[str] = set()  # on by our own sight, and the queue could not be told

    @property
    def on(self) -> Mapping[str, Alarm]:
        """As the queue had them when last asked."""
        return self._on

    async def refresh(self) -> None:
        """Reads those that are on, whoever turned them on. Raises QueueDown."""
        found = await raised(self._shard)
        for name in self._on.keys() - found.keys():
            self._gauge.labels(name).set(0)
        for name in found:
            self._gauge.labels(name).set(1)
        self._on = found

    async def set(self, name: str, on: bool, reason: str = "", count: int = 0) -> None:
        """``reason``: one line, for people. A queue that is away (QueueDown) has the metric and the log all the same."""
        reason = " ".join(reason.split())
        self._gauge.labels(name).set(int(on))
        if self._as_known(name, on, reason, count):
            return
        word = "on" if on else "off"
        at = int(time.time() * 1000)
        event = Event("alarm", at, subject=name, after=word, reason=reason, count=count)
        try:
            changed = await change(self._shard, on, event)
        except QueueDown:
            self._told_alone(name, on, reason, count)
            raise
        said = name in self._unwritten
        if (changed and not said) or (said and not on):
            self._say(name, on, reason, count)
        self._unwritten.discard(name)
        if on:
            since = self._on[name].since if name in self._on else at
            self._on[name] = Alarm(name, since, reason, count)
        else:
            self._on.pop(name, None)

    async def family(self, family: str, found: Mapping[str, tuple[str, int]], *, whole: bool = True) -> None:
        """``<family>:<whom>`` is on for each key of ``found`` (whom → reason, count), and for nobody else; not ``whole``:
        of others this process cannot say."""
        for whom, (reason, count) in found.items():
            await self.set(f"{family}:{whom}", True, reason, count)
        for name in [name for name in self._on if whole and name.startswith(f"{family}:")]:
            if name.removeprefix(f"{family}:") not in found:
                await self.set(name, False)

    def without_queue(self, name: str, on: bool, reason: str = "") -> None:
        """The alarm about the queue itself: metric and log, no event."""
        self._gauge.labels(name).set(int(on))
        self._told_alone(name, on, reason, 0)

    def _as_known(self, name: str, on: bool, reason: str, count: int) -> bool:
        known = self._on.get(name)
        if known is None or not on:
            return (known is not None) == on and name not in self._unwritten
        return (known.reason, known.count) == (reason, count)

    def _told_alone(self, name: str, on: bool, reason: str, count: int) -> None:
        if on and name not in self._unwritten and name not in self._on:
            self._unwritten.add(name)
            self._say(name, on, reason, count)
        elif not on and name in self._unwritten:
            self._unwritten.discard(name)
            self._say(name, on, reason, count)

    def _say(self, name: str, on: bool, reason: str, count: int) -> None:
        tell = log.warning if on else log.info
        tell("alarm", name=name, state="on" if on else "off", reason=reason, count=count)
