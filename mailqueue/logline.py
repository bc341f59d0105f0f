"""One log line per event, rendered from it: the log cannot say what the stream does not."""

from __future__ import annotations

from typing import Any

from mailqueue.events import Event

_FIELDS = (
    "id",
    "account",
    "campaign",
    "recipient",
    "status",
    "diagnostic_code",
    "remote_mta",
    "source",
    "provider",
    "destination",
    "attempt",
    "phase",
    "tls",
    "reason",
    "next_at",
    "client",
    "actor",
    "verb",
    "subject",
    "count",
)


def say(log: Any, event: Event) -> None:
    """``event=<kind>`` and the fields that are set; recipients of a received message as their number."""
    fields = {name: value for name in _FIELDS if (value := getattr(event, name))}
    if event.recipients:
        fields["recipients"] = len(event.recipients)
    if event.size:
        fields["size"] = event.size
    log.info(event.kind, **fields)
