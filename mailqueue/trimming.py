"""Taking old events out of a stream so that no reader passes over them unaware."""

from __future__ import annotations

import asyncio

from mailqueue.scripts import Shard

STEP = 1000  # entries a call: a millisecond or two, for the server does nothing else meanwhile


async def trim(shard: Shard, keep: int, up_to: str = "", at_once: int = 1) -> int:
    """Takes the oldest events out of the stream until ``keep`` are left (-1 = without that bound), none behind the id
    ``up_to`` ("" = any); how many went. ``at_once``: calls under way together, for who has much to take out. Raises
    QueueDown.

    Nobody trims otherwise: the id of the last entry that is gone (``trimmed`` of the shard's meta) tells readers that
    come too late.
    """
    gone = 0
    while step := sum(await asyncio.gather(*(shard.run("trim", [keep, up_to, STEP]) for _ in range(at_once)))):
        gone += int(step)
    return gone


async def trimmed_to(shard: Shard) -> str:
    """Id of the last entry that is gone from the stream, "" = none. Raises QueueDown."""
    found = await shard.command("HGET", shard.prefix + "meta", "trimmed")
    return found.decode() if found else ""
