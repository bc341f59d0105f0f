"""A session to a next hop as ``relayctl trace --domain`` hears it: commands and replies, the size of content, no secret."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection
from typing import Protocol

from delivery.reply import Ear, Phase
from mailqueue.traces import LONGEST_TEXT, Line, Tap

KEPT = 40  # lines from before the first transaction, whose domain is not known yet


class Heard(Protocol):
    """What is needed of a session."""

    host: str
    address: str
    source: str | None
    ear: Ear | None


class Overheard:
    """``domains``: whose mail waits for the session while it is being opened; then :meth:`carries` says whose it has."""

    def __init__(self, tap: Tap, peer: str, source: str, domains: Collection[str]) -> None:
        self._tap = tap
        self._peer = peer
        self._source = source
        self._domains = domains
        self._session = os.urandom(4).hex()
        self._early: deque[Line] = deque(maxlen=KEPT)
        self._told: set[str] = set()  # who has heard the session's beginning
        self._begun = False

    def carries(self, domain: str) -> None:
        """The next transaction is for it; who listens to it hears how the session began."""
        self._domains, self._begun = (domain,), True
        new = [token for token in self._tap.listeners("domain", self._domains) if token not in self._told]
        self._told.update(new)
        if new:
            for line in self._early:
                self._tap.say(new, line)

    def __call__(self, who: str, phase: Phase, text: str) -> None:
        at = int(time.time() * 1000)
        tokens = self._tap.listeners("domain", self._domains)
        subject = next(iter(self._domains), "") if len(self._domains) == 1 else ""
        for part in text.splitlines():
            shown = part[:LONGEST_TEXT]
            line = Line(at, self._session, who, phase.value, shown, self._peer, subject, self._source)
            if not self._begun:
                self._early.append(line)
            if tokens:
                self._tap.say(tokens, line)
        if tokens:
            self._told.update(tokens)


def attend(session: Heard, tap: Tap, domain: str) -> None:
    """From now on the session is overheard; its next transaction is for ``domain``."""
    ear = session.ear
    if not isinstance(ear, Overheard):
        ear = session.ear = Overheard(tap, f"{session.host}[{session.address}]", session.source or "", ())
    ear.carries(domain)
