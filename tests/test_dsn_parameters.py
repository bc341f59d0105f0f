"""xtext and the DSN parameters: what counts, and what of it reaches the envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.dsn_parameters import DsnFields, decode_xtext, dsn_fields, is_envid, is_notify, is_orcpt, is_ret


def xtext(text: str) -> str:
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_xtext_comes_back(text: str) -> None:
    assert decode_xtext(xtext(text)) == text


@pytest.mark.parametrize("value", ["+", "a+2", "+2b", "a=b", "a b", "é", "+GG", "a\r\n"])
def test_what_is_no_xtext(value: str) -> None:
    assert decode_xtext(value) is None


@given(st.text(st.characters(max_codepoint=255), min_size=1, max_size=110))
def test_envid_is_printable_and_short(text: str) -> None:
    assert is_envid(xtext(text)) is (text.isascii() and text.isprintable() and len(text) <= 100)


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        ("NEVER", True), ("never", True), ("SUCCESS", True), ("success,FAILURE,Delay", True), ("DELAY,SUCCESS", True),
        ("", False), ("NEVER,SUCCESS", False), ("NEVER,NEVER", False), ("DELAY,DELAY", False), (",DELAY", False),
        ("SUCCESS FAILURE", False), ("ALL", False),
    ],
)  # fmt: skip
def test_notify(value: str, fine: bool) -> None:
    assert is_notify(value) is fine


@pytest.mark.parametrize(
    ("value", "utf8", "fine"),
    [
        ("rfc822;Jo+2Bx@D.example", False, True), ("RFC822;x", False, True), ("x-any;a+20b", False, True),
        ("utf-8;\\x{F1}@d.example", False, True), ("utf-8;ñ@d.example", True, True), ("utf-8;ñ@d.example", False, False),
        ("rfc822;ñ@d.example", True, False), ("rfc822;" + "x" * 493, False, True), ("rfc822;" + "x" * 494, False, False),
        ("rfc822", False, False), ("rfc822;", False, False), (";x", False, False), ("a b;x", False, False),
        ("rfc822;a+0Ab", False, False), ("utf-8;ñ\u202ex", True, False), ("ñ;x", True, False),
    ],
)  # fmt: skip
def test_orcpt(value: str, utf8: bool, fine: bool) -> None:
    assert is_orcpt(value, utf8) is fine


def test_ret() -> None:
    assert is_ret("full") and is_ret("HDRS") and not is_ret("BODY")


def test_nothing_said_is_nothing_kept() -> None:
    assert dsn_fields(["SIZE=1", "SMTPUTF8"], ["a@b", "c@d"], [[], []]) == DsnFields()


def test_a_recipient_named_twice_counts_as_first_said() -> None:
    recipients = ["a@b", "c@d", "a@b"]
    options = [["ORCPT=rfc822;A@b"], ["NOTIFY=delay"], ["NOTIFY=never", "ORCPT=rfc822;z"]]
    assert dsn_fields(["RET=full", "ENVID=xY+3D"], recipients, options) == DsnFields(
        "FULL", "xY+3D", ("", "DELAY"), ("rfc822;A@b", "")
    )
