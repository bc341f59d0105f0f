"""Taking old events out of a stream so that no reader passes over them unaware."""

from __future__ import annotations

from mailqueue.scripts import Shard

STEP = 1000  # entries a call: a millisecond or two, for the server does nothing else meanwhile


async def trim(shard: Shard, keep: int, up_to: str = "") -> int:
    """Takes the oldest events out of the stream until ``keep`` are left (-1 = without that bound), none behind the id
    ``up_to`` ("" = any); how many went. Raises QueueDown.

    Nobody trims otherwise: the id of the last entry that is gone (``trimmed`` of the shard's meta) tells readers that
    come too late.
    """
    gone = 0
    while step := int(await shard.run("trim", [keep, up_to, STEP])):
        gone += step
    return gone


async def trimmed_to(shard: Shard) -> str:
    """Id of the last entry that is gone from the stream, "" = none. Raises QueueDown."""
    found = await shard.command("HGET", shard.prefix + "meta", "trimmed")
    return found.decode() if found else ""
