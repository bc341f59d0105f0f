"""Alarms that are on, kept in the queue: they outlive the process that found them, and are said once by however many.

Hash ``alarms`` of shard 0: name → "<since, ms> <count> <reason>".
"""

from __future__ import annotations

from dataclasses import dataclass

from mailqueue.events import Event
from mailqueue.scripts import Argument, Shard


@dataclass(frozen=True, slots=True)
class Alarm:
    """``count``: of what the alarm is about (items, events, seconds), 0 = nothing to count."""

    name: str
    since: int  # ms
    reason: str
    count: int


async def raised(shard: Shard) -> dict[str, Alarm]:
    """Those that are on, by name. Raises QueueDown."""
    rows = await shard.command("HGETALL", shard.prefix + "alarms")
    found = {}
    for name, value in sorted(zip(rows[::2], rows[1::2], strict=True)):
        since, count, reason = value.decode().split(" ", 2)
        found[name.decode()] = Alarm(name.decode(), int(since), reason, int(count))
    return found


async def change(shard: Shard, on: bool, event: Event) -> bool:
    """Whether it was not so before, which ``event`` (``subject`` = the name, ``reason``, ``count``) then says.

    Raises QueueDown: carried out or not, and harmless to repeat.
    """
    words: list[Argument] = [event.subject, int(on), event.count, event.reason, event.to_json()]
    return bool(await shard.run("alarm", words))
