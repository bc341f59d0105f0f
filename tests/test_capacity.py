"""The calculator says what the page says."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mailqueue.capacity import Load, need
from relayctl.main import app


def test_it_agrees_with_what_was_measured() -> None:
    """benchmarks/results/scale-*.json: a million recipients."""
    shared = need(Load(1_000_000, 10_240, 1000, "text", kept=0)).memory
    personal = need(Load(1_000_000, 30_000, 1, "alike", kept=0)).memory
    assert shared == pytest.approx(151_661_008, rel=0.05)
    assert personal == pytest.approx(789_965_560, rel=0.1)


def test_the_verb() -> None:
    words = ["capacity", "--recipients", "8000000", "--bytes", "30000", "--content", "alike"]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found == {**found, "bits_a_second": 20_000_000, "mark": 2048 * 8_000_000}
    assert 7e9 < found["maxmemory"] < 9e9
    assert "20 Mbit/s" in CliRunner().invoke(app, words).stdout
    wrong = CliRunner().invoke(app, [*words, "--content", "pdf"])
    assert (wrong.exit_code, "alike, text, packed" in wrong.stderr) == (2, True)
