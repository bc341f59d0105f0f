"""The JSON Schema of the events (draft 2020-12), made from :class:`~mailqueue.events.Event` so that they can't disagree.

It lets unknown fields pass, as readers do; what a field means stands in docs/events.md.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mailqueue.events import _SPELLING, KINDS, VERSION, Event

ABOUT_RECIPIENT = ("delivered", "deferred", "bounced", "expired", "unknown", "late", "removed", "suppressed")

# What stands in every event of a kind, besides kind, at and v.
REQUIRED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ABOUT_RECIPIENT, ("id", "index", "account", "recipient", "destination")),
    "received": ("id", "account", "recipients", "received_at"),
    "returned": ("id", "index", "recipient"),
    "audit": ("actor", "verb", "subject"),
    "alarm": ("subject", "after"),
}
_MILLISECONDS = frozenset({"at", "received_at", "next_at"})
_CHOICES = {
    "kind": KINDS,
    "class_": ("emergency", "transactional", "bulk"),
    "action": ("failed", "delayed", "delivered", "relayed"),
    "origin": ("smtp", "api", "panel"),
}
_PATTERNS = {
    "id": "^[0-9a-v]{20}$",
    "status": r"^[245]\.\d{1,3}\.\d{1,3}$",
    "position": r"^\d{1,2}-\d+-\d+$",
}
_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "str | None": {"type": "string"},
    "int": {"type": "integer", "minimum": 0},
    "int | None": {"type": "integer", "minimum": 0},
    "bool": {"type": "boolean"},
    "tuple[str, ...]": {"type": "array", "items": {"type": "string"}},
    "tuple[int, ...]": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "Mapping[str, Any]": {"type": "object"},
    "Any": {},
}


def schema() -> dict[str, Any]:
    """``position`` stands in events that were read for a group or printed, not in the stream."""
    properties = {_SPELLING.get(f.name, f.name): _property(f.name, str(f.type)) for f in fields(Event)}
    properties["position"] = {"type": "string", "pattern": _PATTERNS["position"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:tambo:event:{VERSION}",
        "title": "Tambo event",
        "description": "What became of a recipient, or of a message; empty fields are left out.",
        "type": "object",
        "required": ["kind", "at", "v"],
        "properties": properties,
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"required": list(names)},
            }
            for kind, names in sorted(REQUIRED.items())
        ],
    }


def _property(name: str, annotation: str) -> dict[str, Any]:
    found = dict(_TYPES[annotation])
    if name in _CHOICES:
        found["enum"] = list(_CHOICES[name])
    if name in _PATTERNS:
        found["pattern"] = _PATTERNS[name]
    if name in _MILLISECONDS:
        found["description"] = "Unix milliseconds"
    if name == "v":
        found = {"const": VERSION}
    return found
