"""What becomes of a message whose final dot was read: judged where the host refuses by verdict, counted, stored, and
perhaps something goes back for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sandbox import maildir
from sandbox.behaviour import Behaviour, Later, Step
from sandbox.connection import Reception
from sandbox.content import unstuffed
from sandbox.shapes import About
from sandbox.world import Host

_UNAUTHENTICATED = Step(
    reply="550-5.7.26 This mail has been blocked: its sender is unauthenticated, and the\n"
    "550 5.7.26 domain in From asks by its DMARC policy that such mail be refused"
)


@dataclass(slots=True)
class Transaction:
    """One mail transaction; ``reverse_path`` None = none is under way."""

    reverse_path: str | None = None
    recipients: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)  # parameters of MAIL
    said_of: list[dict[str, str]] = field(default_factory=list)  # and of RCPT, one entry per recipient
    late: Behaviour | None = None  # of a recipient, for the phases after RCPT
    backs: list[tuple[str, Later]] = field(default_factory=list)  # recipients for whom something will go back


@dataclass(frozen=True, slots=True)
class Client:
    """Who speaks: its address, what it called itself, the host it speaks to."""

    source: str
    helo: str
    host: Host
    tls: bool


def refusal(shared: Reception, client: Client, it: Transaction, wire: bytes) -> Step:
    """The reply to what fails DMARC where its domain asks for that; a step without a reply for all else."""
    verdicts = shared.assessor.judge(unstuffed(wire), client.source, it.reverse_path or "", client.helo)
    return _UNAUTHENTICATED if verdicts.refused else Step()


def keep(shared: Reception, client: Client, it: Transaction, wire: bytes, now: float) -> None:
    """``wire``: content with its dots doubled; ``now``: the loop's time."""
    site = client.host.site
    if site.limits.counted:
        shared.world.accounts.of(site.name, client.source).took(site.limits, now)
    if shared.store is None and not it.backs:
        return
    content, reverse_path = unstuffed(wire), it.reverse_path or ""
    if shared.store is not None:
        received = maildir.trace(client.helo, client.source, client.host.name, client.tls)
        shared.store.keep(reverse_path, it.recipients, received, content)
        shared.assessor.note()
    for recipient, later in it.backs:
        about = About(reverse_path, recipient, client.host.name, client.source, content, time.time())
        shared.mailer.later(later, about)
