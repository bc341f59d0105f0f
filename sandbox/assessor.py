"""Looks at what arrived, after it was accepted: SPF, DKIM and DMARC into each copy's header and into the ledger.

Verifying a message costs ten times what accepting it does, so it waits until the sandbox has been quiet for a moment,
or until somebody asks for that mail. What nobody asks for during a load test is never looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from sandbox import mailbox
from sandbox.dmarc import Suffixes
from sandbox.judge import Verdicts, judge
from sandbox.ledger import Ledger
from sandbox.mailbox import Mail
from sandbox.maildir import Store
from sandbox.spf import Lookup

QUIET_SECONDS = 0.25


class Assessor:
    """``lookup`` is the sandbox's own DNS."""

    def __init__(self, store: Store | None, ledger: Ledger, lookup: Lookup, suffixes: Suffixes) -> None:
        self._store = store
        self._ledger = ledger
        self._lookup = lookup
        self._suffixes = suffixes
        self._noted = 0.0
        self._task: asyncio.Task[None] | None = None

    def note(self) -> None:
        """Mail arrived just now."""
        loop = asyncio.get_running_loop()
        self._noted = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())

    def judge(self, content: bytes, source: str, reverse_path: str, helo: str) -> Verdicts:
        """At once, before the reply: for hosts that refuse by the verdict."""
        return judge(self._lookup, self._suffixes, content, source, reverse_path, helo)

    def assessed(self, path: Path) -> Mail:
        """What a copy says of itself, looked at now if nobody has before."""
        mail = mailbox.read(path)
        if mail.spf or self._store is None:
            return mail
        data = path.read_bytes()
        at = mailbox.top(data)
        if at < 0:
            return mail
        verdicts = self.judge(mailbox.content(data), mail.source, mail.reverse_path, mail.helo)
        field = verdicts.field(mail.host, mail.reverse_path, mail.helo)
        self._store.replace(path, data[:at] + field.encode("ascii") + data[at:])
        self._ledger.verdict(mail.id, mail.domain, mail.message_id, verdicts.words())
        return mailbox.read(path)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        """One mail after the other, as long as nothing arrives."""
        loop, store = asyncio.get_running_loop(), self._store
        while store is not None:
            calm = self._noted + QUIET_SECONDS - loop.time()
            if calm > 0:
                await asyncio.sleep(calm)
                continue
            if not store.fresh and not store.unpack(most=1):
                return
            path = store.fresh.popleft()
            with contextlib.suppress(FileNotFoundError):  # somebody tidies up
                self.assessed(path)
            self._ledger.flush()
            await asyncio.sleep(0)
