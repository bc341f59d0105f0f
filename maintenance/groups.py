"""Groups of consumers: how far each is behind, an alarm for those that are too far, and who is forgotten."""

from __future__ import annotations

import socket

import structlog
from prometheus_client import CollectorRegistry, Gauge

from config.settings import StreamSettings
from mailqueue.events import Event
from mailqueue.queue import Queue
from maintenance.alarms import Alarms
from streams.groups import Group, Groups
from streams.lag import Lag, lags

log = structlog.get_logger("maintenance")


class GroupWatch:
    """There are at most :data:`streams.groups.MOST_GROUPS` groups, so the metrics are bounded."""

    def __init__(self, queue: Queue, alarms: Alarms, registry: CollectorRegistry) -> None:
        self._queue = queue
        self._alarms = alarms
        self._groups = Groups(queue.shards[0])
        labels = ["group"]
        self._events = Gauge(
            "tambo_stream_lag_events",
            "Events a group has not acknowledged, estimated beyond 500",
            labels,
            registry=registry,
        )
        self._seconds = Gauge(
            "tambo_stream_lag_seconds", "Age of the first event a group has not acknowledged", labels, registry=registry
        )
        self._shown: set[str] = set()

    async def look(self, settings: StreamSettings) -> None:
        """Raises QueueDown."""
        now = await self._queue.shards[0].time()  # as all times of groups, whatever the host's clock says
        groups = []
        for group in await self._groups.all():
            if now - max(group.read, group.until) / 1000 > settings.group_expire_seconds:
                await self._forget(group, now, settings.group_expire_seconds)
            else:
                groups.append(group)
        found = await lags(self._queue.shards, groups, int(now * 1000))
        self._show({group.name: found[group.name] for group in groups})
        behind = {
            group.name: (_reason(group, now), found[group.name].events)
            for group in groups
            if found[group.name].seconds > settings.lag_alarm_seconds
        }
        await self._alarms.family("stream-lag", behind)

    def _show(self, found: dict[str, Lag]) -> None:
        for name, lag in found.items():
            self._events.labels(name).set(lag.events)
            self._seconds.labels(name).set(lag.seconds)
        for name in self._shown - found.keys():
            self._events.remove(name)
            self._seconds.remove(name)
        self._shown = set(found)

    async def _forget(self, group: Group, now: float, seconds: float) -> None:
        event = Event(
            kind="audit",
            at=int(now * 1000),
            actor=f"maintenance@{socket.gethostname()}",
            verb="streams forget",
            subject=group.name,
            reason=f"nobody has read for more than {seconds:.0f} s",
            before=group.plain(),
        )
        if await self._groups.forget(group, int((now - seconds) * 1000), event):
            log.warning("group forgotten", group=group.name, owner=group.owner, read=group.read)


def _reason(group: Group, now: float) -> str:
    """The same from one look to the next while nothing changes."""
    who = f"{group.holder} reads" if group.holder and group.until > now * 1000 else "nobody reads"
    return f"group {group.name} of {group.owner} is too far behind; {who}"
