"""Putting a copy of the queue into an empty server: what is copied as it was, what is made anew, what is left behind.

Workers, tickets, turns and leases are of the past and left behind. Messages are put on hold by lua/restore.lua; all that
nobody else knows (accounts, quotas, idempotency markers, suspensions, groups of consumers, returned mail …) is copied key
by key through plain commands, so that the servers may be of different versions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mailqueue.errors import QueueRefused
from mailqueue.scripts import FOREIGN, Argument, Shard, translated
from mailqueue.server import text_map

PAGE = 500
EPOCHS_APART = 1_000_000  # given after the copy was made and unknown here: never given again
_ANEW = (b"m:", b"n:", b"s:", b"b:", b"d:", b"f:")
_ANEW_WHOLE = (b"x", b"dr", b"bd", b"hold", b"flow", b"poison")
_LEFT = (b"q:", b"r:", b"lf:", b"v:", b"g:", b"w:", b"lease:", b"ac:")
_LEFT_WHOLE = (
    *(
        b"w",
        b"dead",
        b"workers",
        b"put",
        b"settled",
        b"lanes",
        b"processes",
        b"alarms",
        b"archived",
        b"weight",
        b"meta",
    ),
)
How = Literal["anew", "left", "copied"]
Place = Literal["queued", "held", "in flight", "marked"]


def how(key: bytes) -> How:
    """What becomes of a key of the copy. A key that this program does not know is copied."""
    if key.startswith((b"events:{q", b"{rep}")):  # events are copied apart; limits begin anew
        return "left"
    brace = key.find(b"}:")
    if not key.startswith(b"{q") or brace < 0 or not key[2:brace].isdigit():
        return "copied"
    rest = key[brace + 2 :]
    if rest in _ANEW_WHOLE or rest.startswith(_ANEW):
        return "anew"
    return "left" if rest in _LEFT_WHOLE or rest.startswith(_LEFT) else "copied"


@dataclass(frozen=True, slots=True)
class Open:
    """One recipient that goes on hold. ``event`` held, as JSON."""

    item: bytes
    destination: str
    state: bytes
    event: bytes


@dataclass(frozen=True, slots=True)
class Restored:
    """One message; ``open`` empty: only its DSN is still to be composed, from ``records`` at ``records_due`` (ms)."""

    id: str
    value: bytes
    flow: str
    look_at: int
    dictionary: bytes
    dictionary_bytes: bytes
    recipients: int
    open: tuple[Open, ...]
    records: tuple[bytes, ...] = ()
    records_due: int = 0

    def arguments(self) -> list[Argument]:
        words: list[Argument] = [self.id, self.value, self.flow, self.look_at, self.dictionary, self.dictionary_bytes]
        words += [self.recipients, len(self.open)]
        for one in self.open:
            words += [one.item, one.destination, one.state, one.event]
        return [*words, len(self.records), *self.records, self.records_due]


async def put_back(shard: Shard, messages: Sequence[Restored]) -> int:
    """How many were not there yet. Raises QueueDown, ServerAnswer ("OOM …" when there is no memory for them)."""
    words: list[Argument] = [len(messages)]
    for message in messages:
        words += message.arguments()
    return int(await shard.run("restore", words))


# ── the target ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def refuse_unless_empty(shards: Sequence[Shard]) -> None:
    """QueueRefused says what lies there. What every program writes as it opens a queue does not count."""
    found = int(await shards[0].command("DBSIZE"))
    meta = text_map(await shards[0].command("HGETALL", shards[0].prefix + "meta"))
    if found == int(bool(meta)) and set(meta) <= {"schema", "shards"}:
        return
    _, some = await shards[0].command("SCAN", 0, "COUNT", 20)
    names = ", ".join(key.decode("ascii", "backslashreplace") for key in sorted(some)[:5])
    raise QueueRefused(
        f"the queue server is not empty: {found} keys ({names} …). A copy goes into an empty one only: stop all processes "
        "of the relay, start the server on an empty directory (keep the old one), and restore before anything else starts"
    )


async def begin(shard: Shard, what: str) -> None:
    """From now on no other program opens this queue."""
    await shard.command("HSET", shard.prefix + "meta", "restoring", what)


async def end(shard: Shard) -> None:
    await shard.command("HDEL", shard.prefix + "meta", "restoring")


# ── copying ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def scan(shard: Shard, pattern: str = "*") -> AsyncIterator[list[bytes]]:
    """Keys of the whole server, page by page, each once if nobody writes."""
    cursor: Any = 0
    while True:
        cursor, page = await shard.command("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        if page:
            yield page
        if int(cursor) == 0:
            return


async def copy_keys(source: Shard, target: Shard) -> int:
    """Everything that is copied as it was, once for the whole server; how many keys."""
    count = 0
    async for page in scan(source):
        mine = [key for key in page if how(key) == "copied"]
        kinds = await _together(source, [("TYPE", key) for key in mine])
        strings = [key for key, kind in zip(mine, kinds, strict=True) if kind == b"string"]
        await _copy_strings(source, target, strings)
        for key, kind in zip(mine, kinds, strict=True):
            if kind not in (b"string", b"none"):  # none: its time was over
                await _copy(source, target, key, kind.decode())
        count += len(mine)
    return count


async def _together(shard: Shard, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """One round trip and one sync for many commands of a server that nobody else uses."""
    async with shard.client.pipeline(transaction=False) as pipe:
        for words in commands:
            pipe.execute_command(*words)
        try:
            return list(await pipe.execute())
        except FOREIGN as error:
            raise translated(error) from error


async def _copy_strings(source: Shard, target: Shard, names: Sequence[bytes]) -> None:
    values = await _together(source, [("GET", key) for key in names])
    times = await _together(source, [("PTTL", key) for key in names])
    writes: list[tuple[Argument, ...]] = []
    for key, value, left in zip(names, values, times, strict=True):
        if value is not None and left != -2:
            writes.append(("SET", key, value, "PX", max(left, 1)) if left >= 0 else ("SET", key, value))
    await _together(target, writes)


async def copy_meta(source: Shard, target: Shard) -> None:
    """What the shard knows of itself. Numbers that were given after the copy was made must not be given again."""
    meta = text_map(await source.command("HGETALL", source.prefix + "meta"))
    for name in ("schema", "shards", "trimmed"):
        meta.pop(name, None)
    for name in ("epoch", "accounts", "stops"):
        meta[name] = str(int(meta.get(name, 0)) + EPOCHS_APART)
    await target.command("HSET", target.prefix + "meta", *(word for pair in meta.items() for word in pair))
    for group in await target.command("SMEMBERS", target.prefix + "groups"):
        await target.command("HINCRBY", target.prefix.encode() + b"gr:" + group, "epoch", EPOCHS_APART)


async def copy_events(source: Shard, target: Shard, after: str) -> int:
    """Events of the copy behind a stream id, under their ids."""
    return await _copy_stream(source, target, source.events.encode(), after)


async def _copy_stream(source: Shard, target: Shard, key: bytes, after: str = "") -> int:
    count, start = 0, f"({after}" if after else "-"
    while rows := await source.command("XRANGE", key, start, "+", "COUNT", PAGE):
        await _together(target, [("XADD", key, place, *fields) for place, fields in rows])
        count += len(rows)
        start = f"({rows[-1][0].decode()}"
    return count


async def _copy(source: Shard, target: Shard, key: bytes, kind: str) -> None:
    match kind:
        case "list":
            await _words(target, "RPUSH", key, await source.command("LRANGE", key, 0, -1))
        case "stream":
            await _copy_stream(source, target, key)
        case "hash" | "set" | "zset":
            await _members(source, target, key, kind)
        case _:
            raise QueueRefused(f"{key.decode(errors='replace')} is a {kind}, which this program does not know")
    left = int(await source.command("PTTL", key))
    if left >= 0:
        await target.command("PEXPIRE", key, max(left, 1))


async def _members(source: Shard, target: Shard, key: bytes, kind: str) -> None:
    read, write = {"hash": ("HSCAN", "HSET"), "set": ("SSCAN", "SADD"), "zset": ("ZSCAN", "ZADD")}[kind]
    cursor: Any = 0
    while True:
        cursor, page = await source.command(read, key, cursor, "COUNT", PAGE)
        if kind == "zset":
            page = [word for member, score in zip(page[::2], page[1::2], strict=True) for word in (score, member)]
        await _words(target, write, key, page)
        if int(cursor) == 0:
            return


async def _words(target: Shard, verb: str, key: bytes, words: Sequence[bytes]) -> None:
    for first in range(0, len(words), 2 * PAGE):
        await target.command(verb, key, *words[first : first + 2 * PAGE])


# ── what the copy holds ────────────────────────────────────────────────────────────────────────────────────────────


async def places(shard: Shard) -> dict[bytes, Place]:
    """Where each item lay. ``in flight``: in a worker's hands; ``marked``: behind the final dot of an item that must not go
    out twice. About 200 bytes of memory each."""
    found: dict[bytes, Place] = {}
    async for page in scan(shard, shard.prefix + "[qw]:*"):
        for key in page:
            await _place(shard, key, found)
    for item in await shard.command("HKEYS", shard.prefix + "hold"):
        found[item] = "held"
    return found


async def _place(shard: Shard, key: bytes, found: dict[bytes, Place]) -> None:
    rest = key[len(shard.prefix) :]
    if rest.startswith(b"q:"):
        for item in await shard.command("ZRANGE", key, 0, -1):
            found[item] = "queued"
    elif rest.startswith(b"w:"):
        rows = await shard.command("HGETALL", key)
        for item, stamp in zip(rows[::2], rows[1::2], strict=True):
            if item != b"#":
                found[item] = "marked" if stamp.count(b"\n") > 2 else "in flight"


async def message_ids(shard: Shard) -> list[str]:
    skip = len(shard.prefix) + 2
    return [key[skip:].decode() async for page in scan(shard, shard.prefix + "m:*") for key in page]


async def notices(shard: Shard) -> dict[str, int]:
    """Messages with DSN records, and when they are due (ms)."""
    rows = await shard.command("ZRANGE", shard.prefix + "bd", 0, -1, "WITHSCORES")
    return {name.decode(): int(float(due)) for name, due in zip(rows[::2], rows[1::2], strict=True)}
