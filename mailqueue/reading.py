"""Reading stored messages: dictionaries fetched as needed, messages with several recipients kept between claims."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import structlog

from mailqueue.content import Decoder, envelope_end, unpack_envelope
from mailqueue.message import Envelope, Message
from mailqueue.scripts import Shard

ENVELOPE_BYTES = 2048  # of a stored message that are read at first: most envelopes are shorter
CACHE_BYTES = 64 * 1024 * 1024

log = structlog.get_logger("queue")


async def envelopes(shard: Shard, ids: Sequence[str]) -> dict[str, Envelope]:
    """Of those that are there and can be read; their content is left where it is. Raises QueueDown."""
    wanted = list(dict.fromkeys(ids))
    asked = [("GETRANGE", f"{shard.prefix}m:{one}", 0, ENVELOPE_BYTES - 1) for one in wanted]
    values = dict(zip(wanted, await shard.commands(asked), strict=True))
    longer = [one for one, value in values.items() if len(value) == ENVELOPE_BYTES < envelope_end(value)]
    asked = [("GETRANGE", f"{shard.prefix}m:{one}", 0, envelope_end(values[one]) - 1) for one in longer]
    values |= zip(longer, await shard.commands(asked), strict=True)
    found = {}
    for message_id, value in values.items():
        try:
            if value:
                found[message_id] = unpack_envelope(message_id, value)
        except ValueError as error:
            log.error("message damaged", id=message_id, why=str(error))
    return found


class Reader:
    """One shard's messages, as one worker sees them."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._decoder = Decoder()
        self._cache: OrderedDict[str, Message] = OrderedDict()
        self._cached = 0

    async def decode(self, message_id: str, value: bytes) -> Message:
        """ValueError when it is damaged, QueueDown when its dictionary can't be had now."""
        dictionary = self._decoder.lacks(value)
        if dictionary is not None:
            stored = await self._shard.command("GET", self._shard.prefix.encode() + b"d:" + dictionary)
            if stored is None:
                raise ValueError(f"dictionary {dictionary.hex()} is gone")
            self._decoder.add(dictionary, stored)
        return self._decoder.decode(message_id, value)

    async def read(self, wanted: Collection[str], values: dict[str, bytes]) -> dict[str, Message]:
        """Message by id: from ``values`` where it came along, else from the cache or the server; damaged ones lack."""
        found: dict[str, Message] = {}
        for message_id in wanted:
            message = self._cache.get(message_id)
            if message is not None:
                self._cache.move_to_end(message_id)
                found[message_id] = message
        missing = [message_id for message_id in wanted if message_id not in found and message_id not in values]
        if missing:
            names = (f"{self._shard.prefix}m:{message_id}" for message_id in missing)
            fetched = zip(missing, await self._shard.command("MGET", *names), strict=True)
            values = values | {message_id: value for message_id, value in fetched if value}
        for message_id, value in values.items():
            try:
                message = await self.decode(message_id, value)
            except ValueError as error:
                log.error("message damaged", id=message_id, why=str(error))
                continue
            found[message_id] = message
            if message_id in missing:
                self._remember(message_id, message)
        return found

    def _remember(self, message_id: str, message: Message) -> None:
        self._cache[message_id] = message
        self._cached += len(message.content)
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached -= len(old.content)
