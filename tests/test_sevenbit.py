"""8-bit made 7-bit: what a reader decodes is the same before and after, and what cannot be is refused."""

from __future__ import annotations

import contextlib
import email
import email.header
import email.policy
import re
import time
from email.message import Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd import sevenbit, words
from relayd.mime import Malformed
from tests.test_prepare import PLAIN, fine, prepared

TOP = b"From: a@b.example\r\nMIME-Version: 1.0\r\n"


def leaves(message: Message) -> list[tuple[str, bytes]]:
    """Type and decoded octets of every leaf, in order."""
    if message.is_multipart():
        return [one for part in message.get_payload() for one in leaves(part)]  # type: ignore[union-attr]
    return [(message.get_content_type(), message.get_payload(decode=True))]  # type: ignore[list-item]


def decoded(content: bytes) -> list[tuple[str, bytes]]:
    return leaves(email.message_from_bytes(content, policy=email.policy.compat32.clone(linesep="\r\n")))


def header_text(content: bytes, name: str) -> str:
    message = email.message_from_bytes(content)
    return str(email.header.make_header(email.header.decode_header(message[name])))


def test_ascii_is_not_touched() -> None:
    content = TOP + b"Content-Transfer-Encoding: 8bit\r\n\r\nhi\r\n"
    assert sevenbit.converted(content) is content


def test_spanish_text_becomes_quoted_printable_and_russian_base64() -> None:
    head = TOP + b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    spanish = sevenbit.converted(head + "El año que viene\r\n".encode())
    assert spanish == TOP + (
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"El a=C3=B1o que viene\r\n"
    )
    assert b"Content-Transfer-Encoding: base64\r\n\r\n" in sevenbit.converted(head + "Привет\r\n".encode() * 20)


@pytest.mark.parametrize(("octets", "charset"), [("año".encode(), b"utf-8"), (b"a\xf1o", b"unknown-8bit")])
def test_mail_from_before_mime_is_told_what_it_is(octets: bytes, charset: bytes) -> None:
    assert sevenbit.converted(b"From: a@b.example\r\n\r\n" + octets + b"\r\n").startswith(
        b"From: a@b.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=" + charset
        + b"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na="
    )  # fmt: skip


def test_multiparts_and_messages_within_are_declared_7bit() -> None:
    content = (
        TOP + b'Content-Type: multipart/mixed; boundary="o"\r\nContent-Transfer-Encoding: 8bit\r\n\r\npreamble\r\n'
        b"--o\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8BIT\r\n\r\n"
        b"Subject: \xc3\xb1 inside\r\nFrom: x@y\r\n\r\n\xf1\r\n"
        b"--o\r\nContent-Type: text/plain\r\n\r\nplain\r\n"
        b"--o \r\nContent-Type: application/x\r\nContent-Transfer-Encoding: binary\r\n\r\n\xff\xfe\r\n--o--\r\nend\r\n"
    )
    final = sevenbit.converted(content)
    assert final.isascii()
    assert final.lower().count(b"content-transfer-encoding: 7bit\r\n") == 2
    assert b"8bit\r\n" not in final.lower().replace(b"unknown-8bit\r\n", b"")
    assert decoded(final) == decoded(content)
    assert b"preamble\r\n--o\r\n" in final and final.endswith(b"\r\n--o--\r\nend\r\n")


def test_a_soft_break_makes_no_delimiter() -> None:
    content = (
        TOP + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n\xf1" + b"A" * 72 + b"--b\r\n--b--\r\n"
    )
    final = sevenbit.converted(content)
    assert decoded(final) == decoded(content) and len(decoded(final)) == 1


MULTI = TOP + b"Content-Type: multipart/mixed; boundary=b\r\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (TOP + b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xf1\r\n--b--\r\n", "signed part"),
        (MULTI + b"\r\n--b\r\n\r\n\xf1\r\n", "closing delimiter"), (MULTI + b"\r\n\xf1\r\n", "closing delimiter"),
        (MULTI + b"\r\n--b--\r\n\xf1\r\n", "without parts"), (MULTI + b"\r\n\xf1\r\n--b\r\n\r\n--b--\r\n", "around"),
        (MULTI + b"\r\n--b\r\nno field \xf1\r\n--b--\r\n", "header that does not end"),
        (MULTI + b"\r\n" + b"--b\r\n\r\n\xf1\r\n" * 10_001 + b"--b--\r\n", "more than 10000 parts"),
        (MULTI + b"\r\n" + b"--b\r\n" * 30_000 + b"\xf1--b--\r\n", "more than 10000 parts"),
        (b"Subject: " + b"\xf1 " * 140_000 + b"\r\n\r\n", "too many 8-bit"),
        (TOP + b"Content-Type: multipart/mixed\r\n\r\n\xf1\r\n", "without boundary"),
        (TOP + b"Content-Type: text\r\n\r\n\xf1\r\n", "cannot be read"),
        (TOP + b"Content-Type: a/b\r\nContent-Type: a/b\r\n\r\n\xf1\r\n", "Content-Type given more"),
        (TOP + b"Content-Transfer-Encoding: base64\r\n\r\n\xf1\r\n", "says it is encoded"),
        (TOP + b"Content-Type: message/delivery-status\r\n\r\n\xf1\r\n", "type message"),
        (TOP + b"Content-Disposition: attachment; filename=\xf1\r\n\r\n", "Content-Disposition: 8-bit"),
        (b"From: \xf1@b.example\r\n\r\n", "From: 8-bit"), (b"To: x <\xf1@b.example>\r\n\r\n", "To: 8-bit"),
        (b"Message-ID: <\xf1@b>\r\n\r\n", "Message-Id: 8-bit"),
        ((TOP + b"Content-Type: message/rfc822\r\n\r\n") * 40 + b"From: x\r\n\r\n\xf1\r\n", "without end"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        sevenbit.converted(content)


def test_what_the_client_hears() -> None:
    content = b"From: \xc3\xb1@b.example\r\n\r\n"
    said = "554 5.6.1 cannot be converted to 7-bit: From: 8-bit octets that cannot be encoded there"
    assert str(prepared(content, seven_bit=True)) == said
    fine(content)
    found = fine(PLAIN + "Subject: año\r\n\r\nñ\r\n".encode(), seven_bit=True).message
    assert found.content.isascii() and (found.envelope.body, found.envelope.smtputf8) == ("7BIT", False)


@pytest.mark.parametrize(
    ("name", "body", "final"),
    [
        ("subject", "Año nuevo", b"=?utf-8?q?A=C3=B1o?= nuevo"),
        ("subject", "día más feliz", b"=?utf-8?b?ZMOtYSBtw6Fz?= feliz"),
        ("to", "José Núñez <jo@x.example>, \"Ñ, a\" <n@x.example>",
         b"=?utf-8?b?Sm9zw6kgTsO6w7Fleg==?= <jo@x.example>, =?utf-8?b?w5EsIGE=?=\r\n <n@x.example>"),
        ("from", "a@x.example (Peña)", b"a@x.example (=?utf-8?b?UGXDsWE=?=)"),
        ("from", "Ñ<n@x.example>", b"=?utf-8?b?w5E=?= <n@x.example>"),
        ("date", "ñ", None), ("received", "ñ", None), ("to", "\"ñ\"@x.example", None), ("to", "a (ñ", None),
    ],
)  # fmt: skip
def test_encoded_words(name: str, body: str, final: bytes | None) -> None:
    assert words.converted(name.encode(), body.encode()) == final


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]) | st.sampled_from("  ñé"), max_size=400)


def test_a_long_run_of_raw_words_costs_in_proportion() -> None:
    def cost(count: int) -> float:
        began = time.process_time()
        assert words.converted(b"subject", "ñ ".encode() * count) is not None
        return time.process_time() - began

    short, long = (min(cost(count) for _ in range(3)) for count in (40_000, 320_000))
    assert long < 16 * short


@given(TEXT)
def test_unstructured_text_reads_the_same(text: str) -> None:
    text = " ".join(text.split())
    if "=?" in text or not text:
        return
    final = words.converted(b"subject", text.encode())
    assert final is not None and final.isascii()
    if not text.isascii():
        assert re.sub(r"\s+", " ", header_text(b"Subject: " + final + b"\r\n\r\n", "Subject")) == text
    assert all(len(word) <= 75 for word in re.findall(rb"=\?\S+\?=", final))


PIECES = st.lists(
    st.sampled_from(
        [b"text", b"\xf1", "ñandú".encode(), b" ", b"\t", b"\r\n", b"=", b".", b"--", b"--b0", b"From ", b"\0", b"x" * 80]
    ),
    max_size=30,
).map(b"".join)  # fmt: skip
ENCODING = st.sampled_from([b"", b"Content-Transfer-Encoding: 8bit\r\n", b"Content-Transfer-Encoding: binary\r\n"])
TYPE = st.sampled_from([b"", b"Content-Type: text/html; charset=utf-8\r\n", b"Content-Type: image/png\r\n"])
LEAF = st.tuples(TYPE, ENCODING, PIECES).map(lambda parts: parts[0] + parts[1] + b"\r\n" + parts[2])


def nested(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def joined(parts: list[bytes], number: int) -> bytes:
        boundary = b"b%d_%d" % (number, max(map(len, parts)))
        body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        return (
            b"Content-Type: multipart/mixed; boundary=" + boundary + b"\r\n\r\n" + body + b"--" + boundary + b"--\r\n"
        )

    forwarded = inner.map(lambda part: b"Content-Type: message/rfc822\r\n\r\nMIME-Version: 1.0\r\n" + part)
    return st.builds(joined, st.lists(inner | forwarded, min_size=1, max_size=3), st.integers(0, 9))


@settings(deadline=None, max_examples=200)
@given(st.recursive(LEAF, nested, max_leaves=8))
def test_every_leaf_decodes_to_what_it_was(entity: bytes) -> None:
    content = TOP + entity + b"\r\n"
    final = sevenbit.converted(content)
    assert final.isascii()
    assert decoded(final) == decoded(content)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"\r\n", b"--b", b"--", b"\xf1", b"Content-Type: multipart/mixed; boundary=b\r\n",
    b"Content-Type: message/rfc822\r\n", b"To: \xf1 <", b"(", b'"', b"Subject: ", b"\\"]), max_size=25).map(b"".join))  # fmt: skip
def test_whatever_comes_it_is_converted_or_refused(content: bytes) -> None:
    clean = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
    with contextlib.suppress(Malformed):
        assert sevenbit.converted(clean).isascii()
