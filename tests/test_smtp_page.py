"""docs/smtp.md and its Spanish twin name every reply that the listener has, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from relayd import replies
from relayd.listener.session import COMMAND_OCTETS, COMMAND_OCTETS_OF
from tests.story import FOLDER

DOCS = FOLDER.parent.parent / "docs"
ROW = re.compile(r"^\| `(\d{3} .*?)` \| (?:`(\w+)`)? ?\| (\S.*) \|$", re.MULTILINE)


def said() -> dict[str, str]:
    """Reply → reason; what is filled in stands there as the parameter's name in capitals."""
    found = [value for value in vars(replies).values() if isinstance(value, replies.Reply)]
    for function in vars(replies).values():
        if inspect.isfunction(function) and inspect.signature(function).return_annotation == "Reply":
            found.append(function(*(name.upper() for name in inspect.signature(function).parameters)))
    return {str(reply): reply.reason for reply in found}


@pytest.mark.parametrize("page", ["smtp.md", "es/smtp.md"])
def test_the_table_of_replies_is_the_list_of_replies(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert {reply: reason or "" for reply, reason, _ in ROW.findall(text)} == said()


@pytest.mark.parametrize("page", ["smtp.md", "es/smtp.md"])
def test_the_extensions_and_the_limits_are_those_of_the_code(page: str) -> None:
    text = Path(DOCS / page).read_text(encoding="utf-8")
    story = (FOLDER / "starttls.txt").read_text(encoding="utf-8")
    for keyword in set(re.findall(r"^S: 250[- ]([A-Z0-9]{3,})", story, re.MULTILINE)) - {"EHLO"}:
        assert f"| `{keyword}" in text, keyword
    digits = re.sub(r"(?<=\d)[, ](?=\d{3})", "", text)
    for verb, octets in COMMAND_OCTETS_OF.items():
        assert f"{verb} {octets}" in digits
    assert f" {COMMAND_OCTETS} |" in digits
