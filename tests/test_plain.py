"""Nothing that others wrote is obeyed by an operator's terminal."""

from __future__ import annotations

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mailqueue.events import Event
from mailqueue.traces import Line
from relayctl import sandbox_sheets
from relayctl.events import line
from relayctl.plain import plain, show
from relayctl.trace import spelled
from relayd.listener.overhear import shown

TITLE = "\x1b]0;owned\x07\u009b31m\u202e"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("250 ñandú – ok", "250 ñandú – ok"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b31m", "a\\x9b31m"),
        ("one\r\ntwo", "one\\r\\ntwo"),
        ("evil\u202etxt", "evil\\u202etxt"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled(text: str, safe: str) -> None:
    assert plain(text) == safe


@given(st.text())
def test_only_printable_characters_are_left(text: str) -> None:
    assert plain(text).isprintable()


def printed(what: object) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(what, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_client_that_is_traced_cannot_write_to_who_listens() -> None:
    _, text = shown(f"MAIL FROM:<a{TITLE}@b.test>\r\n".encode())
    said = printed(spelled(Line(0, "s", "C", "mail", text, "192.0.2.1")))
    assert "\\x1b]0;owned\\x07\\x9b31m\\u202e" in said and "\x1b" not in said


def test_an_event_is_one_line_that_can_be_read() -> None:
    event = Event(kind="bounced", at=0, id="x", recipient="a@b.test", diagnostic_code=f"smtp; 550 no{TITLE}\nsecond")
    assert line(event).isprintable()


def test_a_subject_stays_in_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    words = dict.fromkeys(("id", "source", "spf", "dkim", "dmarc"), "x")
    sandbox_sheets.mails([{**words, "at": 0, "recipients": ["a@b.test"], "subject": f"hello{TITLE}[bold]you[/bold]"}])
    said = capsys.readouterr().out
    assert "hello\\x1b]0;owned" in said and "[bold]you[/bold]" in said and "\x1b" not in said and "\x9b" not in said


def test_a_mail_is_shown_as_it_came_only_where_no_terminal_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    mail = b"Subject: \x1b[2Jx\r\n\r\n\xff \xc2\x9b \xc3\xb1\r\n"
    controller, terminal = os.openpty()
    pipe_out, pipe_in = os.pipe()
    try:
        for descriptor in (terminal, pipe_in):
            with open(os.dup(descriptor), "w") as stream, monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", stream)
                show(mail)
        assert os.read(controller, 100) == b"Subject: \\x1b[2Jx\r\n\r\n\\xff \\x9b \xc3\xb1\r\n"
        assert os.read(pipe_out, 100) == mail
    finally:
        for descriptor in (controller, terminal, pipe_out, pipe_in):
            os.close(descriptor)
