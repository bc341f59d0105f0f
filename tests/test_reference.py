"""The configuration reference says all there is, in both languages, and the committed pages are what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.durations import seconds, spelled
from config.reference import LANGUAGES, keys, page, texts

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {"en": DOCS / "reference.md", "es": DOCS / "es" / "reference.md"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_has_a_text_and_every_text_a_key(language: str) -> None:
    said = {name for name in texts(language) if not name.startswith("~")}
    there = {key.path for key in keys()}
    assert (there - said, said - there) == (set(), set())
    assert all(text.strip() for text in texts(language).values() if text != " y ")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_the_one_that_is_committed(language: str) -> None:
    assert PAGES[language].read_text() == page(language), (
        f"relayctl config reference --language {language} > {PAGES[language]}"
    )


def test_what_a_key_may_be_is_read_off_the_settings() -> None:
    found = {key.path: key for key in keys()}
    port = found["relayd.listeners[].port"]
    assert (port.allowed, port.default, port.restart) == ("a whole number, at least 0 and at most 65535", "587", True)
    assert found["relayd.max_message_bytes"].allowed.endswith("at most 134217728")
    assert found["delivery.retry.steps_seconds"].default.startswith('["1m", "5m"')
    assert found["relayd.listeners[].name"].default == ""
    assert not found["delivery.max_sessions"].restart
    assert "| un entero, mínimo 0 y máximo 65535 |" in page("es")


def test_a_language_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there are: en, es"):
        texts("qu")


@pytest.mark.parametrize(
    ("length", "text"), [(0, "0"), (0.25, "250ms"), (90, "1m30s"), (5400, "1h30m"), (432_000, "5d")]
)
def test_durations_are_spelled_as_they_are_read(length: float, text: str) -> None:
    assert spelled(length) == text
    assert seconds(text) == length
