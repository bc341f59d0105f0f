"""The event schema: what is written is read again, empty fields are left out, later versions are tolerated."""

from __future__ import annotations

from dataclasses import fields

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailqueue.events import KINDS, VERSION, Event

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
NUMBER = st.integers(0, 2**53)
BY_NAME = {
    "metadata": st.dictionaries(TEXT, TEXT | NUMBER | st.none(), max_size=3),
    "reverse_path": st.none() | TEXT,
    "recipients": st.lists(TEXT, max_size=3).map(tuple),
    "skipped": st.lists(NUMBER, max_size=3).map(tuple),
    "index": st.none() | NUMBER,
    "kind": st.sampled_from(KINDS),
    "at": st.integers(1, 2**53),
    "v": st.just(VERSION),
    "before": st.none() | TEXT | NUMBER | st.dictionaries(TEXT, TEXT, max_size=3),
    "after": st.none() | TEXT | NUMBER | st.lists(TEXT, max_size=3),
}
BY_TYPE = {"str": TEXT, "int": NUMBER, "bool": st.booleans(), "tuple[str, ...]": st.lists(TEXT, max_size=3).map(tuple)}
EVENTS = st.builds(
    Event, **{f.name: BY_NAME[f.name] if f.name in BY_NAME else BY_TYPE[str(f.type)] for f in fields(Event)}
)


@given(EVENTS)
def test_an_event_survives_the_stream(event: Event) -> None:
    assert Event.from_json(event.to_json()) == event


def test_empty_fields_are_left_out() -> None:
    assert orjson.loads(Event("delivered", 5).to_json()) == {"kind": "delivered", "at": 5, "v": 1}
    said = orjson.loads(Event("bounced", 5, reverse_path="", index=0, class_="bulk").to_json())
    assert said == {"kind": "bounced", "at": 5, "v": 1, "reverse_path": "", "index": 0, "class": "bulk"}


def test_what_the_scripts_write_is_an_event() -> None:
    """A received event with skipped recipients and the renaming to late are made in Lua, by text."""
    text = Event("received", 5, id="m", recipients=("a", "b")).to_json()
    assert Event.from_json(text[:-1] + b',"skipped":[0]}').skipped == (0,)
    assert text.startswith(b'{"kind":"received"'), "lua/settle.lua replaces the first kind it finds"


def test_a_later_version_is_read() -> None:
    assert Event.from_json(b'{"kind":"k","at":1,"v":9,"colour":"red"}').v == 9


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b"7", b'{"kind":"k"}', b'{"at":1}'])
def test_what_is_no_event_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        Event.from_json(data)
