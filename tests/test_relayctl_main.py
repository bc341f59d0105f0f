"""The root of ``relayctl``: every word leads somewhere, and none imports what the others need."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from relayctl.main import NOUNS, VERBS, app

STARTED = (
    "import sys; from relayctl.main import app; app(['{word}', '--help'], standalone_mode=False);"
    "print('sandbox' in sys.modules, file=sys.stderr)"
)


@pytest.mark.parametrize("word", [*NOUNS, *VERBS])
def test_a_word_says_what_it_does(word: str) -> None:
    done = CliRunner().invoke(app, [word, "--help"])
    assert done.exit_code == 0, done.output
    assert f"Usage: relayctl {word} " in done.output
    if word in NOUNS:
        assert NOUNS[word].help in done.output


def test_the_root_lists_them() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    assert [word for word in (*NOUNS, *VERBS) if f"│ {word} " not in listed] == []


def test_a_word_nobody_knows() -> None:
    done = CliRunner().invoke(app, ["quee"])
    assert done.exit_code == 2 and "Did you mean 'queue'" in done.output


@pytest.mark.parametrize(("word", "imported"), [("alarms", False), ("queue", False), ("sandbox", True)])
def test_only_what_the_word_needs_is_imported(word: str, imported: bool) -> None:
    program = [sys.executable, "-c", STARTED.format(word=word)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == str(imported)
