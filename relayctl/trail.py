"""One message through the whole path, and its trail: what happened to it, and how long after the start."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import aiosmtplib

from mailqueue.consumer import follow
from mailqueue.events import Event
from mailqueue.scripts import Shard
from relayctl.instance import RECIPIENT, SENDER, USER, Instance

FINAL = frozenset({"delivered", "bounced", "expired", "unknown", "removed"})
PATIENCE_SECONDS = 60.0
MARGIN_MS = 2000  # the stream's positions are times, and the server's clock is this host's


@dataclass(frozen=True, slots=True)
class Step:
    """``after`` is milliseconds since the connection was begun; ``failed`` says that the path ended badly here."""

    after: float
    what: str
    text: str
    delivered: bool = False
    failed: bool = False


def message() -> bytes:
    """Transactional, so that a backlog of bulk mail does not hide whether the path works."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = f"Tambo <{SENDER}>", RECIPIENT, "The path works"
    made["Date"], made["Message-ID"] = formatdate(), make_msgid(domain="gob.test")
    made["X-Tambo-Class"], made["X-Tambo-Campaign"] = "transactional", "up"
    made.set_content("This message went through relayd, the queue, delivery and a mail host of the sandbox.\n")
    return made.as_bytes()


async def walk(instance: Instance, shards: Sequence[Shard]) -> AsyncIterator[Step]:
    """Sends one message and gives each step as it happens; the last one has ``delivered`` or ``failed``."""
    wall, started = int(time.time() * 1000), time.perf_counter()

    def after() -> float:
        return (time.perf_counter() - started) * 1000

    try:
        reply = await submit(instance)
    except (aiosmtplib.SMTPException, OSError) as error:
        yield Step(after(), "refused", str(error), failed=True)
        return
    yield Step(after(), "accepted", f"250 {reply}")
    async for step in aftermath(shards, id_in(reply), wall, PATIENCE_SECONDS):
        yield step


def id_in(reply: str) -> str:
    """Of "queued as ID"."""
    return reply.rpartition("queued as ")[2].split(" ")[0]


async def aftermath(shards: Sequence[Shard], message_id: str, wall: int, seconds: float) -> AsyncIterator[Step]:
    """What became of a message of one recipient that was sent at ``wall`` (Unix ms), until it is final or the time is
    over; the last step has ``delivered`` or ``failed``."""
    last = "no event came"
    try:
        async with asyncio.timeout(seconds):
            async for event in follow(shards, f"{max(wall - MARGIN_MS, 0)}-0"):
                if event.id == message_id:
                    yield (step := step_of(event, wall))
                    if step.delivered or step.failed:
                        return
                    last = f"the last event is {event.kind}"
    except TimeoutError:
        after = int(time.time() * 1000) - wall
        yield Step(after, "waiting", f"not delivered within {seconds:.0f} s; {last}", failed=True)


async def submit(instance: Instance) -> str:
    """STARTTLS, AUTH, one message; the text of relayd's 250. Raises SMTPException or OSError."""
    client = aiosmtplib.SMTP(
        hostname="127.0.0.1",
        port=instance.ports["submission"],
        start_tls=True,
        tls_context=ssl.create_default_context(cafile=str(instance.certificate)),
        username=USER,
        password=instance.password,
        timeout=30,
    )
    async with client:
        _, reply = await client.sendmail(SENDER, [RECIPIENT], message())
    return reply


def step_of(event: Event, wall: int) -> Step:
    """An event as a line: its own time, in milliseconds after ``wall``."""
    if event.kind == "received":
        recipients = ", ".join(event.recipients)
        text = f"on disk: account {event.account}, {event.class_}, {event.size} bytes, for {recipients}"
    elif event.kind == "delivered":
        route = f"{event.recipient} to {event.remote_mta}, from {event.source}"
        text = f"{route}, {_tls(event)}, {event.provider}: {_said(event)}"
    else:
        text = " ".join(filter(None, (event.recipient, event.remote_mta, _said(event))))
    delivered = event.kind == "delivered"
    return Step(event.at - wall, event.kind, text, delivered, event.kind in FINAL and not delivered)


def _tls(event: Event) -> str:
    return event.tls.split(" ")[0] or "no TLS"


def _said(event: Event) -> str:
    return event.diagnostic_code.removeprefix("smtp; ") or event.reason or event.status
