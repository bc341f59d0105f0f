"""Header block, X-Tambo-* directives, Received: pure, on bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import AccountSettings
from relayd import completion, directives, headers, policy, trace
from relayd.directives import Directives, Refused
from relayd.policy import Client

NOW = 1_795_224_326.7  # Sat, 21 Nov 2026 01:25:26 UTC
ACCOUNT = AccountSettings.model_validate(
    {"name": "app", "class": "bulk", "classes": ["transactional"], "pool": "p1", "pools": ["gold"]}
)


def parse(content: bytes) -> headers.Header:
    header = headers.parse(content)
    assert header is not None
    return header


def asked(*fields: bytes) -> Directives | Refused:
    content = b"".join(f + b"\r\n" for f in fields) + b"\r\nbody\r\n"
    return directives.read(content, directives.own(parse(content)), ACCOUNT, NOW)


def test_all_directives() -> None:
    assert asked(
        b"X-Tambo-Campaign: spring.2026_a-1",
        b"x-tambo-class:TRANSACTIONAL",
        b"X-Tambo-Unknown: once:24h",
        b"X-TAMBO-IDEMPOTENCY-KEY: order 4711",
        b'X-Tambo-Metadata: {"order":\r\n 4711, "city": "Cusco \xc3\xb1"}',
        b"X-Tambo-Pool: gold",
        b"X-Tambo-Deadline: 90m",
        b"Subject: x",
    ) == Directives(
        campaign="spring.2026_a-1",
        class_="transactional",
        pool="gold",
        unknown="once:86400",
        deadline=NOW + 5400,
        idempotency_key="order 4711",
        metadata={"order": 4711, "city": "Cusco ñ"},
    )


def test_nothing_asked_changes_nothing() -> None:
    content = b"Subject: x\r\n\r\nX-Tambo-Campaign: body\r\n"
    assert directives.read(content, directives.own(parse(content)), ACCOUNT, NOW) == Directives()
    assert completion.without_own(content, parse(content)) is content


@pytest.mark.parametrize(
    ("fields", "header", "why"),
    [
        ([b"X-Tambo-Campaign: a b"], "X-Tambo-Campaign", "1 to 64"),
        ([b"X-Tambo-Campaign:"], "X-Tambo-Campaign", "1 to 64"),
        ([b"X-Tambo-Campaign: " + b"a" * 65], "X-Tambo-Campaign", "1 to 64"),
        ([b"X-Tambo-Campaign: a", b"X-Tambo-CAMPAIGN: a"], "X-Tambo-Campaign", "more than once"),
        ([b"X-Tambo-Class: emergency"], "X-Tambo-Class", "not granted"),
        ([b"X-Tambo-Class: fast"], "X-Tambo-Class", "one of"),
        ([b"X-Tambo-Unknown: once:"], "X-Tambo-Unknown", "one of"),
        ([b"X-Tambo-Unknown: once:9x"], "X-Tambo-Unknown", "duration"),
        ([b"X-Tambo-Unknown: once:" + b"9" * 400 + b"d"], "X-Tambo-Unknown", "one of"),
        ([b"X-Tambo-Idempotency-Key: \xc3\xa9"], "X-Tambo-Idempotency-Key", "printable"),
        ([b"X-Tambo-Idempotency-Key: " + b"k" * 129], "X-Tambo-Idempotency-Key", "printable"),
        ([b"X-Tambo-Metadata: [1]"], "X-Tambo-Metadata", "JSON object"),
        ([b"X-Tambo-Metadata: {"], "X-Tambo-Metadata", "JSON object"),
        ([b'X-Tambo-Metadata: {"a":"' + b"x" * 2048 + b'"}'], "X-Tambo-Metadata", "2048"),
        ([b'X-Tambo-Metadata: {"a":' + b"[" * 32 + b"]" * 32 + b"}"], "X-Tambo-Metadata", "32 levels"),
        ([b"X-Tambo-Metadata: " + b'{"a":' * 200 + b"{}" + b"}" * 200], "X-Tambo-Metadata", "32 levels"),
        ([b"X-Tambo-Pool: silver"], "X-Tambo-Pool", "not granted"),
        ([b"X-Tambo-Pool: GOLD"], "X-Tambo-Pool", "1 to 32"),
        ([b"X-Tambo-Deadline: tomorrow"], "X-Tambo-Deadline", "RFC 5322 date"),
        ([b"X-Tambo-Deadline: 90"], "X-Tambo-Deadline", "RFC 5322 date"),
        ([b"X-Tambo-Deadline: 0s"], "X-Tambo-Deadline", "past"),
        ([b"X-Tambo-Deadline: " + b"9" * 400 + b"d"], "X-Tambo-Deadline", "RFC 5322 date"),
        ([b"X-Tambo-Deadline: 2026-11-21T08:00:00"], "X-Tambo-Deadline", "RFC 3339"),
        ([b"X-Tambo-Deadline: 2026-02-30T08:00:00Z"], "X-Tambo-Deadline", "RFC 3339"),
        ([b"X-Tambo-Deadline: 2026-11-20T20:25:26-05:00"], "X-Tambo-Deadline", "past"),
        ([b"X-Tambo-Deadline: Fri, 20 Nov 2026 20:25:26 -0500"], "X-Tambo-Deadline", "past"),
        ([b"X-Tambo-Deadline: 30 Feb 2027 20:25:26 -0500"], "X-Tambo-Deadline", "RFC 5322 date"),
        ([b"X-Tambo-Priority: 1"], "X-Tambo-Priority", "unknown header"),
    ],
)
def test_what_cannot_count_refuses_and_names_the_header(fields: list[bytes], header: str, why: str) -> None:
    refused = asked(b"From: a@b.example", *fields)
    assert isinstance(refused, Refused)
    assert refused.header == header
    assert why in refused.why


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (b"2026-11-21T01:25:27.700Z", 1), (b"2026-11-20 20:26:26.7-05:00", 60), (b"Fri, 20 Nov 2026 21:25:26 -0500", 3599.3),
        (b"21 Nov 2026 02:25:26 GMT", 3599.3), (b"2h", 7200), (b"1d12h", 129_600), (b"(comment) 2h", None),
    ],
)  # fmt: skip
def test_deadlines(text: bytes, after: float | None) -> None:
    read = asked(b"X-Tambo-Deadline: " + text)
    if after is None:
        assert isinstance(read, Refused)
    else:
        assert isinstance(read, Directives) and read.deadline == pytest.approx(NOW + after)


def test_own_fields_leave_and_all_else_stays() -> None:
    content = (
        b"X-Tambo-Campaign: a\r\nSubject: one\r\n two\r\nX-Tambo-Metadata: {\r\n\t}\r\n"
        b"X-Tambo-Class : bulk\r\nX-Tamboril: kept\r\nTo: x\r\nX-Tambo-Unknown: never\r\n\r\nbody\r\n"
    )
    assert completion.without_own(content, parse(content)) == (
        b"Subject: one\r\n two\r\nX-Tamboril: kept\r\nTo: x\r\n\r\nbody\r\n"
    )


@pytest.mark.parametrize(
    ("content", "end", "closed"),
    [
        (b"", 0, False),
        (b"\r\nbody\r\n", 0, True),
        (b"just text\r\n", 0, False),
        (b" folded first\r\nSubject: x\r\n\r\n", 0, False),
        (b"Subject: x\r\n", 12, False),
        (b"Subject: x\r\nno field here\r\n\r\nX: y\r\n", 12, False),
        (b"Subject: x\r\n\r\nX: y\r\n", 12, True),
        (b"From a@b Sat Nov 21 01:00:00 2026\r\nSubject: x\r\n\r\n", 0, False),
    ],
)
def test_where_the_header_ends(content: bytes, end: int, closed: bool) -> None:
    header = parse(content)
    assert (header.end, header.closed) == (end, closed)
    assert completion.without_own(content, header) == content[:end] + (b"" if closed else b"\r\n") + content[end:]


def test_hops_are_counted_in_the_header_only() -> None:
    assert parse(b"Received: a\r\nRECEIVED: b\r\n c\r\nX: y\r\nReceived-SPF: no\r\n\r\nReceived: d\r\n").hops == 2


def test_a_header_of_very_many_fields_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def counted(name: bytes, start: int, end: int) -> headers.Field:
        nonlocal made
        made += 1
        return whole(name, start, end)

    whole = headers.Field
    monkeypatch.setattr(headers, "Field", counted)
    assert headers.parse(b"a:\r\n" * 260_000) is None
    assert made == headers.FIELDS_LIMIT + 1
    assert len(parse(b"a:\r\n" * headers.FIELDS_LIMIT).fields) == headers.FIELDS_LIMIT


def test_an_endless_header_is_refused() -> None:
    assert headers.parse(b"X: y\r\n" * 200_000) is None
    assert headers.parse(b"X: y\r\n" * 10_001 + b"\r\n") is None
    assert headers.parse(b"X: y\r\n" + b" z\r\n" * 300_000) is None


LINE = st.sampled_from(
    [b"Subject: x", b" folded", b"X-Tambo-Campaign: c", b"X-Tambo-Foo : d", b"", b"text", b": y", b"\tz"]
)


@given(st.lists(LINE, max_size=12))
def test_removal_leaves_every_other_line_and_no_own_field(lines: list[bytes]) -> None:
    content = b"".join(line + b"\r\n" for line in lines)
    final = completion.without_own(content, parse(content))
    again = parse(final)
    assert directives.own(again) == []
    assert again.closed
    assert parse(b"Received: here\r\n" + final).end == again.end + len(b"Received: here\r\n") or final.startswith(
        (b" ", b"\t")
    )
    assert completion.without_own(final, again) == final


def test_received_field() -> None:
    client = Client("10.1.2.3", ACCOUNT, "app(1) <x>;é.example", "ESMTPSA")
    assert trace.received(client, "relay.test", "abc", NOW) == (
        b"Received: from app?1???x???.example ([10.1.2.3])\r\n\tby relay.test with ESMTPSA id abc;\r\n"
        b"\tSat, 21 Nov 2026 01:25:26 +0000\r\n"
    )
    assert b"([IPv6:fd00::1])" in trace.received(Client("fd00::1", ACCOUNT, "x", "SMTP"), "r", "i", 0)


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ("a@b.example", True), ("a.b+c=d'e@x-1.example", True), ('"a b\\"@ c"@d.example', True), ("a@[127.0.0.1]", True),
        ("a@[IPv6:::1]", True), ("a@localhost", True), ("a@b_c.example", True), ("x" * 64 + "@b.example", True),
        ("x" * 65 + "@b.example", False), ("a@" + "b." * 124 + "example", False), ("a@" + "b" * 64, False), ("a", False),
        ("@b.example", False), ("a@", False), ("a@b..example", False), ("a@b.example.", False), (".a@b.example", False),
        ("a.@b.example", False), ("a@[IPv6:fe80::1%eth0]", False), ("a@[x]", False), ('"a"b@c.example', False),
        ("a b@c.example", False), ("a@b@c.example", False),
    ],
)  # fmt: skip
def test_mailboxes(path: str, fine: bool) -> None:
    assert policy.is_mailbox(path) is fine
