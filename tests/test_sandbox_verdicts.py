"""DMARC's parser and alignment by tables, what a receiver writes down, and that looking never holds up accepting."""

from __future__ import annotations

import asyncio
import email
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import dmarc, mailbox
from sandbox.control import tell
from sandbox.dmarc import Record, Suffixes
from sandbox.judge import judge
from sandbox.server import Sandbox
from signing import keys
from signing.dkim import Key, Signer
from tests.dkim_kit import ed25519, records, rsa_2048
from tests.queue_kit import eventually
from tests.test_sandbox_mx import dialogue, with_sandbox

SUFFIXES = Suffixes(("gob.pe.test",))


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("v=DMARC1; p=reject", Record("reject", "reject")),
        ("v=DMARC1;p=none;sp=quarantine", Record("none", "quarantine")),
        ("v=DMARC1 ; p = Quarantine ; adkim=s ; aspf=s", Record("quarantine", "quarantine", True, True)),
        ("v=DMARC1; p=reject; sp=odd; pct=50; rua=mailto:a@b.test!10m; x", Record("reject", "reject")),
        ("v=DMARC1; p=reject; p=none", Record("reject", "reject")),
        ("v=DMARC1", None),
        ("v=DMARC1; p=", None),
        ("v=DMARC1; p=all", None),
        ("v=DMARC10; p=reject", None),
        ("p=reject; v=DMARC1", None),
        ("v=dmarc1; p=reject", None),
        ("", None),
    ],
)
def test_records(text: str, record: Record | None) -> None:
    assert dmarc.parse(text) == record


@given(st.text())
def test_any_text_is_a_record_or_none(text: str) -> None:
    for given_text in (text, "v=DMARC1;" + text):
        found = dmarc.parse(given_text)
        assert found is None or found.policy in ("none", "quarantine", "reject")


@pytest.mark.parametrize(
    ("domain", "organization"),
    [
        ("a.b.gob.test", "gob.test"),
        ("gob.test", "gob.test"),
        ("correo.munilima.gob.pe.test", "munilima.gob.pe.test"),
        ("gob.pe.test", "gob.pe.test"),
        ("www.munlima.gob.pe", "munlima.gob.pe"),
        ("mail.example.co.uk", "example.co.uk"),
        ("co.uk", "co.uk"),
    ],
)
def test_organizations(domain: str, organization: str) -> None:
    assert SUFFIXES.organization(domain) == organization


PUBLISHED = {
    "_dmarc.relaxed.test": ["v=DMARC1; p=quarantine; sp=reject"],
    "_dmarc.strict.test": ["v=DMARC1; p=reject; adkim=s; aspf=s"],
    "_dmarc.two.test": ["v=DMARC1; p=reject", "v=DMARC1; p=none"],
    "_dmarc.noise.test": ["v=spf1 -all", "v=DMARC1; p=reject"],
}


@pytest.mark.parametrize(
    ("domain", "by_spf", "by_dkim", "result", "policy", "by"),
    [
        ("relaxed.test", "bounces.relaxed.test", [], "pass", "quarantine", "spf"),
        ("relaxed.test", "other.test", ["mail.relaxed.test"], "pass", "quarantine", "dkim"),
        ("sub.relaxed.test", "relaxed.test", [], "pass", "reject", "spf"),
        ("sub.relaxed.test", "other.test", ["third.test"], "fail", "reject", ""),
        ("strict.test", "bounces.strict.test", ["mail.strict.test"], "fail", "reject", ""),
        ("strict.test", "strict.test", [], "pass", "reject", "spf"),
        ("strict.test", "", ["strict.test"], "pass", "reject", "dkim"),
        ("two.test", "", [], "none", "none", ""),
        ("noise.test", "", [], "fail", "reject", ""),
        ("nothing.test", "nothing.test", [], "none", "none", ""),
        ("", "", [], "permerror", "none", ""),
    ],
)
def test_alignment(domain: str, by_spf: str, by_dkim: list[str], result: str, policy: str, by: str) -> None:
    def lookup(name: str, kind: str) -> Sequence[str]:
        return PUBLISHED.get(name, []) if kind == "TXT" else []

    verdict = dmarc.check(lookup, SUFFIXES, domain, by_spf, by_dkim)
    assert (verdict.result, verdict.policy, verdict.by) == (result, policy, by)


KEYS = [Key("gob.test", "r1", rsa_2048()), Key("gob.test", "e1", ed25519())]
CONTENT = (
    b"From: Avisos <avisos@gob.test>\r\nTo: a@gmail.test\r\nSubject: x\r\nMessage-ID: <1@gob.test>\r\n\r\nHola\r\n"
)


def looking(name: str, kind: str) -> Sequence[str]:
    texts = {
        **{key: [text] for key, text in records(KEYS).items()},
        "_dmarc.gob.test": ["v=DMARC1; p=reject"],
        "gob.test": ["v=spf1 ip4:192.0.2.1 -all"],
    }
    return texts.get(name, []) if kind == "TXT" else []


@pytest.mark.parametrize(
    ("content", "source", "field"),
    [
        (
            Signer(KEYS).sign(CONTENT, "gob.test", 0.0) + CONTENT,
            "198.51.100.1",
            "Authentication-Results: mx.test;\r\n\tspf=fail (-all) smtp.mailfrom=b@gob.test;\r\n"
            "\tdkim=pass header.d=gob.test header.s=r1;\r\n\tdkim=pass header.d=gob.test header.s=e1;\r\n"
            "\tdmarc=pass (p=reject) header.from=gob.test\r\n",
        ),
        (
            Signer(KEYS[:1]).sign(CONTENT, "gob.test", 0.0) + CONTENT + b"more\r\n",
            "198.51.100.1",
            "Authentication-Results: mx.test;\r\n\tspf=fail (-all) smtp.mailfrom=b@gob.test;\r\n"
            "\tdkim=fail (body hash mismatch) header.d=gob.test header.s=r1;\r\n"
            "\tdmarc=fail (p=reject) header.from=gob.test\r\n",
        ),
        (
            CONTENT,
            "192.0.2.1",
            "Authentication-Results: mx.test;\r\n\tspf=pass (ip4:192.0.2.1) smtp.mailfrom=b@gob.test;\r\n"
            "\tdkim=none;\r\n\tdmarc=pass (p=reject) header.from=gob.test\r\n",
        ),
        (
            b"DKIM-Signature: v=1; d=(odd\r\nFrom: a@gob.test\r\nFrom: b@x.test\r\n\r\n",
            "192.0.2.1",
            "Authentication-Results: mx.test;\r\n\tspf=pass (ip4:192.0.2.1) smtp.mailfrom=b@gob.test;\r\n"
            '\tdkim=WHY header.d="(odd" header.s="";\r\n\tdmarc=permerror (no single domain in From) header.from=""\r\n',
        ),
    ],
)
def test_what_is_written_down(content: bytes, source: str, field: str) -> None:
    said = judge(looking, SUFFIXES, content, source, "b@gob.test", "relay.test").field(
        "mx.test", "b@gob.test", "relay.test"
    )
    before, why, after = field.partition("WHY")
    assert said.startswith(before) and said.endswith(after) and (why or said == field), said


@given(st.binary(max_size=400), st.text(max_size=40))
def test_nothing_a_sender_writes_breaks_it_or_the_field(data: bytes, name: str) -> None:
    for content in (data, b"DKIM-Signature: " + data + b"\r\nFrom: " + data + b"\r\n\r\nx"):
        field = judge(looking, SUFFIXES, content, "192.0.2.1", name, name).field("mx.test", name, name)
        lines = field.split("\r\n")
        assert lines[-1] == "" and all(line.startswith("\t") for line in lines[1:-1]) and field.isascii()
        assert email.message_from_string(field + "\r\n").keys() == ["Authentication-Results"]


def test_copies_get_verdicts_once_it_is_quiet_or_when_asked_for(tmp_path: Path) -> None:
    """The relay's own keys are in the DNS as soon as they are in its directory."""
    directory = tmp_path / "keys"
    keys.generate(directory, "gob.test", "ed25519", selector="now", now=0.0)
    (made,) = keys.rotate(directory, "gob.test", now=0.0, overlap=0.0)

    async def scenario(sandbox: Sandbox) -> None:
        signed = Signer([made.key]).sign(CONTENT, "gob.test", 1.0) + CONTENT
        forged = CONTENT.replace(b"Message-ID", b"Authentication-Results: mx1.gmail.test; dkim=pass\r\nMessage-ID")
        async with dialogue(sandbox, "mx1.gmail.test") as client:
            await client.greet()
            for content in (signed, forged):
                await client.say(
                    "MAIL FROM:<b@ajeno.test>", "RCPT TO:<a@gmail.test>", "RCPT TO:<b@empresa.test>", "DATA"
                )
                assert (await client.say(content.decode() + "."))[0].startswith("250")
        assert sandbox.store is not None
        listed = await asyncio.to_thread(tell, tmp_path / "c", cmd="mail", op="list", domain="gmail.test")
        good, bad = sorted(listed["mails"], key=lambda mail: str(mail["id"]))
        assert (good["spf"], good["dkim"], good["dmarc"]) == ("fail", "pass", "pass")
        assert (bad["spf"], bad["dkim"], bad["dmarc"]) == ("fail", "none", "fail")
        other = sandbox.store.messages("empresa.test")[0]

        async def looked_at() -> bool:
            return bool(mailbox.read(other).spf)

        await eventually(looked_at)
        assert mailbox.content(other.read_bytes()) == signed
        head = other.read_bytes()
        assert head.index(b"Authentication-Results: mx1.gmail.test;") < head.index(b"Received: from client.test")
        verdicts = [record for record in sandbox.ledger.receipts().records("verdict") if record["mail"] == bad["id"]]
        assert [(r["spf"], r["dkim"], r["dmarc"], r["policy"]) for r in verdicts] == [
            ("fail", "none", "fail", "reject")
        ]

    with_sandbox(tmp_path, scenario, store=True, keys=directory, control=tmp_path / "c")


def test_a_host_that_refuses_by_the_verdict(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx.estricto.test") as client:
            await client.greet()
            for author, code in (("x@ajeno.test", "550-5.7.26"), ("x@nobody.test", "250"), ("x@gob.test", "250")):
                await client.say(f"MAIL FROM:<{author}>", "RCPT TO:<a@estricto.test>", "DATA")
                (said,) = await client.say(f"From: {author}\r\n\r\nx\r\n.")
                assert said.startswith(code), (author, said)
        assert sandbox.ledger.messages == 2

    with_sandbox(tmp_path, scenario)
