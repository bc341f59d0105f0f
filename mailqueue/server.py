"""Is this server one that may hold mail? Asked at start, answered with what to change."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from config.schema import redact
from config.settings import QueueSettings
from mailqueue import keys
from mailqueue.errors import QueueDown, QueueRefused, ServerAnswer
from mailqueue.scripts import Shard


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What INFO and CONFIG say; ``config`` is empty where CONFIG is not allowed."""

    version: str
    config: dict[str, str]
    aof_enabled: bool
    evicts: bool


def objections(facts: ServerFacts, durability: str) -> list[str]:
    """Pure: each reason to refuse, as "setting is so; set it so"."""
    found = []
    if not facts.aof_enabled:
        found.append('append-only file is off: set "appendonly yes"')
    if facts.evicts:
        found.append('the server may evict keys under memory pressure: set "maxmemory-policy noeviction"')
    if facts.config.get("no-appendfsync-on-rewrite", "no") != "no":
        found.append('fsync stops while the file is rewritten: set "no-appendfsync-on-rewrite no"')
    fsync = facts.config.get("appendfsync", "always")
    if durability == "always" and fsync != "always":
        found.append(f'appendfsync is {fsync}: set "appendfsync always", or queue.durability = "relaxed"')
    if durability == "relaxed" and fsync == "no":
        found.append('appendfsync is no: set "appendfsync everysec" at least')
    return found


def text_map(answer: list[bytes]) -> dict[str, str]:
    """A flat list of names and values, as text."""
    return {_text(answer[index]): _text(answer[index + 1]) for index in range(0, len(answer), 2)}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def read_facts(shard: Shard) -> ServerFacts:
    info = info_map(await shard.command("INFO", "everything"))
    config: dict[str, str] = {}
    try:
        for name in ("appendfsync", "no-appendfsync-on-rewrite"):
            config.update(text_map(await shard.command("CONFIG", "GET", name)))
    except ServerAnswer:
        config = {}  # CONFIG is renamed or forbidden by ACL: what INFO says must do
    policy = info.get("maxmemory_policy", "noeviction")
    return ServerFacts(info.get("redis_version", "?"), config, info.get("aof_enabled") == "1", policy != "noeviction")


def info_map(answer: bytes) -> dict[str, str]:
    """INFO's lines "name:value"."""
    lines = _text(answer).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


async def inspect_server(shard: Shard, settings: QueueSettings) -> ServerFacts:
    """Raises QueueRefused for a server that would lose mail, or whose queue is of another schema or shard count."""
    try:
        facts = await read_facts(shard)
        found = objections(facts, settings.durability)
        if found:
            raise QueueRefused(f"the queue server at {redact(settings.url)} can't hold mail: " + "; ".join(found))
        if restoring := await shard.command("HGET", keys.prefix(0) + "meta", "restoring"):
            raise QueueRefused(
                f"the queue at {redact(settings.url)} is being restored ({_text(restoring)}). If that was broken off: start "
                "the server on an empty directory and restore again"
            )
        marks = {"schema": str(keys.SCHEMA), "shards": str(settings.shards)}
        for name, wanted in marks.items():
            await shard.command("HSETNX", keys.prefix(0) + "meta", name, wanted)
            there = _text(await shard.command("HGET", keys.prefix(0) + "meta", name))
            if there != wanted:
                raise QueueRefused(
                    f"the queue at {redact(settings.url)} has {name} {there}, this program wants {wanted}; "
                    f"{'set queue.shards = ' + there if name == 'shards' else 'upgrade the other roles first'}"
                )
    except ServerAnswer as answer:
        raise QueueRefused(f"the queue server at {redact(settings.url)} refuses us: {answer}") from answer
    except QueueDown as down:
        raise QueueDown(f"no queue server at {redact(settings.url)}: {down}") from down
    return facts


async def await_server(shard: Shard, settings: QueueSettings, patience: float) -> ServerFacts:
    """:func:`inspect_server`, asked again for ``patience`` seconds while there is no answer."""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return await inspect_server(shard, settings)
        except QueueDown:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(0.1)
