"""From a transaction to final bytes and envelope: what is added, removed, broken, signed, refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from aiosmtpd.smtp import Envelope as Transaction
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import AccountSettings
from mailqueue.message import new_id
from relayd import headers, lines
from relayd.policy import Client
from relayd.prepare import Keys, Preparation, Prepared, Terms
from relayd.replies import Reply
from signing.dkim import Key, Signer
from signing.proof import verify
from signing.record import text
from signing.return_path import ReturnPaths

NOW = 1_795_224_326.7  # Sat, 21 Nov 2026 01:25:26 UTC
TERMS = Terms("relay.test", max_recipients=1000, max_hops=5, expire_seconds=86400, notice_seconds=0)
SIGNER = Signer([Key("b.example", "s1", Ed25519PrivateKey.generate())])
PATHS = ReturnPaths([b"k" * 32])
PLAIN = b"From: a@b.example\r\nDate: x\r\nMessage-ID: <1@b>\r\n"


def prepared(
    content: bytes, *, terms: Terms = TERMS, keys: Keys | None = None, utf8: bool = False, **account: Any
) -> Prepared | Reply:
    transaction = Transaction()
    transaction.mail_from, transaction.rcpt_tos = "a@b.example", ["c@d.example", "e@f.example", "c@d.example"]
    transaction.rcpt_options = [[], [], []]  # type: ignore[list-item]
    transaction.content, transaction.smtp_utf8 = content, utf8
    client = Client("10.1.2.3", AccountSettings.model_validate({"name": "app", **account}), "h.example", "ESMTP")
    preparation = Preparation(terms, keys or Keys(), lambda account, key: new_id())
    return preparation.prepare(client, transaction, NOW)


def fine(content: bytes, **how: Any) -> Prepared:
    found = prepared(content, **how)
    assert isinstance(found, Prepared), found
    return found


def below_trace(found: Prepared) -> bytes:
    """Content without our Received field."""
    assert found.message.content.startswith(b"Received: from ")
    return re.sub(rb"\AReceived: [^\r]*\r\n(?:\t[^\r]*\r\n)*", b"", found.message.content)


def test_what_is_missing_comes_and_what_nobody_should_see_goes() -> None:
    found = fine(
        b"Return-Path: <x@y>\r\nFrom: a@b.example\r\nBcc: secret@d.example,\r\n other@d.example\r\nSubject: x\r\n"
        b"X-Tambo-Campaign: c1\r\nResent-Bcc: z@d.example\r\n\r\nBcc: body\r\n",
        terms=replace(TERMS, feedback_id="tambo"),
    )
    envelope = found.message.envelope
    assert below_trace(found) == (
        b"From: a@b.example\r\nSubject: x\r\nDate: Sat, 21 Nov 2026 01:25:26 +0000\r\n"
        b"Message-ID: <" + envelope.id.encode() + b"@relay.test>\r\nFeedback-ID: c1:app:bulk:tambo\r\n\r\nBcc: body\r\n"
    )
    assert (envelope.recipients, envelope.campaign) == (("c@d.example", "e@f.example"), "c1")


def test_blanks_before_a_colon_go_since_readers_end_the_header_there() -> None:
    fields = b"Subject : x\r\n y : z\r\nBcc : s@d.example\r\nX-Tambo-Campaign\t: c\r\nFROM \t : a@b.example\r\n"
    found = fine(fields + PLAIN.partition(b"\r\n")[2] + b"\r\nText : \r\n", keys=Keys(SIGNER))
    kept = b"Subject: x\r\n y : z\r\nFROM: a@b.example\r\nDate: x\r\nMessage-ID: <1@b>\r\n\r\nText : \r\n"
    assert below_trace(found).endswith(b"\r\n" + kept)
    assert verify(below_trace(found), {key.name: text(key) for key in SIGNER.keys}.get) == ""
    assert found.message.envelope.campaign == "c"


def test_what_the_sender_gave_stays() -> None:
    content = PLAIN + b"Feedback-ID: mine\r\nSubject: x\r\nSubject: y\r\nTo: z\r\nTo: z\r\n\r\nhi\r\n"
    assert below_trace(fine(content, terms=replace(TERMS, feedback_id="tambo"))) == content


def test_feedback_id_without_campaign_has_three_parts() -> None:
    found = below_trace(fine(PLAIN + b"\r\n", terms=replace(TERMS, feedback_id="tambo")))
    assert b"\r\nFeedback-ID: app:bulk:tambo\r\n\r\n" in found


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"Subject: x\r\n", "550 5.6.0 From: missing"),
        (b"From: a@b.example\r\nFROM : a@b.example\r\n", "550 5.6.0 From: given more than once"),
        (b"From: a@b.example\r\nSender: a@b.example\r\nSender: a@b.example\r\n", "550 5.6.0 Sender: given more than once"),
        (b"From: " + b"x" * 990 + b" <a@b.example>\r\n", "550 5.6.0 From: a line over 998 octets"),
        (b"Received: x\r\n" * 5, "554 5.4.6 too many hops, mail is looping"),
        (b"From: a@b.example\r\nX-Tambo-Deadline: 0s\r\n", "550 5.6.0 X-Tambo-Deadline: lies in the past"),
    ],
)  # fmt: skip
def test_refusals(header: bytes, said: str) -> None:
    assert str(prepared(header + b"\r\nhi\r\n")) == said


def test_senders_are_looked_at_in_the_header() -> None:
    refused = prepared(PLAIN + b"Sender: x@evil.example\r\n\r\n", senders=["b.example"])
    assert str(refused).startswith("550 5.7.1 Sender: ")
    fine(PLAIN + b"Sender: x@evil.example\r\n\r\n")


def test_an_accounts_own_size() -> None:
    assert str(prepared(PLAIN + b"\r\n" + b"x" * 1024, max_message_bytes=1024)) == "552 5.3.4 message too big"


@pytest.mark.parametrize(("asked", "after"), [(b"2h", 7200), (b"9d", 86400), (b"2026-11-21T02:25:26.7Z", 3600)])
def test_a_deadline_is_never_later_than_the_expiry(asked: bytes, after: int) -> None:
    envelope = fine(PLAIN + b"X-Tambo-Deadline: " + asked + b"\r\n\r\n").message.envelope
    assert envelope.expires_at == int((NOW + after) * 1000)


def test_hide_client() -> None:
    content = fine(PLAIN + b"Received: from inside (10.9.9.9)\r\n by x\r\n\r\nhi\r\n", hide_client=True).message.content
    assert content.startswith(b"Received: from relay.test\r\n\tby relay.test with ESMTP id ")
    assert b"inside" not in content and b"10." not in content and b"h.example" not in content
    assert str(prepared(PLAIN + b"Received: x\r\n" * 5 + b"\r\n", hide_client=True)).startswith("554 5.4.6")


def test_pool_class_and_the_rest_of_the_envelope() -> None:
    content = PLAIN + b"X-Tambo-Pool: gold\r\nX-Tambo-Class: transactional\r\n\r\n"
    envelope = fine(content, pools=["gold"], classes=["transactional"], dsn="stream").message.envelope
    assert (envelope.pool, envelope.class_, envelope.dsn, envelope.pays) == ("gold", "transactional", "stream", False)
    assert fine(PLAIN + b"\r\n", pool="p1").message.envelope.pool == "p1"


def test_signed_below_our_received_field_and_over_what_travels() -> None:
    found = fine(b"From: A <a@b.example>\r\n\r\n" + b"x" * 2000 + b"\r\n", keys=Keys(SIGNER))
    rest = below_trace(found)
    assert rest.startswith(b"DKIM-Signature: v=1; a=ed25519-sha256;")
    assert found.warnings == ()
    unsigned = rest[rest.index(b"From: A") :]
    assert lines.long_line(rest) == -1
    assert SIGNER.sign(unsigned, "b.example", NOW) + unsigned == rest


def test_no_key_is_flagged_or_refused_as_the_account_says() -> None:
    other = b"From: a@other.example\r\n\r\n"
    assert fine(other, keys=Keys(SIGNER)).warnings == ("unsigned",)
    refused = prepared(other, keys=Keys(SIGNER), unsigned="refuse")
    assert str(refused) == "550 5.7.20 no DKIM key for the domain of the From address"
    assert isinstance(prepared(PLAIN + b"\r\n", keys=Keys(SIGNER), unsigned="refuse"), Prepared)


def test_signed_return_paths() -> None:
    envelope = fine(PLAIN + b"\r\n", keys=Keys(return_paths=PATHS), return_path="bounce.example").message.envelope
    read = [PATHS.read(path) for path in envelope.return_paths]
    assert [(one.id, one.index) for one in read if one] == [(envelope.id, 0), (envelope.id, 1)]
    assert fine(PLAIN + b"\r\n", keys=Keys(return_paths=PATHS)).message.envelope.return_paths == ()


@pytest.mark.parametrize(
    ("header", "body", "said", "needs"),
    [
        (b"", b"hi", False, ("7BIT", False)), (b"", b"hi", True, ("7BIT", False)),
        (b"", b"\xf1", False, ("8BITMIME", False)), ("Subject: ñ\r\n".encode(), b"", False, ("8BITMIME", True)),
        (b"Subject: \xf1\r\n", b"", False, ("8BITMIME", False)), (b"Subject: \xf1\r\n", b"", True, ("8BITMIME", True)),
    ],
)  # fmt: skip
def test_what_the_next_hop_must_offer(header: bytes, body: bytes, said: bool, needs: tuple[str, bool]) -> None:
    envelope = fine(PLAIN + header + b"\r\n" + body + b"\r\n", utf8=said).message.envelope
    assert (envelope.body, envelope.smtputf8) == needs


FIELDS = st.sampled_from(
    [b"From: a@b.example", b"FROM:x", b"Sender : y", b" folded", b"X-Tambo-Campaign: c", b"X-TAMBO-Foo:", b"Bcc: q",
     b"bcc : q", b"Return-Path: <>", b"Resent-Bcc: w", b"Received: r", b"Date: d", b"Message-Id: m", b"", b"text", b": z",
     b"Subject: " + b"s" * 3000, b"X" * 1200 + b": y", b"Subject: \xf1", b"To: " + b" " * 1500, b"\0: x"]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r"])
BODY = st.binary(max_size=300) | st.builds(lambda n, c: bytes([c]) * n, st.integers(900, 4000), st.integers(0, 255))


@settings(deadline=None)
@given(
    st.lists(st.tuples(FIELDS, ENDS), max_size=10),
    BODY,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"", b"From: A <a@b.example>\r\n"]),
)
def test_whatever_comes_it_is_refused_or_made_whole(
    fields: list[tuple[bytes, bytes]], body: bytes, hide: bool, signs: bool, seven_bit: bool, author: bytes
) -> None:
    content = author + b"".join(field + end for field, end in fields) + b"\r\n" + body
    found = prepared(content, keys=Keys(SIGNER) if signs else Keys(), hide_client=hide, seven_bit=seven_bit)
    if isinstance(found, Reply):
        assert found.code in (550, 552, 554)
        return
    final = found.message.content
    assert final.count(b"\r") == final.count(b"\n") == final.count(b"\r\n")
    assert final.endswith(b"\r\n")
    assert max(map(len, final.split(b"\r\n"))) <= 998
    header = headers.parse(final)
    assert header is not None and header.closed
    assert header.fields[0].name == b"received" and len(header.by_name[b"from"]) == 1
    assert not [
        name for name in header.by_name if name.startswith(b"x-tambo-") or name.endswith((b"bcc", b"return-path"))
    ]
    if seven_bit:
        assert final.isascii()
        return  # what it decodes to: tests/test_sevenbit.py
    # Nothing of the body is lost: line ends and breaks aside, the end of what came is the end of what goes.
    came = re.sub(rb"\r\n|\r", b"\n", content).partition(b"\n\n")[2]
    assert re.sub(rb"\s", b"", final[header.end :]).endswith(re.sub(rb"\s", b"", came))
