"""What comes back: each shape's golden octets, what the standard library makes of them, and the way to the relay."""

from __future__ import annotations

import asyncio
import email
import email.policy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.behaviour import Later
from sandbox.control import tell
from sandbox.mailer import NOWHERE, Door
from sandbox.server import Sandbox
from sandbox.shapes import About, names, render, shapes
from signing.return_path import ReturnPaths, add_key
from tests.listening import RecordingStore, inbound_settings, taking_returns
from tests.queue_kit import eventually
from tests.test_sandbox_mx import dialogue, with_sandbox

GOLDEN = Path(__file__).parent / "golden" / "returns"
RETURN_PATH = "b-05v4tqkq2lmtv5c0j7ug0000jj6bdqbc6oqkst4v@bounces.gob.test"
CONTENT = (
    b"From: Avisos <notices@gob.test>\r\nTo: persona@gmail.test\r\nSubject: =?utf-8?q?Recibo_del_a=C3=B1o?=\r\n"
    b"Message-ID: <1@gob.test>\r\nX-Name: \xc3\xb1\r\n\r\nHola, persona.\r\n"
)
ABOUT = About(RETURN_PATH, "persona@gmail.test", "mx1.gmail.test", "127.0.1.7", CONTENT, 1_700_000_000.0)
NOW = 1_700_000_060.0


@pytest.mark.parametrize("name", names())
def test_golden(name: str) -> None:
    """A new shape's file is made by hand: render it, look at it, keep it."""
    back = render(name, ABOUT, "abuse@gob.test" if shapes()[name].to == "complaints" else RETURN_PATH, NOW)
    envelope = f"MAIL FROM:<{back.sender}>\r\nRCPT TO:<{back.to}>\r\n".encode()
    assert envelope + back.content == (GOLDEN / f"{name}.eml").read_bytes()
    assert b"$" not in back.content and back.content.replace(b"\r\n", b"").count(b"\n") == 0


REPORTS = {
    "dsn": ("failed", "5.1.1"),
    "dsn-full": ("failed", "5.2.2"),
    "dsn-delayed": ("delayed", "4.4.1"),
    "exchange": ("failed", "5.1.10"),
    "wrong-charset": ("failed", "5.1.1"),
}


@pytest.mark.parametrize("name", names())
def test_shapes_are_what_they_say(name: str) -> None:
    message = email.message_from_bytes(render(name, ABOUT, RETURN_PATH, NOW).content, policy=email.policy.default)
    parts = {part.get_content_type(): part for part in message.walk()}
    if name in REPORTS:
        report = parts["message/delivery-status"].get_payload()
        action, status = REPORTS[name]
        assert report[1]["Action"] == action and report[1]["Status"] == status
        assert report[1]["Final-Recipient"].replace(" ", "") == "rfc822;persona@gmail.test"
    elif name.startswith("complaint"):
        (fields,) = parts["message/feedback-report"].get_payload()
        assert fields["Feedback-Type"] == "abuse" and fields["Original-Mail-From"] == f"<{RETURN_PATH}>"
        assert ("Original-Rcpt-To" in fields) == (name == "complaint")
    elif name == "no-parts":
        assert message.get_content_type() == "multipart/report" and not message.is_multipart()
    else:
        assert not message.is_multipart()
    assert (message["Auto-Submitted"] is not None) == (
        name in ("dsn", "dsn-full", "dsn-delayed", "exchange", "exim", "vacation")
    )


@given(st.binary(max_size=300), st.text(max_size=40), st.text(max_size=40))
def test_a_header_ends_where_it_ended(content: bytes, recipient: str, reverse_path: str) -> None:
    """Addresses and texts of strangers add no line to the header section of what goes back."""
    about = About(reverse_path, recipient, "mx.test", "127.0.1.1", b"Subject: " + content + b"\r\n\r\n" + content, 0.0)
    for name in names():
        plain = render(name, ABOUT, "a@b.test", NOW).content.partition(b"\r\n\r\n")[0]
        other = render(name, about, "a@b.test", NOW).content.partition(b"\r\n\r\n")[0]
        assert other.count(b"\n") == plain.count(b"\n"), name


def test_late_bounces_reach_the_listener_for_returned_mail(tmp_path: Path) -> None:
    """To a signed return path: a reference that is verified. To another: refused, and the ledger says so."""
    key = tmp_path / "return-path.key"
    add_key(key, "test")
    path = ReturnPaths.load(key).make("05v4tqkq2lmtv5c0j7ug", 3, "bounce.test")

    async def scenario(sandbox: Sandbox) -> None:
        kept = RecordingStore()
        async with taking_returns(inbound_settings(key), kept) as house:
            sandbox.mailer.door = Door("127.0.0.1", house.port, "abuse@relay.test")
            async with dialogue(sandbox, "mx1.gob.test") as client:
                await client.greet()
                for sender in (path, "somebody@x.test", ""):
                    await client.say(
                        f"MAIL FROM:<{sender}>", "RCPT TO:<late-qmail0+a@gob.test>", "RCPT TO:<b@gob.test>", "DATA"
                    )
                    assert (await client.say("Subject: s\r\n\r\nx\r\n."))[0].startswith("250")
                await client.say("MAIL FROM:<x@x.test>", "RCPT TO:<complain0+a@gob.test>", "DATA")
                assert (await client.say("Subject: s\r\n\r\nx\r\n."))[0].startswith("250")

            async def four() -> bool:
                sandbox.ledger.flush()
                return len(list(sandbox.ledger.receipts().records("returned"))) == 4

            await eventually(four)
        said = {(r["shape"], r["to"]): r["reply"] for r in sandbox.ledger.receipts().records("returned")}
        assert said["qmail", path].startswith("250 2.0.0 taken as ")
        assert said["qmail", "somebody@x.test"].startswith("550 5.7.1")
        assert said["qmail", ""] == "nothing goes back: the reverse-path is null"
        assert said["complaint", "abuse@relay.test"].startswith("250")
        first = next(mail for mail in kept.mails if mail.addressees[0].recipient == path)
        assert (first.addressees[0].id, first.addressees[0].index) == ("05v4tqkq2lmtv5c0j7ug", 3)
        assert b"late-qmail0+a@gob.test>:\r\nSorry, no mailbox" in first.content

    with_sandbox(tmp_path / "sandbox", scenario)


def test_what_nobody_takes_waits_and_is_told(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        control = tmp_path / "c"
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            assert (await client.send("a@gob.test")).startswith("250")
        (mail,) = (await asyncio.to_thread(tell, control, cmd="mail", op="list"))["mails"]
        for wrong, why in (
            ({"mail": mail["id"]}, NOWHERE),
            ({"mail": mail["id"], "shape": "odd"}, "no shape 'odd'"),
            ({"mail": "1"}, "no mail '1'"),
            ({"mail": mail["id"], "recipient": "b@gob.test"}, "was not for b@gob.test"),
        ):
            with pytest.raises(RuntimeError, match=why):
                await asyncio.to_thread(tell, control, cmd="bounce", **wrong)
        sandbox.mailer.door = Door("127.0.0.1", 1)
        answer = await asyncio.to_thread(tell, control, cmd="bounce", mail=mail["id"])
        assert answer["to"] == "s@x.test" and answer["reply"].startswith("no answer: ")
        with pytest.raises(RuntimeError, match="no address for complaints"):
            await asyncio.to_thread(tell, control, cmd="bounce", mail=mail["id"], shape="complaint")
        sandbox.mailer.later(Later(after_seconds=3600), ABOUT)  # the end of the sandbox is its end too

    with_sandbox(tmp_path, scenario, store=True, control=tmp_path / "c")


@pytest.mark.parametrize(
    "text", ["10.0.0.1:25", "192.0.2.1:25", "mail.example.org:25", "127.0.0.1", "127.0.0.1:0", "[::]:25"]
)
def test_mail_goes_back_to_loopback_only(text: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|ADDRESS:PORT"):
        Door.parse(text)
    assert Door.parse("[::1]:2526") == Door("::1", 2526)
