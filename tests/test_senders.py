"""As whom an account may send: by table, and by search for a way round."""

from __future__ import annotations

import base64
from email import message_from_bytes, policy
from email.utils import getaddresses, parseaddr

import pytest
from aiosmtpd.smtp import Envelope
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.accounts import AccountSettings
from config.schema import fit
from mailqueue.message import new_id
from relayd.policy import Client
from relayd.prepare import Keys, Preparation, Terms
from relayd.replies import Reply
from relayd.senders import Author, NotAllowed, check, may_use


def account(*senders: str) -> AccountSettings:
    return AccountSettings(name="rrhh", networks=("10.1.0.0/24",), senders=senders)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("notices@agency.pe", ["notices@agency.pe", "Notices@AGENCY.pe", '"notices"@agency.pe'], ["x@agency.pe"]),
        ("agency.pe", ["a@agency.pe", "b@Agency.PE"], ["a@sub.agency.pe", "a@myagency.pe", "a@agency.pe.evil.com"]),
        ("*.agency.pe", ["a@x.agency.pe", "a@x.y.agency.pe"], ["a@agency.pe", "a@xagency.pe"]),
        ("*", ["a@b.example", "a@[192.0.2.1]"], []),
        ("xn--espaa-rta.pe", ["a@españa.pe", "a@ESPAÑA.pe", "a@xn--espaa-rta.pe"], ["a@espana.pe"]),
        ("españa.pe", ["a@xn--espaa-rta.pe", "ñ@españa.pe"], ["a@españa.pe.evil.com"]),
        ("a@[10.0.0.1]", ["a@[10.0.0.1]"], ["a@10.0.0.1", "a@[10.0.0.2]"]),
        ("[IPv6:fd00::1]", ["a@[IPv6:FD00:0:0::1]", "a@[ipv6:fd00::1]"], ["a@[IPv6:fd00::2]"]),
        ("strasse.de", ["a@strasse.de"], ["a@straße.de"]),
        ("ok@agency.pe", ["OK@agency.pe"], ["o\u212a@agency.pe"]),  # the Kelvin sign
        ("agency.pe", [], ["a@agency。pe", "a@agency\uff0epe", "a@\u200bagency.pe", "a", "@agency.pe", "a@"]),
    ],
)
def test_may_use(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert all(may_use(account(pattern), address) for address in inside)
    assert not any(may_use(account(pattern), address) for address in outside)


def test_the_null_reverse_path_and_accounts_without_restriction() -> None:
    assert may_use(account("agency.pe"), "")
    assert may_use(account(), "any@body.example") and may_use(account("a@b.pe", "*"), "any@body.example")


@pytest.mark.parametrize(
    "text", ["", "@", "a@", "a b@c.pe", "*@agency.pe.", "*.", "*.[10.0.0.1]", "a@*.agency.pe", "**"]
)
def test_what_is_no_pattern(text: str) -> None:
    section, problems = fit(AccountSettings, {"name": "a", "networks": ["10.0.0.0/24"], "senders": [text]})
    assert section is None and "write an address (notices@agency.pe)" in str(problems[0])


GOOD = [
    b" a@agency.pe",
    b"a@agency.pe",
    b" <a@agency.pe>\r\n",
    b" A Name <A@Agency.PE>",
    b' "evil@evil.com" <a@agency.pe>',
    b' "P\xc3\xa9rez, Juan" <a@agency.pe>',
    b" John Q. Public <a@agency.pe>",
    b" =?utf-8?q?Mar=C3=ADa?= <a@agency.pe>",
    b" =?utf-8?b?TWFyw61h?=\r\n =?iso-8859-1*es?q?_P=E9rez?= <a@agency.pe>",
    b" a@agency.pe (Cron Daemon)",
    b" \r\n <a@agency.pe>",
    b'\t"a"@agency.pe',
    b" =?x-unheard-of?q?abc?= <a@agency.pe>",
]


@pytest.mark.parametrize("body", GOOD)
def test_one_mailbox_plainly_written(body: bytes) -> None:
    found = check(account("agency.pe"), [(b"From", body)])
    assert isinstance(found, Author)
    assert (found.address.lower(), found.domain) == ("a@agency.pe", "agency.pe")


BAD = [
    b"",
    b" ",
    b" <>",
    b" a",
    b" evil@evil.com",
    b" a@agency.pe.evil.com",
    b" a@agency.pe, evil@evil.com",
    b" evil@evil.com, a@agency.pe",
    b" evil@evil.com <a@agency.pe>",
    b" <evil@evil.com> <a@agency.pe>",
    b" <a@agency.pe> evil@evil.com",
    b" a@agency.pe evil@evil.com",
    b" Group: a@agency.pe;",
    b" undisclosed:;",
    b" <@evil.com:a@agency.pe>",
    b" <@evil.com,@x.org:a@agency.pe>",
    b' "<evil@evil.com>" <a@agency.pe>',
    b' "evil@evil.com, x" <a@agency.pe>',
    b' "\\" <evil@evil.com> \\"" <a@agency.pe>',
    b" (<evil@evil.com>) a@agency.pe",
    b" (evil@evil.com) a@agency.pe",
    b" (a (b) c) a@agency.pe",
    b" (\\) <evil@evil.com> (\\) <a@agency.pe>",
    b" a(x)@agency.pe",
    b" a @ agency.pe",
    b" <a@agency.pe (x)>",
    b" a@agency.pe.",
    b" a..b@agency.pe",
    b" .a@agency.pe",
    b' "evil@evil.com"@agency.pe',
    b' "a b"@agency.pe',
    b" evil@evil.com\\@agency.pe",
    b" evil@evil.com\0@agency.pe",
    b" evil@evil.com\r@agency.pe",
    b" a@agency.pe\r\nFrom: evil@evil.com",
    b" evil@evil.com\n <a@agency.pe>",
    b" =?utf-8?q?evil=40evil.com?=@agency.pe",
    b" =?utf-8?b?" + base64.b64encode(b"evil@evil.com\0") + b"?=@agency.pe",
    b" =?utf-8?q?evil@evil.com=00?= <a@agency.pe>",
    b" =?utf-8?q?=3Cevil@evil.com=3E?= <a@agency.pe>",
    b' "=?utf-8?q?=3Cevil@evil.com=3E?=" <a@agency.pe>',
    b" =?utf-7?q?+ADw-evil?= <a@agency.pe>",
    b" =?utf-8?q?x=0D=0AFrom:_evil?= <a@agency.pe>",
    b" M\xe9 <a@agency.pe>",  # Latin-1
    b" a\xc2\xa0@agency.pe",
    b" \xe2\x80\xaea@agency.pe",  # right-to-left override
    b" a@agency\xe3\x80\x82pe",
    b" a@[192.0.2.1]",
    b" a%evil.com@evil.com",
    b" a" * 5000 + b" <a@agency.pe>",
    b" " + b"x" * 955 + b" <b@evil.com.agency.pe>",  # would be broken before ".agency.pe"
]


@pytest.mark.parametrize("body", BAD)
@pytest.mark.parametrize("name", [b"From", b"Sender", b"RESENT-FROM ", b"resent-sender"])
def test_what_must_not_pass(body: bytes, name: bytes) -> None:
    fields = [(name, body)] if name == b"From" else [(b"From", b" a@agency.pe"), (name, body)]
    found = check(account("agency.pe"), fields)
    assert isinstance(found, NotAllowed) and found.header.lower() == name.strip().decode().lower()
    assert "agency.pe" not in found.why


def test_how_often_a_field_may_stand() -> None:
    good, who = (b"From", b" a@agency.pe"), account("agency.pe")
    assert check(who, []) == NotAllowed("From", "missing; account rrhh needs one")
    assert check(who, [good, (b"fRoM", b" a@agency.pe")]) == NotAllowed("From", "given more than once")
    sender = (b"Sender", b" b@agency.pe")
    assert check(who, [good, sender]) == Author("a@agency.pe", "agency.pe")
    assert check(who, [good, sender, sender]) == NotAllowed("Sender", "given more than once")
    resent = (b"Resent-From", b" b@agency.pe")
    assert isinstance(check(who, [good, resent, resent]), Author)
    outside = (b"Resent-From", b" b@other.pe")
    assert check(who, [good, resent, outside]) == NotAllowed("Resent-From", "sender not allowed for account rrhh")


def test_an_account_without_restriction_is_signed_for_only_beyond_doubt() -> None:
    assert check(account(), [(b"From", b" X <a@\xc3\xb1.pe>")]) == Author("a@xn--ida.pe", "xn--ida.pe")
    assert check(account(), []) == Author()
    assert check(account("*"), [(b"From", b"a@b.pe, c@d.pe")]) == Author()
    assert check(account(), [(b"From", b"a@b.pe"), (b"From", b"a@b.pe")]) == Author()


PIECES = st.sampled_from(
    [
        "a@agency.pe",
        "evil@evil.com",
        "a",
        "evil",
        "@",
        "agency.pe",
        "evil.com",
        *'<>()[]"\\,;:.= \t\r\n\x00\x7f',
        "\r\n",
        "\r\n ",
        "=?",
        "?=",
        "=?utf-8?q?",
        "=?utf-8?b?",
        "=40",
        "=3C",
        "=3E",
        *"ñß\u200b\u202e。＠＜\xa0",
    ]
)
STRINGS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40)


@settings(max_examples=600, deadline=None)
@given(STRINGS)
@example('"@" <a@agency.pe>')
def test_other_readers_find_the_address_that_we_found(text: str) -> None:
    """Whatever passes: the standard library's strict and lenient parsers see a sender inside and no other one."""
    body = text.encode("utf-8", "surrogatepass")
    found = check(account("agency.pe", "*.agency.pe"), [(b"From", body)])
    if isinstance(found, NotAllowed):
        return
    assert found.domain == "agency.pe" or found.domain.endswith(".agency.pe")
    unfolded = body.removesuffix(b"\r\n").replace(b"\r\n", b"").decode()
    assert getaddresses([unfolded])[0][1].strip('"').replace('"@', "@").rpartition("@")[2].lower() == found.domain
    if unfolded.isascii():
        parsed = message_from_bytes(b"From:" + body.removesuffix(b"\r\n") + b"\r\n\r\n", policy=policy.SMTPUTF8)
        assert [a.domain.lower() for a in parsed["From"].addresses] == [found.domain]
    shown = unfolded.rpartition("<")[2].partition(">")[0]  # who looks for angle brackets only
    assert "evil" not in shown.rpartition("@")[2]


@settings(max_examples=400, deadline=None)
@given(
    st.text(max_size=30) | STRINGS, st.sampled_from(["agency.pe", "sub.agency.pe", "agency.pe.evil.com", "xagency.pe"])
)
def test_no_address_outside_is_allowed(local: str, domain: str) -> None:
    allowed = may_use(account("*.agency.pe"), f"{local}@{domain}")
    assert not allowed or (domain == "sub.agency.pe" and local)
    behind = f"a@agency.pe{local}"
    assert not may_use(account("agency.pe"), behind) or behind.lower() == "a@agency.pe"


LINES = st.sampled_from(
    [
        "From: a@agency.pe",
        "From: evil@evil.com",
        "from : evil@evil.com",
        " From: evil@evil.com",
        "\tx",
        "Subject: x",
        "Sender: a@agency.pe",
        "Resent-From: evil@evil.com",
        "From",
        ":",
        "From\x00: evil@evil.com",
        "X:" + "y" * 1200 + "From: evil@evil.com",
        "",
        " ",
        "Sender: b@evil.com",
    ]
)
ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r"])


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS), max_size=6), st.integers(0, 6))
def test_no_header_shows_another_author_to_who_reads_the_message_later(parts: list[tuple[str, str]], at: int) -> None:
    """The whole way of content: what is put has one From, and it is the account's."""
    parts.insert(at, ("From: a@agency.pe", "\r\n"))
    transaction = Envelope()
    transaction.mail_from, transaction.rcpt_tos = "a@agency.pe", ["b@c.example"]
    transaction.rcpt_options, transaction.smtp_utf8 = [[]], False
    transaction.content = "".join(line + end for line, end in parts).encode()
    preparation = Preparation(Terms("relay.test", 10, 50, 60.0, 0.0), Keys(), lambda account, key: new_id())
    prepared = preparation.prepare(Client("10.1.0.1", account("agency.pe"), "h", "ESMTP"), transaction, 0.0)
    if isinstance(prepared, Reply):
        return
    for how in (policy.SMTPUTF8, policy.compat32):
        message = message_from_bytes(prepared.message.content, policy=how)
        assert [parseaddr(str(one))[1] for one in message.get_all("From")] == ["a@agency.pe"]
        found = [parseaddr(str(one))[1] for name in ("Sender", "Resent-From") for one in message.get_all(name, [])]
        assert not any("evil" in one for one in found)


@settings(max_examples=400, deadline=None)
@given(STRINGS, STRINGS)
def test_order_and_number_of_mailboxes(first: str, second: str) -> None:
    """Two mailboxes never pass, whatever stands between and around."""
    body = f"{first}a@agency.pe{second} evil@evil.com".encode("utf-8", "surrogatepass")
    found = check(account("agency.pe"), [(b"From", body)])
    assert isinstance(found, NotAllowed) or b'"' in body
