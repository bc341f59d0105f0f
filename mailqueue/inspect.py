"""Looking at the queue without touching it: what relayctl shows and the metrics count."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mailqueue import content, keys
from mailqueue.message import Envelope, State, domain_of
from mailqueue.scripts import Shard
from mailqueue.server import text_map
from mailqueue.worker import unpack_state

FOR_EVER = 2_900_000_000_000_000  # the "until" of a destination that waits for a word (lua/stop.lua)


@dataclass(frozen=True, slots=True)
class FlowFacts:
    shard: int
    id: str
    class_: str
    account: str
    campaign: str
    pool: str
    open: int  # recipients not yet final
    done: int
    since: int  # ms


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over all shards; ``due_now`` = lanes with something due."""

    flows: tuple[FlowFacts, ...]
    messages: int
    in_flight: int
    held: int
    notices: int
    workers: dict[str, float]  # name → seconds of lease left
    stops: dict[str, str]
    suspended: int  # destinations
    lanes: dict[str, int]  # lane → flows in it
    events: int

    @property
    def open(self) -> int:
        return sum(flow.open for flow in self.flows)


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """Where one recipient's item lies: queued (due at ``due`` ms) · in flight · held · final."""

    index: int
    recipient: str
    place: str
    due: int
    state: State


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def flows(shard: Shard) -> list[FlowFacts]:
    names = {
        name: flow
        for name, flow in text_map(await shard.command("HGETALL", shard.prefix + "flow")).items()
        if "\n" in name
    }
    rows = [("HMGET", f"{shard.prefix}f:{flow}", "open", "done", "since") for flow in names.values()]
    found = []
    for (name, flow), facts in zip(names.items(), await shard.commands(rows), strict=True):
        if facts[0] is None:  # emptied just now
            continue
        letter, account, campaign, pool = name.split("\n")
        class_ = keys.CLASS_NAME[letter]
        numbers = (int(facts[0]), int(facts[1]), int(float(facts[2])))
        found.append(FlowFacts(shard.number, flow, class_, account, campaign, pool, *numbers))
    return found


async def campaigns(shards: Sequence[Shard]) -> dict[str, set[str]]:
    """Account → its campaigns with mail in the queue. Raises QueueDown."""
    found: dict[str, set[str]] = {}
    for shard in shards:
        for name in await shard.command("HKEYS", shard.prefix + "flow"):
            words = _text(name).split("\n")
            if len(words) == 4 and words[2]:
                found.setdefault(words[1], set()).add(words[2])
    return found


async def summary(shards: Sequence[Shard]) -> Summary:
    """Raises QueueDown."""
    all_flows: list[FlowFacts] = []
    counts = dict.fromkeys(("x", "hold", "bd", "sus"), 0)
    workers: dict[str, float] = {}
    stops: dict[str, str] = {}
    lanes: dict[str, int] = {}
    in_flight = events = 0
    for shard in shards:
        prefix = shard.prefix
        all_flows += await flows(shard)
        for name, verb in (("x", "ZCARD"), ("hold", "HLEN"), ("bd", "ZCARD"), ("sus", "HLEN")):
            counts[name] += int(await shard.command(verb, prefix + name))
        names = text_map(await shard.command("HGETALL", prefix + "workers"))
        leases = await shard.command("ZRANGE", prefix + "w", 0, -1, "WITHSCORES")
        for at in range(0, len(leases), 2):
            epoch = _text(leases[at])
            left = float(leases[at + 1]) / 1000 - time.time()
            workers[f"{names.get(epoch, '?')} #{epoch}/{shard.number}"] = left
            in_flight += max(int(await shard.command("HLEN", f"{prefix}w:{epoch}")) - 1, 0)
        stops.update(text_map(await shard.command("HGETALL", prefix + "stop")))
        for group in await shard.command("SMEMBERS", prefix + "lanes"):
            for letter in keys.CLASS_NAME:
                lane = f"{letter}:{_text(group)}"
                size = int(await shard.command("ZCARD", f"{prefix}lf:{lane}"))
                if size:
                    lanes[lane] = lanes.get(lane, 0) + size
        events += int(await shard.command("XLEN", shard.events))
    return Summary(
        tuple(all_flows),
        counts["x"],
        in_flight,
        counts["hold"],
        counts["bd"],
        workers,
        stops,
        counts["sus"],
        lanes,
        events,
    )


async def suspension(shard: Shard, key: str) -> dict[str, object] | None:
    """What suspends ``key`` (as in :meth:`Queue.suspend`): until when (ms, 0 = until resumed) and why. Raises QueueDown."""
    domain = key.removeprefix("destination:")
    name, field = ("sus", domain) if domain != key else ("stop", key)
    value = await shard.command("HGET", shard.prefix + name, field)
    if value is None:
        return None
    until, _, reason = _text(value).partition(" ")
    return {"until": int(until) if int(until) < FOR_EVER else 0, "reason": reason}


async def find(shards: Sequence[Shard], message_id: str) -> tuple[Shard, Envelope] | None:
    """The shard and envelope of a message that is not yet final."""
    shard = shards[keys.shard_of(message_id, len(shards))]
    value = await shard.command("GET", f"{shard.prefix}m:{message_id}")
    return (shard, content.unpack_envelope(message_id, value)) if value else None


async def items(shard: Shard, envelope: Envelope) -> list[ItemFacts]:
    name = keys.flow_name(envelope)
    flow = _text(await shard.command("HGET", shard.prefix + "flow", name) or b"")
    epochs = [e for index in ("w", "dead") for e in await shard.command("ZRANGE", shard.prefix + index, 0, -1)]
    found = []
    for index, recipient in enumerate(envelope.recipients):
        key = keys.item(envelope.id, index)
        state = unpack_state(await shard.command("GET", shard.prefix.encode() + b"s:" + key) or b"")
        queue = f"{shard.prefix}q:{flow}:{domain_of(recipient)}"
        due = await shard.command("ZSCORE", queue, key)
        if due is not None:
            place = "queued"
        elif await shard.command("HEXISTS", shard.prefix + "hold", key):
            place = "held"
        elif [e for e in epochs if await shard.command("HEXISTS", f"{shard.prefix}w:{_text(e)}", key)]:
            place = "in flight"
        else:
            place = "final"
        found.append(ItemFacts(index, recipient, place, int(float(due or 0)), state))
    return found
