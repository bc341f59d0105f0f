"""How a simulated host treats mail, as data: at each phase of the dialogue a :class:`Step` may replace the usual reply.

The same behaviours serve a whole domain (``behaviour = "greylist"``) and single recipients, named in front of a
``+`` in the local part: ``unknown+anything@gmail.test``, ``slow5+x@gob.test`` (the number is in seconds, ``slow0.5`` too).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from config.settings import Seconds, Section

Phase = Literal["greeting", "ehlo", "starttls", "mail", "rcpt", "data", "content", "end_of_data"]
TlsOffer = Literal["none", "offered", "required", "broken"]
CertificateKind = Literal["good", "self-signed", "expired", "wrong-name"]

EXTENSIONS = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES")
LONGEST_DELAY = 86_400.0
_LATE: tuple[Phase, ...] = ("data", "content", "end_of_data")
_REPLY = re.compile(r"(?:[2-5]\d\d-[^\r\n]*\n)*[2-5]\d\d [^\r\n]*")


def _checked(reply: str) -> str:
    if reply and not _REPLY.fullmatch(reply):
        raise ValueError(f"no SMTP reply: {reply!r}; write 'NNN-text' lines and a last 'NNN text'")
    return reply


Reply = Annotated[str, AfterValidator(_checked)]  # whole, lines joined by \n; {source} and {host} are filled in


def spoken(reply: str, source: str, host: str) -> bytes:
    """A reply as bytes on the wire."""
    return reply.replace("{source}", source).replace("{host}", host).replace("\n", "\r\n").encode() + b"\r\n"


_NAME = re.compile(r"([a-z][a-z-]*?)(\d{0,5}|\d{1,5}\.\d)")


class Step(Section):
    """What happens at one phase in place of the usual reply."""

    reply: Reply = ""
    delay_seconds: Seconds = Field(0.0, le=LONGEST_DELAY, description="before the reply")
    drop: bool = Field(False, description="close without a reply")
    close: bool = Field(False, description="close after the reply; a 421 always does")
    garbage: bool = Field(False, description="bytes that are no reply")
    accepted: bool = Field(False, description="end_of_data with drop or garbage: the message was kept all the same")
    every: int = Field(1, ge=1, description="only each n-th time")
    share: float = Field(1.0, gt=0, le=1, description="only this share of the times, spread evenly: no chance in it")

    def due(self, turn: int) -> bool:
        """Whether it falls due the ``turn``-th time, from 1."""
        return turn % self.every == 0 and int(turn * self.share) > int((turn - 1) * self.share)

    @property
    def always(self) -> bool:
        return self.every == 1 and self.share == 1.0

    @property
    def takes(self) -> bool:
        """Whether a message whose final dot meets this step counts as received."""
        if self.drop or self.garbage:
            return self.accepted
        return not self.reply or self.reply.startswith("2")

    @property
    def ends(self) -> bool:
        return self.drop or self.close or self.reply.startswith("421")


class Later(Section):
    """Mail that goes back to the reverse-path some time after a message was taken."""

    shape: str = Field("dsn", description="one of sandbox/returns.toml")
    after_seconds: Seconds = Field(5.0, le=LONGEST_DELAY)
    every: int = Field(1, ge=1, description="only for each n-th message")


class Behaviour(Section):
    """One named way to treat mail."""

    what: str = Field("", description="what it does, for people")
    steps: Mapping[Phase, Step] = Field(default_factory=dict)
    greylist_seconds: Seconds | None = Field(None, description="451 until a retry this much later; 0 = any retry")
    tls: TlsOffer = "none"
    tls_refusal: Reply = Field("530 5.7.0 Must issue a STARTTLS command first", description="to MAIL, when required")
    certificate: CertificateKind = "good"
    authenticate: bool = Field(False, description="refuse what fails DMARC and whose domain says p=reject, before 250")
    later: Later | None = None
    extensions: tuple[str, ...] = EXTENSIONS
    eager_data: bool = Field(False, description="354 even when no recipient was accepted")
    down: bool = Field(False, description="nobody listens (a domain's behaviour only)")

    @property
    def late(self) -> bool:
        """Whether it acts after RCPT, so that a transaction must remember it."""
        return self.authenticate or any(phase in self.steps for phase in _LATE)

    def lasting(self, seconds: float) -> Behaviour:
        """The same with every delay, the greylisting wait and the time before mail goes back set to ``seconds``."""
        steps = {
            phase: step.model_copy(update={"delay_seconds": seconds}) if step.delay_seconds else step
            for phase, step in self.steps.items()
        }
        wait = None if self.greylist_seconds is None else seconds
        later = self.later and self.later.model_copy(update={"after_seconds": seconds})
        return self.model_copy(update={"steps": steps, "greylist_seconds": wait, "later": later})

    def sharing(self, share: float) -> Behaviour:
        """The same with every step taken only this share of the times; ValueError unless 0 < share ≤ 1."""
        if not 0 < share <= 1:
            raise ValueError(f"a share lies above 0 and up to 1, and {share} does not")
        steps = {phase: step.model_copy(update={"share": share}) for phase, step in self.steps.items()}
        return self.model_copy(update={"steps": steps})


ACCEPT = Behaviour(what="takes everything")


class Catalogue:
    """Behaviours by name."""

    def __init__(self, behaviours: Mapping[str, Behaviour]) -> None:
        self._named = {"accept": ACCEPT, **behaviours}

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    @property
    def names(self) -> list[str]:
        return sorted(self._named)

    def find(self, name: str) -> Behaviour | None:
        """A behaviour by name, with an optional number of seconds behind it (``slow5``); None when unknown."""
        found = self._named.get(name)
        if found is not None:
            return found
        match = _NAME.fullmatch(name)
        if match is None or not match[2]:
            return None
        found = self._named.get(match[1])
        return found.lasting(min(float(match[2]), LONGEST_DELAY)) if found else None

    def get(self, name: str) -> Behaviour:
        """Like :meth:`find`; raises ValueError that lists the names."""
        found = self.find(name)
        if found is None:
            raise ValueError(f"no behaviour {name!r}; there are: {', '.join(self.names)}")
        return found

    def for_local_part(self, local: str) -> Behaviour | None:
        """What a recipient's local part asks for: ``unknown+x`` → the behaviour *unknown*; None for ordinary ones."""
        name, plus, _ = local.partition("+")
        return self.find(name.lower()) if plus else None


class Greylist:
    """Who has tried before: (source, reverse-path, recipient) → when first; bounded, the oldest are forgotten."""

    def __init__(self, most: int = 200_000) -> None:
        self._most = most
        self._first: dict[tuple[str, str, str], float] = {}

    def refuses(self, now: float, wait: float, source: str, reverse_path: str, recipient: str) -> bool:
        key = (source, reverse_path, recipient)
        first = self._first.get(key)
        if first is not None:
            return now - first < wait
        if len(self._first) >= self._most:
            del self._first[next(iter(self._first))]
        self._first[key] = now
        return True
