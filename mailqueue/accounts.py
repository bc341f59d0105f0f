"""Accounts kept in the queue: read whole, changed by compare-and-set, watched.

They lie in shard 0's slot as JSON of :class:`AccountSettings`, with what differs from the defaults; a password only as
its argon2id hash. Each record has a revision: who changes one names the revision that was read, so two administrators
do not overwrite each other. A change is on disk when its call returns.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from pydantic import SecretStr

from config.accounts import AccountSettings
from config.schema import fit
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.events import Event
from mailqueue.scripts import FOREIGN, Argument, Shard

LOOK_SECONDS = 3.0  # the version is asked for this often, whatever the channel says
PATIENCE_SECONDS = 10.0  # for an answer; a change whose answer was lost is repeated
_TOKEN_SECONDS = 3600
_PAUSE_SECONDS = 0.2

log = structlog.get_logger("accounts")


@dataclass(frozen=True, slots=True)
class Record:
    account: AccountSettings
    revision: int
    changed_at: int  # ms
    changed_by: str


@dataclass(frozen=True, slots=True)
class Stored:
    """All records by name; `unread` are names whose record this program cannot read, each with why."""

    version: int
    records: tuple[Record, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def accounts(self) -> tuple[AccountSettings, ...]:
        return tuple(record.account for record in self.records)

    def get(self, name: str) -> Record | None:
        return next((record for record in self.records if record.account.name == name), None)


@dataclass(frozen=True, slots=True)
class Change:
    """`account` None removes. `revision` is the one that was read; 0 = there is no such account yet."""

    name: str
    revision: int
    account: AccountSettings | None


class AccountConflict(Exception):
    """Somebody was there first: nothing was changed."""

    def __init__(self, name: str, wanted: int, there: int) -> None:
        why = "there is one already" if not wanted else "it was changed meanwhile" if there else "it is gone"
        super().__init__(f"account {name}: {why}")
        self.name = name


def plain(account: AccountSettings, *, secrets: bool = True) -> dict[str, Any]:
    """As JSON, without what is default; hashes only with ``secrets``."""
    found: dict[str, Any] = account.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for field, value in account:
        if isinstance(value, SecretStr):
            found.pop(field)
            if secrets:
                found[field] = value.get_secret_value()
    return found


class AccountStore:
    """`shard` is number 0; `channel` the same shard on a client whose calls may block (for :meth:`watch`)."""

    def __init__(self, shard: Shard, channel: Shard | None = None) -> None:
        self._shard = shard
        self._channel = channel

    async def read(self) -> Stored:
        """Raises QueueDown."""
        version, *rows = await self._repeat(["read"])
        records, unread = [], []
        for name, row in sorted(zip(rows[::2], rows[1::2], strict=True)):
            record = _record(row)
            if isinstance(record, str):
                unread.append((name.decode(errors="replace"), record))
            else:
                records.append(record)
        return Stored(int(version), tuple(records), tuple(unread))

    async def version(self) -> int:
        return int(await self._shard.command("HGET", self._shard.prefix + "meta", "accounts") or 0)

    async def add(self, account: AccountSettings, by: str) -> int:
        """Raises AccountConflict when the name is taken."""
        return await self.change([Change(account.name, 0, account)], by)

    async def replace(self, old: Record, new: AccountSettings, by: str) -> int:
        """Raises AccountConflict when it was changed since ``old`` was read."""
        return await self.change([Change(old.account.name, old.revision, new)], by)

    async def remove(self, old: Record, by: str) -> int:
        return await self.change([Change(old.account.name, old.revision, None)], by)

    async def change(self, changes: Sequence[Change], by: str, events: Sequence[Event] = ()) -> int:
        """All of them or none, and their ``events`` with them; the version after it. Repeated under one token when an answer is lost.

        Raises AccountConflict, or QueueDown: then whether it was done shows in :meth:`read`.
        """
        if not changes:
            return await self.version()
        words: list[Argument] = ["change", os.urandom(12).hex(), _TOKEN_SECONDS, len(events)]
        words += [event.to_json() for event in events]
        for each in changes:
            what = b"" if each.account is None else orjson.dumps({"by": by, "account": plain(each.account)})
            words += [each.name, each.revision, what]
        answer = await self._repeat(words)
        if answer[0] == b"CONFLICT":
            name = answer[1].decode()
            raise AccountConflict(name, next(c.revision for c in changes if c.name == name), int(answer[2]))
        version = int(answer[0])
        for each in changes:
            done = "removed" if each.account is None else "changed" if each.revision else "added"
            log.info(f"account {done}", account=each.name, by=by, version=version)
        return version

    async def _repeat(self, words: Sequence[Argument]) -> Any:
        clock = asyncio.get_running_loop().time
        deadline = clock() + PATIENCE_SECONDS
        while True:
            try:
                return await self._shard.run("accounts", words)
            except QueueDown:
                if clock() >= deadline:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    # ── watching ───────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self, known: int = -1, look: float = LOOK_SECONDS) -> AsyncIterator[Stored]:
        """All accounts, each time their version is another one than ``known``, for ever. A message on the channel wakes
        it; every ``look`` seconds the version is asked for anyway. A server that is down is waited for."""
        told = asyncio.Event()
        listener = asyncio.create_task(self._listen(told), name="accounts")
        try:
            while True:
                told.clear()
                stored = await self._newer(known)
                if stored is not None:
                    known = stored.version
                    yield stored
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(look):
                        await told.wait()
        finally:
            listener.cancel()
            with suppress(asyncio.CancelledError):
                await listener

    async def _newer(self, known: int) -> Stored | None:
        try:
            return await self.read() if await self.version() != known else None
        except (QueueDown, ServerAnswer) as error:
            log.debug("accounts cannot be read", why=str(error))
            return None

    async def _listen(self, told: asyncio.Event) -> None:
        """Sets ``told`` on every message, and after each new connection: what was said meanwhile was not heard."""
        if self._channel is None:
            return
        while True:
            channel = self._channel.client.pubsub()
            try:
                await channel.subscribe(self._channel.prefix + "accounts")
                while await channel.get_message(timeout=None) is not None:
                    told.set()
            except FOREIGN as error:
                log.debug("account channel lost", why=str(error))
            finally:
                with suppress(Exception):
                    await channel.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(_PAUSE_SECONDS)


def _record(row: bytes) -> Record | str:
    """The record, or why it cannot be read. Keys that a newer program wrote are passed over."""
    try:
        revision, changed_at, what = row.split(b" ", 2)
        data = orjson.loads(what)
        account, problems = fit(AccountSettings, data["account"])
        if account is None:
            return "; ".join(map(str, problems))
        return Record(account, int(revision), int(changed_at), str(data["by"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
