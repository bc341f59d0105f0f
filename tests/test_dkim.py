"""DKIM signatures: what dkimpy says of them, what they cover, the RFCs' own examples."""

from __future__ import annotations

import base64
import hashlib
import re
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from signing import canonical, proof, record
from signing.dkim import COVERED, LINE, SEALED, Key, Signer, covered
from tests.dkim_kit import DOMAIN, both, ed25519, faults, rsa_2048

NOW = 1_790_000_000.0
PLAIN = (
    b"From: Entidad <a@entidad.test>\r\nTo: jo@in.test\r\nSubject: Cita\r\n"
    b"Date: Wed, 25 Nov 2026 10:00:00 -0500\r\nMessage-ID: <1@entidad.test>\r\n\r\nHola.\r\n"
)


def signed(content: bytes, *keys: Key) -> bytes:
    return Signer(keys or both()).sign(content, DOMAIN, NOW) + content


def tags(content: bytes, number: int = 0) -> dict[str, str]:
    """The tags of one signature, unfolded."""
    fields = [value for name, value in canonical.fields(canonical.split(content)[0]) if name == b"dkim-signature"]
    parts = re.sub(rb"[ \t\r\n]", b"", fields[number]).decode("ascii").split(";")
    return {name: value for name, _, value in (part.partition("=") for part in parts)}


# ── what others make of it ─────────────────────────────────────────────────────────────────────────────────────────


WSP = st.text(" \t", max_size=3)
WORD = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f\x85\xa0"), max_size=12)
FOLD = st.builds(lambda a, b: f"{a}\r\n{b or ' '}", WSP, WSP)
VALUE = st.lists(st.one_of(WORD, WSP, FOLD), max_size=6).map("".join)
NAME = st.one_of(
    st.sampled_from(SEALED + COVERED),
    st.sampled_from(SEALED + COVERED).map(str.upper),
    st.sampled_from(("Received", "X-Other", "Return-Path", "DKIM-Signature-Not")),
)
HEADER = st.lists(st.tuples(NAME, VALUE), max_size=12).map(lambda rows: [("From", " a@entidad.test"), *rows])
BODY_LINE = st.one_of(st.just(""), WSP, st.lists(st.one_of(WORD, WSP), max_size=5).map("".join))
BODY = st.builds(
    lambda lines, end: "\r\n".join(lines) + end,
    st.lists(BODY_LINE, max_size=6),
    st.sampled_from(("", "\r\n", "\r\n\r\n")),
)


@settings(max_examples=300, deadline=None)
@given(header=HEADER, body=BODY, shift=st.integers(0, 12))
@example(header=[("From", " a@entidad.test"), ("subject", "")], body="", shift=0)
@example(header=[("From", " a@entidad.test"), ("To", " a\r\n \r\n b"), ("To", "\tc")], body=" \r\n\t\r\n", shift=1)
def test_dkimpy_verifies_whatever_is_signed(header: list[tuple[str, str]], body: str, shift: int) -> None:
    header = header[shift % len(header) :] + header[: shift % len(header)]
    text = "".join(f"{name}:{value}\r\n" for name, value in header) + "\r\n" + body
    content = text.encode("latin-1")
    arrived = signed(content) if content.endswith(b"\r\n") else signed(content) + b"\r\n"  # DATA ends every line
    assert faults(arrived, both()) == []


def test_both_algorithms_and_alignment_of_the_tags() -> None:
    content = signed(PLAIN)
    first, second = tags(content), tags(content, 1)
    assert (first["a"], first["s"], second["a"], second["s"]) == ("rsa-sha256", "r1", "ed25519-sha256", "e1")
    for found in (first, second):
        assert (found["v"], found["c"], found["d"], found["t"]) == ("1", "relaxed/relaxed", DOMAIN, "1790000000")
        assert not {"i", "l", "x"} & found.keys()
    assert faults(content, both()) == []


@pytest.mark.parametrize(
    "content",
    [b"From: a@entidad.test\r\n\r\n", b"From: a@entidad.test\r\n", b"From: a@entidad.test\r\n\r\nno line end"],
)
def test_without_body_or_line_end(content: bytes) -> None:
    whole = content if b"\r\n\r\n" in content else content + b"\r\n"
    assert faults(Signer(both()).sign(content, DOMAIN, NOW) + whole, both()) == []


def test_lines_of_ours_are_short_even_with_long_names() -> None:
    domain = ".".join(["d" * 60] * 3 + ["test"])
    key = Key(domain, "s" * 60, rsa_2048())
    field = Signer([key]).sign(PLAIN, domain, NOW)
    assert field.endswith(b"\r\n")
    assert max(len(line) for line in field.split(b"\r\n") if b"d=" not in line and b"s=" not in line) <= LINE
    assert max(len(line) for line in field.split(b"\r\n")) < 260
    assert faults(field + PLAIN, [key], 1) == []
    assert all(len(line) <= LINE for line in signed(PLAIN).split(b"\r\n"))


# ── what is covered ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SEALED)
def test_nobody_adds_a_sealed_field(name: str) -> None:
    content = signed(PLAIN)
    assert len(faults(f"{name}: added\r\n".encode() + content, both())) == 2
    head, _, body = content.partition(b"\r\n\r\n")
    assert len(faults(head + f"\r\n{name}: added\r\n\r\n".encode() + body, both())) == 2


@pytest.mark.parametrize("name", ["Received", "Return-Path", "Authentication-Results", "List-Id", "Resent-From"])
def test_the_way_may_add_its_own(name: str) -> None:
    assert faults(f"{name}: added\r\n".encode() + signed(PLAIN), both()) == []


@pytest.mark.parametrize("name", COVERED)
def test_covered_fields_stay_as_they_are(name: str) -> None:
    content = signed(f"{name}: as it was\r\n".encode() + PLAIN)
    assert faults(content, both()) == []
    assert len(faults(content.replace(b"as it was", b"as it is"), both())) == 2


def test_one_click_unsubscription_is_covered_and_named_in_h() -> None:
    links = b"List-Unsubscribe: <https://entidad.test/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    names = tags(signed(links + PLAIN))["h"].lower().split(":")
    assert names.count("list-unsubscribe") == names.count("list-unsubscribe-post") == 2
    assert names.count("from") == 2 and names.count("reply-to") == 1


def test_of_several_the_lowest_counts_first() -> None:
    lines, data = covered(b"To: one\r\nFrom: a\r\nTO : two")
    assert re.findall("To|From|Cc", "".join(lines))[:6] == ["To", "To", "To", "From", "From", "To"]  # of Reply-To
    assert data.index(b"to:two\r\n") < data.index(b"to:one\r\n")


@pytest.mark.parametrize("change", [b"hola.", b"Hola", b"Hola.\r\nx"])
def test_another_body_does_not_verify(change: bytes) -> None:
    assert len(faults(signed(PLAIN).replace(b"Hola.", change), both())) == 2


# ── which keys ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_nearest_domain_with_a_key_signs() -> None:
    top, below = Key("gob.test", "t", ed25519()), Key("citas.gob.test", "b", ed25519())
    signer = Signer([top, below])
    chosen = {domain: [key.domain for key in signer.keys_for(domain, NOW)] for domain in (
        "gob.test", "otro.gob.test", "citas.gob.test", "a.citas.gob.test", "xgob.test", "test", ""
    )}  # fmt: skip
    assert chosen == {
        "gob.test": ["gob.test"],
        "otro.gob.test": ["gob.test"],
        "citas.gob.test": ["citas.gob.test"],
        "a.citas.gob.test": ["citas.gob.test"],
        "xgob.test": [],
        "test": [],
        "": [],
    }
    assert not signer.covers("test", NOW) and signer.sign(PLAIN, "test", NOW) == b""


def test_the_newest_of_each_algorithm_signs_in_its_time() -> None:
    old = Key(DOMAIN, "old", rsa_2048(), since=0, until=200)
    new = Key(DOMAIN, "new", rsa_2048(), since=100)
    edwards = Key(DOMAIN, "e", ed25519(), since=150, until=300)
    signer = Signer([old, edwards, new])

    def at(now: float) -> list[str]:
        return [key.selector for key in signer.keys_for(DOMAIN, now)]

    assert [at(now) for now in (50, 120, 160, 300)] == [["old"], ["new"], ["new", "e"], ["new"]]
    assert [key.selector for key in Signer([old]).keys_for(DOMAIN, 200)] == []


def test_no_key_is_shown_in_a_traceback() -> None:
    assert "private" not in repr(both()[0])


# ── examples of the RFCs ───────────────────────────────────────────────────────────────────────────────────────────


def test_rfc_6376_section_3_4_5_relaxed() -> None:
    content = b"A: X\r\nB : Y\t\r\n\tZ  \r\n\r\n C \r\nD \t E\r\n\r\n\r\n"
    header, body = canonical.split(content)
    assert [canonical.relaxed_field(*field) for field in canonical.fields(header)] == [b"a:X\r\n", b"b:Y Z\r\n"]
    assert canonical.body_hash(body) == hashlib.sha256(b" C\r\nD E\r\n").digest()


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n", b" \r\n\t\r\n"])
def test_rfc_6376_section_3_4_4_hash_of_an_empty_body(body: bytes) -> None:
    assert base64.b64encode(canonical.body_hash(body)) == b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


RFC_8463 = (
    b"From: Joe SixPack <joe@football.example.com>\r\nTo: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\r\n"
    b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
)
RFC_8463_SIGNED = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
    b" subject : date : message-id : from : subject : date;\r\n bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n"
    b" Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n"
)
RFC_8463_KEY = Key(
    "football.example.com",
    "brisbane",
    Ed25519PrivateKey.from_private_bytes(base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")),
)


def test_rfc_8463_appendix_a() -> None:
    key = RFC_8463_KEY
    assert record.text(key) == "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert base64.b64encode(canonical.body_hash(canonical.split(RFC_8463)[1])) == (
        b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
    )
    assert proof.verify(RFC_8463_SIGNED + RFC_8463, {key.name: record.text(key)}.get) == ""
    # Ed25519 is deterministic: the same header fields in the same order give the RFC's own signature.
    fields = dict(canonical.fields(canonical.split(RFC_8463)[0]))
    named = (b"from", b"to", b"subject", b"date", b"message-id")
    data = b"".join(canonical.relaxed_field(name, fields[name]) for name in named)
    ((_, own),) = canonical.fields(RFC_8463_SIGNED)
    data += canonical.relaxed_field(b"dkim-signature", own[: own.index(b" b=") + 3]).removesuffix(b"\r\n")
    assert base64.b64encode(key.sign(data)) == re.sub(rb"\s", b"", own[own.index(b" b=") + 3 :])
    assert faults(Signer([key]).sign(RFC_8463, key.domain, NOW) + RFC_8463, [key], 1) == []


# ── bounds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content",
    [
        b"To: " + b"a@in.test,\r\n " * 80_000 + b"\r\n\r\n",
        b"From: a\r\n" * 100_000 + b"\r\n",
        b"From: a\r\n\r\n" + b" " * 1_000_000,
        b"From: a\r\n\r\n" + b" \t" * 500_000 + b"x",
        b"From: a\r\n\r\n" + b" \r\n" * 300_000,
        b"From: a\r\n\r\n" + b"\r\n" * 500_000,
    ],
    ids=["folds", "fields", "spaces", "tabs", "blank lines", "empty lines"],
)
def test_work_is_in_proportion_to_the_length(content: bytes) -> None:
    started = time.process_time()
    Signer([both()[1]]).sign(content, DOMAIN, NOW)
    assert time.process_time() - started < 1.0
