"""BDAT (RFC 3030): content in counted chunks, under the same bounds as DATA's.

The octets of a chunk are always taken off the input, refused or not, so that content is never read as commands;
where that cannot be done (no count, or one beyond reason) the connection ends.
"""

from __future__ import annotations

import math
import re
from typing import cast

from relayd import replies
from relayd.listener.data import DataVerb
from relayd.replies import Reply
from relayd.volume import Share

MOST_SKIPPED = 4  # times max_message_bytes: a larger chunk is not read to its end
_CHUNK = re.compile(r"([0-9]{1,20})(?: +(LAST))?", re.IGNORECASE)


class Chunks:
    """Content so far. ``began``: loop time of the first chunk."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.kept = bytearray()

    def whole(self) -> bytes:
        """All of it, with the line end that the last line may lack; a lone CR or LF there will become one."""
        if self.kept and self.kept[-1] not in b"\r\n":
            self.kept += b"\r\n"
        return bytes(self.kept)


class BdatVerb(DataVerb):
    _chunks: Chunks | None = None

    @property
    def in_chunks(self) -> bool:
        return self._chunks is not None

    async def smtp_BDAT(self, arg: str) -> None:
        found = _CHUNK.fullmatch(arg)
        if found is None:
            self.hang_up(replies.BDAT_SYNTAX)  # whatever follows may be content
            return
        size = int(found[1])
        if size > MOST_SKIPPED * self.around.settings.max_message_bytes:
            self.hang_up(replies.CHUNK_TOO_BIG)
            return
        refusal = self._check_bdat(size)
        if refusal is None and self._chunks is None:
            self._chunks = Chunks(self.loop.time())
            self.share = Share(self.around.volume)
            self.content_until = self._chunks.began + self.around.settings.data_seconds
        kept = await self._read_chunk(size, keep=refusal is None)
        if kept is None:
            return
        if refusal is None and not kept:
            refusal = replies.NO_ROOM
        if refusal is not None:
            self._refuse_chunks(refusal)
        elif found[2]:
            await self._end_chunks()
        else:
            self.say(replies.chunk(size))

    def _check_bdat(self, size: int) -> Reply | None:
        assert self.session is not None and self.envelope is not None
        if not self.session.extended_smtp or not self.session.host_name:
            return replies.HELLO_FIRST
        if self.envelope.mail_from is None:
            return replies.MAIL_FIRST
        if not self.envelope.rcpt_tos:
            return replies.RCPT_FIRST
        held = len(self._chunks.kept) if self._chunks is not None else 0
        if held + size > self.size_limit:
            return replies.TOO_BIG
        settings = self.around.settings
        return replies.NO_ROOM if not held and self.around.volume.total >= settings.max_data_bytes else None

    async def _read_chunk(self, size: int, *, keep: bool) -> bool | None:
        """Take `size` octets off the input. None when they did not come, False when some could not be kept."""
        settings = self.around.settings
        last = self.content_until if self._chunks is not None else self.loop.time() + settings.data_seconds
        buffer, chunks = self._input._buffer, self._chunks if keep else None
        self.in_content = True
        while True:
            taken = min(size, len(buffer))
            if taken and chunks is not None:
                if self.share.hold(len(chunks.kept) + taken, settings.max_data_bytes):
                    with memoryview(buffer) as view:
                        chunks.kept += view[:taken]
                else:
                    chunks = None
            del buffer[:taken]
            size -= taken
            self._input._maybe_resume_transport()
            if not size:
                break
            if not await self._more(min(self.loop.time() + settings.idle_seconds, last), replies.CONTENT_TOO_SLOW):
                return None
        self.in_content = False
        self._deadline = math.inf
        return chunks is not None

    def _refuse_chunks(self, reply: Reply) -> None:
        """The transaction is over: a later chunk that is under way already must not pass for the whole (§4.2)."""
        assert self.envelope is not None
        if reply is replies.TOO_BIG:
            self.around.handler.rejected(self, self.envelope, reply)
        self._set_post_data_state()
        self.say(reply)

    async def _end_chunks(self) -> None:
        assert self._chunks is not None and self.envelope is not None
        self.content_until = math.inf
        began, read = self._chunks.began, self.loop.time()
        self.envelope.content = self._chunks.whole()
        self._chunks.kept = bytearray()
        reply = cast(Reply, await self._call_handler_hook("DATA"))
        self._ended(reply, began, read)

    # -- letting go -----------------------------------------------------------------------------------------------

    def _set_post_data_state(self) -> None:
        self._drop_chunks()
        super()._set_post_data_state()

    def connection_lost(self, error: Exception | None) -> None:
        self._drop_chunks()
        super().connection_lost(error)

    def _drop_chunks(self) -> None:
        if self._chunks is not None:
            self._chunks = None
            self.content_until = math.inf
            self.share.let_go()
