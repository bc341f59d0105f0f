"""What became of the messages of a copy after it was made, as the events tell it. Pure.

Final for a recipient: *delivered, bounced, expired, removed, suppressed*, an *unknown* after which nothing more was to come,
and a *late* delivery. All else leaves it open, with a word about what is known.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from mailqueue.events import Event
from mailqueue.message import State

FINAL = frozenset({"delivered", "bounced", "expired", "removed", "suppressed"})
TOLD_BY_DSN = frozenset({"bounced", "expired"})
ALL = -1  # index: every recipient of the message
Recipient = tuple[str, int]  # message id, index


@dataclass(slots=True)
class Fate:
    """``closed``: kind of the final event, "" = open. ``note``: what is to be said of one that goes on hold."""

    closed: str = ""
    note: str = ""
    state: State | None = None
    unknowns: int = 0


@dataclass(slots=True)
class Accepted:
    """A message that was accepted after the copy, and which of its recipients nothing final was said of."""

    event: Event
    open: set[int]


@dataclass(slots=True)
class Fates:
    """``add`` each event behind the copy's last one, in order. ``copied``: ids of the copy's messages."""

    copied: Collection[str]
    by_recipient: dict[Recipient, Fate] = field(default_factory=dict)
    accepted: dict[str, Accepted] = field(default_factory=dict)
    failed: dict[Recipient, Event] = field(default_factory=dict)  # the last ones, whose DSN may not have gone out
    last: int = 0  # Unix ms of the last event

    def add(self, event: Event) -> None:
        self.last = max(self.last, event.at)
        if event.kind == "received":
            if event.id not in self.copied:
                wanted = set(range(len(event.recipients))) - set(event.skipped)
                self.accepted[event.id] = Accepted(event, wanted)
        elif event.id in self.copied:
            self._of_copy(event)
        elif event.id in self.accepted:
            self._of_accepted(event)

    def _of_copy(self, event: Event) -> None:
        key = event.id, ALL if event.index is None else event.index
        fate = self.by_recipient.setdefault(key, Fate())
        if event.kind == "deferred":
            reply = event.diagnostic_code.removeprefix("smtp; ")
            fate.state = State(event.attempt, fate.unknowns, reply, event.source, event.at)
        elif event.kind == "unknown":
            fate.unknowns += 1
        if event.kind in ("held", "released"):
            fate.note = f"{event.kind} since: {event.reason}" if event.reason else f"{event.kind} since"
        if kind := closes(event):
            fate.closed = fate.closed or kind
            if kind in TOLD_BY_DSN:
                self.failed[key] = event
        elif event.kind == "unknown":
            fate.note = "sent since, and what became of it is not known"

    def _of_accepted(self, event: Event) -> None:
        one = self.accepted[event.id]
        if not closes(event):
            return
        if event.index is None:
            one.open.clear()
        else:
            one.open.discard(event.index)
        if event.kind in TOLD_BY_DSN and event.index is not None:
            self.failed[event.id, event.index] = event
        if not one.open:
            del self.accepted[event.id]

    def of(self, message_id: str, index: int) -> Fate:
        whole = self.by_recipient.get((message_id, ALL))
        if whole is not None and whole.closed:
            return whole
        return self.by_recipient.get((message_id, index), _NOTHING)

    def untold(self, window_ms: int) -> list[Event]:
        """Failures so shortly before the last event that their DSN may still have been waiting to be composed."""
        return [event for event in self.failed.values() if event.at > self.last - window_ms]


_NOTHING = Fate()


def closes(event: Event) -> str:
    """The kind that ends it, "" when the event leaves the recipient open."""
    if event.kind in FINAL:
        return event.kind
    if event.kind == "late" and event.action in ("delivered", "relayed"):
        return "late"
    return "unknown" if event.kind == "unknown" and not event.next_at else ""


def is_open(fate: Fate, policy: str) -> bool:
    """``policy``: the message's after an unknown outcome. With once:<seconds> the reaper's first *unknown* names no next
    attempt though there is one."""
    if fate.closed == "unknown" and policy.startswith("once:"):
        return fate.unknowns < 2
    return not fate.closed
