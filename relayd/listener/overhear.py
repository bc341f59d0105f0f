"""A session as ``relayctl trace`` hears it. Secrets and content stop here: what the client says is shown where it is
known to be harmless, else only how long it is."""

from __future__ import annotations

import os
import re
import time
from collections import deque

from mailqueue.traces import LONGEST_TEXT, Line, Tap

KEPT = 40  # lines of a client whose account is not known yet
_MECHANISM = re.compile(r"(PLAIN|LOGIN)(?: |$)", re.IGNORECASE)
_PATH = re.compile(r"(FROM|TO) ?:", re.IGNORECASE)
_NAME = re.compile(r"[0-9A-Za-z.:_\[\]-]{1,255}")
_CHUNK = re.compile(r"[0-9]{1,20}(?: +LAST)?", re.IGNORECASE)
_PLAIN_VERBS = frozenset({"QUIT", "RSET", "DATA", "STARTTLS", "NOOP", "HELP", "VRFY", "EXPN"})
MASKED = "******"


def shown(line: bytes) -> tuple[str, str]:
    """(verb, what may be shown of one command line). A line that is no command may be a password that somebody sent
    too soon, or content; so may be what stands behind a verb."""
    size = len(line.rstrip(b"\r\n"))
    verb, _, argument = line.rstrip(b"\r\n").decode("utf-8", "replace").partition(" ")
    verb, argument = verb.upper(), argument.strip(" ")
    if verb == "AUTH":
        found = _MECHANISM.match(argument)
        more = f" {MASKED}" if argument and (found is None or argument[found.end() :]) else ""
        return verb, f"AUTH {found[1].upper()}{more}" if found else f"AUTH{more}"
    harmless = {"MAIL": _PATH.match, "RCPT": _PATH.match, "BDAT": _CHUNK.fullmatch}
    harmless |= {"EHLO": _NAME.fullmatch, "HELO": _NAME.fullmatch}
    if verb in harmless:
        return verb, f"{verb} {argument}" if harmless[verb](argument) else f"{verb} (argument of {size} octets)"
    if verb in _PLAIN_VERBS:
        return verb, f"{verb} (argument of {len(argument)} octets)" if argument else verb
    return "?", f"(no command, {size} octets)"


class Overheard:
    """One session's lines on their way to who listens to its client or, once it is known, to its account."""

    def __init__(self, tap: Tap, listener: str, client: str) -> None:
        self._tap = tap
        self._listener = listener
        self._client = client
        self._session = os.urandom(4).hex()
        self._phase = "connect"
        self._early: deque[Line] = deque(maxlen=KEPT)

    def command(self, account: str, line: bytes) -> None:
        verb, text = shown(line)
        self._phase = verb.lower()
        self.hear(account, "C", text)

    def reply(self, account: str, lines: bytes) -> None:
        for line in lines.decode("utf-8", "replace").splitlines():
            self.hear(account, "S", line)

    def hear(self, account: str, who: str, text: str) -> None:
        """``text`` is fit to be shown."""
        at = int(time.time() * 1000)
        line = Line(at, self._session, who, self._phase, text[:LONGEST_TEXT], self._client, account, self._listener)
        tap = self._tap
        tokens = tap.listeners("client", (self._client,))
        if account:
            owners = tap.listeners("account", (account,))
            while self._early:
                early = self._early.popleft()
                if owners:
                    tap.say(owners, early)
            tokens += owners
        elif tap.wants("account"):
            self._early.append(line)
        if tokens:
            tap.say(tokens, line)
