"""What is suspended, and what of it keeps a recipient waiting: the rules of lua/prelude.lua (flow_stop) and lua/due.lua,
read only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mailqueue.inspect import FOR_EVER
from mailqueue.scripts import Shard
from mailqueue.selection import Flow, hash_pages

ROUTE = "route:"
# How the relay itself begins a reason: of a destination that it cannot reach by MX, of a smarthost route.
BY_RELAY = ("mx: ", "relay: ")


@dataclass(frozen=True, slots=True)
class Stop:
    """``until`` Unix ms, 0 = until resumed."""

    key: str
    until: int
    reason: str
    by_relay: bool

    @classmethod
    def read(cls, key: str, value: bytes) -> Stop:
        until, _, reason = value.decode(errors="replace").partition(" ")
        prefix = next((one for one in BY_RELAY if reason.startswith(one)), "")
        moment = int(float(until))
        return cls(key, moment if moment < FOR_EVER else 0, reason.removeprefix(prefix), bool(prefix))

    def holds(self, now: int) -> bool:
        return self.until == 0 or self.until > now

    @property
    def of_mx(self) -> bool:
        """Says nothing to mail that goes by its sender's smarthost."""
        return self.by_relay and self.key.startswith("destination:")


async def stops(shard: Shard) -> dict[str, Stop]:
    """All but destinations, by key. Raises QueueDown."""
    return {
        key.decode(): Stop.read(key.decode(), value) async for rows in hash_pages(shard, "stop") for key, value in rows
    }


async def suspended(shard: Shard, destinations: Collection[str]) -> dict[str, Stop]:
    """Those of the destinations that are, by name. Raises QueueDown."""
    wanted = list(destinations)
    if not wanted:
        return {}
    values = await shard.command("HMGET", shard.prefix + "sus", *wanted)
    return {one: Stop.read(f"destination:{one}", value) for one, value in zip(wanted, values, strict=True) if value}


async def some_suspended(shards: Sequence[Shard], most: int) -> list[Stop]:
    """Up to ``most`` destinations that are suspended, whichever come first. Raises QueueDown."""
    found: dict[str, Stop] = {}
    for shard in shards:
        async for rows in hash_pages(shard, "sus"):
            for name, value in rows:
                found.setdefault(name.decode(), Stop.read(f"destination:{name.decode()}", value))
            if len(found) >= most:
                return list(found.values())[:most]
    return list(found.values())


def over(
    flow: Flow, destination: str, group: str, stopped: Mapping[str, Stop], sus: Mapping[str, Stop], now: int
) -> list[Stop]:
    """All that keep the flow's mail for the destination waiting. Pure."""
    by_sender = flow.pool.startswith(ROUTE)
    keys = [f"flow:{flow.id}", f"account:{flow.account}", f"campaign:{flow.account}/{flow.campaign}"]
    keys.append(f"provider:{group}")
    if group.startswith(ROUTE):
        keys.append(group)
    elif by_sender:
        keys.append(flow.pool)
    found = [stopped[key] for key in keys if key in stopped]
    there = sus.get(destination)
    if there is not None and not (there.of_mx and by_sender):
        found.append(there)
    return [stop for stop in found if stop.holds(now)]


def sources(stopped: Mapping[str, Stop], addresses: Sequence[str], now: int) -> list[Stop]:
    """Which of our addresses may not send."""
    found = (stopped.get(f"source:{address}") for address in addresses)
    return [stop for stop in found if stop is not None and stop.holds(now)]
