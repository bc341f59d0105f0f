"""The JSON Schema of the events: what is committed is what the code says, and real events are valid by it."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from mailqueue.event_schema import REQUIRED, schema
from mailqueue.events import KINDS, Event
from streams.taken import Taken
from tests.conftest import REPOSITORY
from tests.test_events import EVENTS


def strict() -> Draft202012Validator:
    """Also no field that the schema does not name."""
    return Draft202012Validator({**schema(), "additionalProperties": False})


def problems(validator: Draft202012Validator, record: object) -> list[str]:
    return [error.message for error in validator.iter_errors(record)]


def test_what_is_committed_is_what_the_code_says() -> None:
    committed = orjson.loads((REPOSITORY / "docs" / "event.schema.json").read_bytes())
    assert committed == schema(), "relayctl events schema > docs/event.schema.json"
    Draft202012Validator.check_schema(committed)


def test_kinds_are_known() -> None:
    assert REQUIRED.keys() <= set(KINDS)


LOOSE = Draft202012Validator(
    {
        **schema(),
        "allOf": [],
        "additionalProperties": False,
        "properties": {
            name: {key: value for key, value in about.items() if key not in ("enum", "pattern")}
            for name, about in schema()["properties"].items()
        },
    }
)


@given(EVENTS)
def test_whatever_an_event_says_has_the_types_of_the_schema(event: Event) -> None:
    assert problems(LOOSE, orjson.loads(event.to_json())) == []


DELIVERED = {
    "kind": "delivered",
    "at": 1767225665300,
    "id": "6gk3bq0mtd7d2q5v1h0a",
    "index": 0,
    "account": "campaigns",
    "recipient": "ana@example.org",
    "destination": "example.org",
    "class": "bulk",
    "action": "delivered",
    "status": "2.0.0",
    "v": 1,
}


def test_a_position_belongs_to_it() -> None:
    taken = Taken.from_json(orjson.dumps(DELIVERED), position="0-1732612345678-5", _consumer=None)
    record = orjson.loads(taken.to_json())
    assert record == {**DELIVERED, "position": "0-1732612345678-5"}
    assert problems(strict(), record) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "opened"},
        {"at": "now"},
        {"at": -1},
        {"id": "short"},
        {"index": None},
        {"status": "5.1"},
        {"action": "bounced"},
        {"v": 2},
        {"colour": "red"},
        {"recipient": ["a@x.test"]},
        {"position": "5"},
    ],
    ids=str,
)
def test_what_is_wrong_is_seen(changes: dict[str, Any]) -> None:
    assert problems(strict(), DELIVERED) == []
    assert problems(strict(), {**DELIVERED, **changes}) != []


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REQUIRED.items() for name in names])
def test_what_a_kind_lacks_is_seen(kind: str, name: str) -> None:
    record: dict[str, Any] = {**copy.deepcopy(DELIVERED), "kind": kind}
    record |= {"recipients": ["a@x.test"], "received_at": 1, "actor": "a", "verb": "b", "subject": "c", "after": "on"}
    assert problems(strict(), record) == []
    del record[name]
    assert problems(strict(), record) != []


def assert_valid(events: list[bytes], kinds: set[str]) -> None:
    """Of a real run; ``kinds`` must have been among them."""
    validator, seen = strict(), Counter[str]()
    for data in events:
        record = orjson.loads(data)
        seen[record["kind"]] += 1
        assert problems(validator, record) == [], record
    assert kinds <= seen.keys(), seen
