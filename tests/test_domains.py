"""A domain has one name, however it was written; a destination is one too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.addresses import ascii_domain
from delivery.resolver import name_of
from mailqueue.message import domain_of
from relayd.policy import is_mailbox


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Example.ORG", "example.org"),
        ("peña.example", "xn--pea-8ma.example"),
        ("PEÑA.example", "xn--pea-8ma.example"),
        ("XN--PEA-8MA.example", "xn--pea-8ma.example"),
        ("_dmarc.peña.example", "_dmarc.xn--pea-8ma.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    ],
)
def test_u_labels_and_a_labels_are_one_destination(written: str, name: str) -> None:
    assert ascii_domain(written) == name
    assert domain_of(f"x@{written}") == domain_of(f"x@{name}.") == name
    assert name_of(domain_of(f"x@{written}")).to_text(omit_final_dot=True) == name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "domain", ["faß.example", "b\u3002example", "pen\u0303a.example", "a..é", "é" * 60, "é-.example"]
)
def test_what_two_programs_could_read_differently_is_no_recipient(domain: str) -> None:
    assert not is_mailbox(f"x@{domain}", utf8=True)


@pytest.mark.parametrize("path", ["é@example.org", "x@é.example", '"é x"@example.org', "é@[192.0.2.1]"])
def test_mailboxes_beyond_ascii_only_where_smtputf8_was_said(path: str) -> None:
    assert is_mailbox(path, utf8=True)
    assert not is_mailbox(path)


@given(st.text(max_size=80))
def test_a_recipient_that_passes_has_a_destination_that_dns_can_be_asked_for(text: str) -> None:
    if is_mailbox(f"x@{text}", utf8=True) and not text.isascii():
        name = domain_of(f"x@{text}")
        assert name.isascii() and name_of(name) is not None
        assert domain_of(f"x@{name}") == name
