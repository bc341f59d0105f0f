"""What a running sandbox can be told and asked, one function a command; :mod:`sandbox.control` carries them.

==========  ===================================================================================================
report      the ledger's counters, what each domain does now, the limits of sources as they stand
addresses   endpoints.json
flush       the ledger to its file
behaviour   domain, set; sources, share, for_seconds: how a domain treats mail from now on
behaviours  all of them, and the shapes of mail that comes back
dns         mode; domain, for_seconds: the DNS answers so
lookup      name, type: what the DNS says
mail        list: domain, recipient, subject, since, limit · count: the same · show: mail
bounce      mail, shape; recipient: something goes back now for a mail that arrived
wait        messages, seconds: until so many are on file; "reached" tells whether
==========  ===================================================================================================

ValueError and KeyError say what is wrong with a command.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, get_args

from sandbox import mailbox, shapes
from sandbox.assessor import Assessor
from sandbox.ledger import Ledger
from sandbox.mailbox import NoSuchMail, Wanted
from sandbox.maildir import Store
from sandbox.mailer import Mailer
from sandbox.scenario import DnsMode, TimelineEntry
from sandbox.shapes import About
from sandbox.spf import LookupFailed
from sandbox.world import World
from sandbox.zones import Zones

MOST_LISTED = 10_000
_MAX_WAIT = 3600.0

Answer = dict[str, Any]
Command = Callable[[Answer], Awaitable[Answer]]


class Steered(Protocol):
    """What the commands act on: a sandbox."""

    ledger: Ledger
    world: World
    zones: Zones
    store: Store | None
    assessor: Assessor
    mailer: Mailer

    def endpoints(self) -> Answer: ...
    async def change(self, entry: TimelineEntry) -> None: ...


class Commands:
    """Of one sandbox."""

    def __init__(self, sandbox: Steered) -> None:
        self._sandbox = sandbox
        self.table: Mapping[str, Command] = {
            "report": self._report,
            "addresses": self._addresses,
            "flush": self._flush,
            "behaviour": self._behaviour,
            "behaviours": self._behaviours,
            "dns": self._dns,
            "lookup": self._lookup,
            "mail": self._mail,
            "bounce": self._bounce,
            "wait": self._wait,
        }

    async def _report(self, _: Answer) -> Answer:
        sandbox = self._sandbox
        sandbox.ledger.flush()
        return {
            **sandbox.ledger.report(),
            "behaviours": sandbox.world.moods(),
            "planned": {plan.name: {"": plan.behaviour, **plan.sources} for plan in sandbox.world.scenario.domains},
            "dns": dict(sandbox.world.dns_modes),
            "limits": sandbox.world.standing(asyncio.get_running_loop().time()),
        }

    async def _addresses(self, _: Answer) -> Answer:
        return self._sandbox.endpoints()

    async def _flush(self, _: Answer) -> Answer:
        self._sandbox.ledger.flush()
        return {}

    async def _behaviour(self, command: Answer) -> Answer:
        await self._sandbox.change(
            TimelineEntry(
                domain=command["domain"],
                set=command["set"],
                sources=tuple(command.get("sources", ())),
                share=command.get("share", 1.0),
                for_seconds=command.get("for_seconds"),
            )
        )
        return {}

    async def _behaviours(self, _: Answer) -> Answer:
        catalogue = self._sandbox.world.catalogue
        return {
            "behaviours": {name: catalogue.get(name).what for name in catalogue.names},
            "shapes": {name: shape.what for name, shape in sorted(shapes.shapes().items())},
        }

    async def _dns(self, command: Answer) -> Answer:
        mode = command["mode"]
        if mode not in get_args(DnsMode):
            raise ValueError(f"no mode {mode!r}; there are: {', '.join(get_args(DnsMode))}")
        seconds = command.get("for_seconds")
        await self._sandbox.change(TimelineEntry(domain=command.get("domain", ""), dns=mode, for_seconds=seconds))
        return {}

    async def _lookup(self, command: Answer) -> Answer:
        try:
            return {"records": self._sandbox.zones.lookup(command["name"], command.get("type", "MX").upper())}
        except LookupFailed as error:
            return {"records": [], "failed": str(error)}

    async def _mail(self, command: Answer) -> Answer:
        store, assess = self._store(), self._sandbox.assessor.assessed
        if command["op"] == "show":
            path = await asyncio.to_thread(mailbox.find, store, str(command["mail"]))
            mail = assess(path)
            return {"mail": mail.plain(), "content": path.read_bytes().decode("latin-1")}
        wanted = Wanted(
            domain=str(command.get("domain", "")),
            recipient=str(command.get("recipient", "")),
            subject=str(command.get("subject", "")),
            since=float(command.get("since", 0.0)),
        )
        if command["op"] == "count":
            return {"count": await asyncio.to_thread(lambda: sum(1 for _ in wanted.found(store)))}
        if command["op"] != "list":
            raise ValueError("mail: op is list, count or show")
        most = min(int(command.get("limit", 50)), MOST_LISTED)
        found = await asyncio.to_thread(wanted.newest, store, most)
        return {"mails": [assess(path).plain() for path in found]}

    async def _bounce(self, command: Answer) -> Answer:
        path = await asyncio.to_thread(mailbox.find, self._store(), str(command["mail"]))
        mail = mailbox.read(path)
        recipient = str(command.get("recipient", "")) or mail.recipients[0]
        if recipient not in mail.recipients:
            raise NoSuchMail(f"mail {mail.id} was not for {recipient}, but for {', '.join(mail.recipients)}")
        content = mailbox.content(path.read_bytes())
        about = About(mail.reverse_path, recipient, mail.host, mail.source, content, mail.at)
        to, reply = await self._sandbox.mailer.send(command.get("shape", "dsn"), about)
        return {"recipient": recipient, "to": to, "reply": reply}

    def _store(self) -> Store:
        if self._sandbox.store is None:
            raise ValueError("this sandbox keeps no mail: start it with --store")
        return self._sandbox.store

    async def _wait(self, command: Answer) -> Answer:
        """Both outcomes are an answer: "reached" tells which."""
        ledger, reached = self._sandbox.ledger, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(float(command.get("seconds", 60)), _MAX_WAIT)):
                await ledger.accepted_at_least(int(command["messages"]))
                reached = True
        return {"reached": reached, "messages": ledger.messages}
