"""DATA: content read in bulk, bounded in size, time and in what all sessions hold, then the handler's verdict."""

from __future__ import annotations

import math
from typing import cast

from relayd import replies
from relayd.listener.content import ContentScanner
from relayd.listener.transaction import TransactionVerbs
from relayd.replies import Reply
from relayd.volume import Share


class DataVerb(TransactionVerbs):
    async def smtp_DATA(self, arg: str) -> None:
        refusal = self._check_data(arg)
        if refusal is not None:
            self.say(refusal)
            return
        self.share = Share(self.around.volume)
        try:
            await self._receive()
        finally:
            self.share.let_go()

    async def _receive(self) -> None:
        self.say(replies.SEND_CONTENT)
        began = self.loop.time()
        scanner = ContentScanner(self.size_limit)
        room = await self._read_content(scanner, began)
        if room is None:
            return
        read = self.loop.time()
        self._ended(await self._deliver(scanner) if room else replies.NO_ROOM, began, read)

    def _ended(self, reply: Reply, began: float, read: float) -> None:
        """The transaction's last reply; loop times of the content's first and last octet."""
        metrics, done = self.around.metrics, self.loop.time()
        metrics.read_data.observe(read - began)
        metrics.process_data.observe(done - read)
        metrics.transaction.observe(done - self.began)
        self._set_post_data_state()
        self.say(reply)
        if reply.code == 250:
            self._errors = 0  # a client that gets mail through is no guesser

    def _check_data(self, arg: str) -> Reply | None:
        assert self.session is not None and self.envelope is not None
        if not self.session.host_name:
            return replies.HELLO_FIRST
        if self.envelope.mail_from is None:
            return replies.MAIL_FIRST
        if not self.envelope.rcpt_tos:
            return replies.RCPT_FIRST
        if self.in_chunks:
            return replies.CHUNKS_BEGUN
        if arg:
            return replies.NO_ARGUMENT
        return replies.NO_ROOM if self.around.volume.total >= self.around.settings.max_data_bytes else None

    async def _read_content(self, scanner: ContentScanner, began: float) -> bool | None:
        """None when the input ended or took too long, False when there was no room for all of it and it was dropped.
        Progress moves the idle limit, never the total one."""
        settings, room = self.around.settings, True
        last = began + settings.data_seconds
        self.in_content = True
        buffer = self._input._buffer
        while True:
            ended = scanner.feed(buffer)
            if room and not self.share.hold(scanner.held, settings.max_data_bytes):
                scanner.drop()
                room = False
            if ended:
                break
            deadline = min(self.loop.time() + settings.idle_seconds, last)
            if not await self._more(deadline, replies.CONTENT_TOO_SLOW):
                return None
        self.in_content = False
        self._input._maybe_resume_transport()
        self._deadline = math.inf
        if self.around.tap.on:
            self.overheard().hear(self.account_name, "C", f"({scanner.received} octets of content)")
        return room or scanner.too_big  # that it is too big for ever goes before

    async def _deliver(self, scanner: ContentScanner) -> Reply:
        assert self.envelope is not None
        if scanner.too_big:
            self.around.handler.rejected(self, self.envelope, replies.TOO_BIG)
            return replies.TOO_BIG
        self.envelope.content = scanner.content
        return cast(Reply, await self._call_handler_hook("DATA"))
