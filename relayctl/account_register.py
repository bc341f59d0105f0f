"""All accounts, as a verb of ``relayctl account`` finds and changes them: those of the file, which it cannot change,
and those of the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import typer

from config import check
from config.accounts import AccountSettings
from config.load import Loaded
from config.schema import Problem, nearest
from mailqueue import inspect
from mailqueue.accounts import AccountConflict, Change, Record, Stored
from mailqueue.events import Event
from mailqueue.queue import Queue
from relayctl.account_fields import traced
from relayctl.audit import actor, audited
from relayctl.config import say


@dataclass(frozen=True, slots=True)
class Register:
    queue: Queue
    loaded: Loaded
    stored: Stored

    @classmethod
    async def read(cls, queue: Queue, loaded: Loaded) -> Register:
        stored = await queue.accounts().read()
        for name, why in stored.unread:
            typer.echo(f"{name}: cannot be read: {why}", err=True)
        return cls(queue, loaded, stored)

    @property
    def filed(self) -> dict[str, AccountSettings]:
        return {account.name: account for account in self.loaded.settings.accounts}

    def changeable(self, name: str, *, removing: bool = False) -> Record:
        """The queue's record; exit 1 for an account of the file, and for none. One that the file has, too, may go."""
        record = self.stored.get(name)
        if name in self.filed and not (record and removing):
            refuse(f"{name} is an account of the configuration file: change it there")
        if record is None:
            names = [*self.filed, *(each.account.name for each in self.stored.records)]
            refuse(f"no account {name}{nearest(name, names)}")
        return record

    def problems(self, accounts: Mapping[str, AccountSettings]) -> list[Problem]:
        """What is wrong with these (by the name of their place) beside all the others that they do not replace."""
        replaced = {account.name for account in accounts.values()}
        placed = [(f"accounts[{i}]", account) for i, account in enumerate(self.loaded.settings.accounts)]
        kept = [each.account for each in self.stored.records if each.account.name not in replaced]
        placed += [(account.name, account) for account in kept]
        names = {account.name for _, account in placed} | replaced
        found = check.account_problems(self.loaded.settings, [*placed, *accounts.items()])
        ours = [p for p in found if any(p.key == at or p.key.startswith(f"{at}.") for at in accounts)]
        return ours + [
            Problem(f"{at}.parent", f"no account {account.parent}{nearest(account.parent, list(names))}")
            for at, account in accounts.items()
            if account.parent is not None and account.parent not in names
        ]

    def insist(self, accounts: Mapping[str, AccountSettings]) -> None:
        """Exit 1 with every problem; what is allowed but hardly meant goes to standard error."""
        if found := self.problems(accounts):
            refuse_all(found)
        listeners = self.loaded.settings.relayd.listeners
        under_tls = any(one.kind == "submission" and one.tls != "none" for one in listeners)
        for account in accounts.values():
            if not account.senders:
                typer.echo(check.NO_SENDERS.format(account.name), err=True)
            elif "*" in account.senders:
                typer.echo(f"{account.name} may send as anybody", err=True)
            if nowhere := check.no_way_back(self.loaded.settings, account):
                typer.echo(f"{account.name}: {nowhere}", err=True)
            if account.password_hash and not under_tls:
                typer.echo(
                    f"{account.name} cannot sign in: AUTH is offered under TLS only, and no listener has it", err=True
                )

    async def commit(self, changes: Sequence[Change], verb: str, reason: str = "") -> int:
        """All or none, each with its audit event; exit 1 when somebody changed one of them meanwhile. Weights go to the
        queue with it."""
        try:
            version = await self.queue.accounts().change(
                changes, actor(), [self._trail(each, verb, reason) for each in changes]
            )
        except AccountConflict as conflict:
            refuse(f"{conflict}; nothing was changed, run it again")
        before = {record.account.name: record.account.weight for record in self.stored.records}
        after = {change.name: change.account.weight for change in changes if change.account}
        await self.queue.set_weights({name: w for name, w in after.items() if w != before.get(name, 1)})
        return version

    def _trail(self, change: Change, verb: str, reason: str) -> Event:
        record = self.stored.get(change.name)
        before, after = traced(record.account if record else None, change.account)
        return audited(verb, f"account:{change.name}", " ".join(reason.split()), before, after)

    async def queued(self, name: str) -> int:
        """Recipients that are not final yet."""
        flows = [flow for shard in self.queue.shards for flow in await inspect.flows(shard)]
        return sum(flow.open for flow in flows if flow.account == name)

    def children(self, name: str) -> list[str]:
        everybody = (*self.loaded.settings.accounts, *self.stored.accounts)
        return sorted({account.name for account in everybody if account.parent == name})


def refuse(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(1)


def refuse_all(problems: Sequence[Problem]) -> NoReturn:
    say("refused", [str(problem) for problem in problems], "red")
    raise typer.Exit(1)
