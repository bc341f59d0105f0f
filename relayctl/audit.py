"""Who changed what by hand, and why: one ``audit`` event for each verb that changes something.

Where the change lies in a shard's slot, one script makes it and writes its event (suspend, resume, accounts, each held,
released, … recipient): there is neither without the other. Elsewhere the order is the one that loses nothing:

- a verb over many messages says what it is about to do before the first of them, and what it did after the last: a
  trail may tell of more than was done (the recipients' own events say how far it came), never of less;
- what carries its own trail (an entry of the ledger has who and why; a key's file has its times) is changed first, for
  until then it may be refused.

Secrets do not belong into ``before`` and ``after``: a password that became another one is said so.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import syslog
import time
from typing import Annotated, Any

import typer
import uvloop

from config.load import Loaded
from mailqueue.errors import QueueDown, QueueRefused, ServerAnswer
from mailqueue.events import Event
from mailqueue.queue import Queue

Why = Annotated[str, typer.Option("--reason", help="Why; it stands in the audit event.")]


def actor() -> str:
    """user@host; who called sudo, not whom sudo made of them."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def audited(verb: str, subject: str, reason: str, before: Any = None, after: Any = None, count: int = 0) -> Event:
    """``verb`` as relayctl spells it ("queue hold"), ``subject`` as the verb's argument ("account:rrhh"); ``before`` and
    ``after`` are JSON without secrets, ``count`` the items it is about."""
    return Event(
        kind="audit",
        at=int(time.time() * 1000),
        actor=actor(),
        verb=verb,
        subject=subject,
        reason=reason,
        before=before,
        after=after,
        count=count,
    )


async def record(queue: Queue, event: Event) -> None:
    """On disk when this returns. Raises QueueDown: then it may be there or not."""
    shard = queue.shards[0]
    await shard.command("XADD", shard.events, "*", "e", event.to_json())


def record_beside(loaded: Loaded, event: Event) -> None:
    """For what is changed without the queue, perhaps before there is one: written there if it answers at once, else to
    syslog (auth, notice) and standard error."""

    async def session() -> None:
        queue = await Queue.open(loaded.settings.queue, role="relayctl", patience=0.0)
        try:
            await record(queue, event)
        finally:
            await queue.close()

    try:
        uvloop.run(session())
    except (QueueDown, QueueRefused, ServerAnswer) as error:
        syslog.openlog("relayctl", 0, syslog.LOG_AUTH)
        syslog.syslog(syslog.LOG_NOTICE, event.to_json().decode())
        sys.stderr.write(f"no audit event, it went to syslog: {error}\n")
