"""DSNs: golden bytes, every field read back with the standard library, and nothing that a peer can inject."""

import email
import email.message
import email.policy
import os
import quopri
import re
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery.dsn import Kind, ascii_line, compose, field, notification_envelope
from delivery.dsn_text import meaning
from delivery.report import DsnRecord
from delivery.returned import FULL_LIMIT, HEADER_LIMIT, original_header
from mailqueue.message import Envelope

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_700_000_000_000
HOUR = 3_600_000
ENVELOPE = Envelope(
    "2k5v9h3qd0c1m8r7t6ab",
    "acme",
    "news@example.org",
    ("ann@example.net", "jo@example.net"),
    NOW - 5 * HOUR,
    NOW + 115 * HOUR,
    pool="slow",
)
CONTENT = (
    b"Received: from app.example.org by relay.example.org; Tue, 14 Nov 2023 17:13:20 +0000\r\n"
    b"From: News <news@example.org>\r\n"
    b"To: ann@example.net\r\n"
    b"Subject: =?utf-8?q?Notificaci=C3=B3n?=\r\n"
    b"Message-ID: <1@example.org>\r\n"
    b"\r\n"
    b"the body is not returned\r\n"
)
REFUSED = DsnRecord(
    "ann@example.net",
    "failed",
    "5.1.1",
    "smtp; 550 5.1.1 no such user here",
    "mx1.example.net [192.0.2.1]",
    NOW - 2000,
    NOW - 5 * HOUR,
)
EXPIRED = DsnRecord("jo@example.net", "failed", "4.4.7", "x-tambo; connection refused", "", NOW - 1000, NOW - 5 * HOUR)
DELAYED = replace(
    REFUSED,
    action="delayed",
    status="4.2.2",
    diagnostic_code="smtp; 450 4.2.2 buzón lleno, " + "inténtelo más tarde, " * 12,
    retry_until=NOW + 115 * HOUR,
)
RELAYED = replace(
    REFUSED,
    action="relayed",
    status="2.0.0",
    diagnostic_code="smtp; 250 2.0.0 Ok: queued as 4XyZ",
    orcpt="rfc822;Ann+2BNews@Example.NET",
)
ASKED = replace(ENVELOPE, envid="QQ+2B314+3D159", ret="FULL", notify=("SUCCESS,FAILURE", "FAILURE"))
EIGHT_BIT = CONTENT.replace(b"the body is", "el cuerpo está".encode())
ACCENTED = replace(REFUSED, recipient="josé@ejemplo.pe", diagnostic_code="smtp; 550 5.1.1 dirección 用户 inválida")


def made(records=(REFUSED,), kind="failed", envelope=ENVELOPE, content=CONTENT) -> bytes:
    composed = compose(
        envelope,
        content,
        records,
        kind,
        reporting_mta="relay.example.org",
        now_ms=NOW,
        message_id="dsn1@relay.example.org",
    )
    assert composed is not None
    return composed


def parts(content: bytes) -> tuple[email.message.Message, list[email.message.Message]]:
    message = email.message_from_bytes(content)
    assert not message.defects
    inside = message.get_payload()
    assert isinstance(inside, list)
    assert [part.get_content_type() for part in inside] == [
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    ]
    return message, inside


def fields_of(part: email.message.Message) -> list[dict[str, str]]:
    groups = part.get_payload()
    assert isinstance(groups, list)
    return [{name: re.sub(r"\r?\n ", " ", value) for name, value in group.items()} for group in groups]


def assert_wire_safe(content: bytes) -> None:
    """7-bit, CRLF, lines ≤ 998 (RFC 5321 §4.5.3.1.6 counts 1000 with CRLF)."""
    assert content.isascii()
    assert b"\0" not in content
    assert content.endswith(b"\r\n")
    assert b"\r" not in content.replace(b"\r\n", b"")
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert max(map(len, content.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("failed", lambda: made((REFUSED, EXPIRED))),
        ("delayed", lambda: made((DELAYED,), "delayed")),
        ("relayed", lambda: made((RELAYED,), "relayed", ASKED)),
        ("full", lambda: made((replace(REFUSED, orcpt="rfc822;Ann+2BNews@Example.NET"), EXPIRED), envelope=ASKED)),
        ("full-8bit", lambda: made(envelope=ASKED, content=EIGHT_BIT)),
        ("full-utf8", lambda: made(envelope=ASKED, content="Subject: Año\r\n\r\ncuerpo ñ\r\n".encode())),
        ("accents", lambda: made((ACCENTED,), content="Subject: Año\r\nX: 1\r\n\r\n".encode())),
    ],
)
def test_golden(name: str, content):
    """After an intended change: TAMBO_WRITE_GOLDEN=1 pytest tests/test_dsn.py, and read the difference."""
    path = GOLDEN / f"dsn-{name}.eml"
    if os.environ.get("TAMBO_WRITE_GOLDEN"):
        path.write_bytes(content())
    assert content() == path.read_bytes()


def test_header_fields():
    message, _ = parts(made())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@relay.example.org>"
    assert message["To"] == "<news@example.org>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Message-ID"] == "<dsn1@relay.example.org>"
    assert message["MIME-Version"] == "1.0"
    assert message["Subject"] == "Correo no entregado (Delivery Status Notification: failure)"
    assert parsedate_to_datetime(message["Date"]).timestamp() * 1000 == NOW


def test_status_fields_of_several_recipients():
    _, (_, status, _) = parts(made((REFUSED, EXPIRED)))
    assert fields_of(status) == [
        {
            "Reporting-MTA": "dns; relay.example.org",
            "X-Tambo-Message": ENVELOPE.id,
            "Arrival-Date": "Tue, 14 Nov 2023 17:13:20 +0000",
        },
        {
            "Final-Recipient": "rfc822; ann@example.net",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": "dns; mx1.example.net",
            "Diagnostic-Code": "smtp; 550 5.1.1 no such user here",
            "Last-Attempt-Date": "Tue, 14 Nov 2023 22:13:18 +0000",
        },
        {
            "Final-Recipient": "rfc822; jo@example.net",
            "Action": "failed",
            "Status": "4.4.7",
            "Diagnostic-Code": "x-tambo; connection refused",
            "Last-Attempt-Date": "Tue, 14 Nov 2023 22:13:19 +0000",
        },
    ]


def test_a_delay_says_until_when():
    message, (text, status, _) = parts(made((DELAYED,), "delayed"))
    fields = fields_of(status)[1]
    assert fields["Action"] == "delayed"
    assert fields["Will-Retry-Until"] == "Sun, 19 Nov 2023 17:13:20 +0000"
    assert fields["Diagnostic-Code"].startswith("smtp; 450 4.2.2 buzon lleno, intentelo mas tarde,")
    assert "delay" in message["Subject"]
    assert "attempts go on until Sun, 19 Nov 2023 17:13:20 +0000" in text.get_payload(decode=True).decode()


def test_the_text_is_for_people_in_two_languages():
    _, (text, _, _) = parts(made((REFUSED, EXPIRED)))
    words = text.get_payload(decode=True).decode("utf-8")
    for line in (
        "Su mensaje del Tue, 14 Nov 2023 17:13:20 +0000 no pudo ser entregado a:",
        "La dirección no existe.",
        "mx1.example.net [192.0.2.1]: 550 5.1.1 no such user here",
        "Se agotó el tiempo de entrega.",
        "The address does not exist.",
        "The time for delivery ran out.",
        "No more attempts will be made.",
    ):
        assert line in words


def test_only_the_header_of_the_original_goes_back():
    _, (_, _, header) = parts(made())
    returned = header.get_payload()
    assert returned.rstrip("\r\n").encode() == CONTENT.partition(b"\r\n\r\n")[0]
    assert "body" not in made().decode()


def test_parameters_come_back_decoded():
    """RFC 3461 §6.3, RFC 3464 §2.2.1 and §2.3.1."""
    _, (_, status, _) = parts(made((RELAYED,), "relayed", ASKED))
    message_fields, recipient_fields = fields_of(status)
    assert next(iter(message_fields.items())) == ("Original-Envelope-Id", "QQ+314=159")
    assert list(recipient_fields.items())[:2] == [
        ("Original-Recipient", "rfc822; Ann+News@Example.NET"),
        ("Final-Recipient", "rfc822; ann@example.net"),
    ]
    assert (recipient_fields["Action"], recipient_fields["Status"]) == ("relayed", "2.0.0")


def test_an_envelope_id_comes_back_as_long_and_as_spaced_as_it_was():
    envid = "a++20++20b" + "x" * 90
    content = made(envelope=replace(ENVELOPE, envid=envid.replace("++", "+")))
    assert b"\r\nOriginal-Envelope-Id: a  b" + b"x" * 90 + b"\r\n" in content


@pytest.mark.parametrize(
    ("orcpt", "shown"),
    [
        ("rfc822;jo@x.org", "rfc822; jo@x.org"),
        ("X400;/S+3Djo/C+3Dpe", "X400; /S=jo/C=pe"),
        ("rfc822;a+2bb@x.org", "rfc822; a+2bb@x.org"),
        ("utf-8;jos\\x{E9}@ejemplo.pe", "utf-8; jos\\x{E9}@ejemplo.pe"),
        ("utf-8;josé@ejemplo.pe", "utf-8; jos\\x{E9}@ejemplo.pe"),
        ("rfc822;a+0D+0AAction: delivered", "rfc822; a Action: delivered"),
        ("no type", None),
        (";x", None),
    ],
)
def test_original_recipient(orcpt: str, shown: str | None):
    _, (_, status, _) = parts(made((replace(REFUSED, orcpt=orcpt),)))
    assert fields_of(status)[1].get("Original-Recipient") == shown
    assert fields_of(status)[1]["Action"] == "failed"


def test_the_whole_message_goes_back_after_a_failure():
    content = made(envelope=ASKED)
    assert_wire_safe(content)
    returned = email.message_from_bytes(content).get_payload()[2]
    assert returned.get_content_type() == "message/rfc822"
    assert CONTENT in content


def test_an_8bit_body_makes_the_dsn_8bit():
    content = made(envelope=ASKED, content=EIGHT_BIT)
    message = email.message_from_bytes(content)
    assert message["Content-Transfer-Encoding"] == message.get_payload()[2]["Content-Transfer-Encoding"] == "8bit"
    assert EIGHT_BIT in content
    assert notification_envelope(ENVELOPE, id="x", now_ms=NOW, expires_at=NOW + 1, eight_bit=True).body == "8BITMIME"


@pytest.mark.parametrize(
    "original", ["Subject: Año\r\n\r\nx\r\n".encode(), b"A: 1\r\n\r\n" + b"x" * 999, b"A: 1\r\n\r\n\0\n"]
)
def test_what_rfc822_can_t_hold_is_encoded(original: bytes):
    content = made(envelope=ASKED, content=original)
    assert_wire_safe(content)
    returned = email.message_from_bytes(content).get_payload()[2]
    assert returned.get_content_type() == "message/global"
    assert (
        quopri.decodestring(content.partition(b"message/global")[2].partition(b"\r\n\r\n")[2].partition(b"\r\n--=_")[0])
        == original
    )


@pytest.mark.parametrize(
    ("ret", "kind", "size"),
    [
        ("FULL", "failed", FULL_LIMIT),
        ("HDRS", "failed", 0),
        ("", "failed", 0),
        ("FULL", "delayed", 0),
        ("FULL", "relayed", 0),
    ],
)
def test_else_only_the_header_goes_back(ret: str, kind: Kind, size: int):
    content = made(
        (replace(REFUSED, action=kind),),
        kind,
        replace(ENVELOPE, ret=ret),
        CONTENT + (b"x" * 98 + b"\r\n") * (size // 100),
    )
    _, (text, _, header) = parts(content)
    assert header.get_payload().rstrip("\r\n").encode() == CONTENT.partition(b"\r\n\r\n")[0]
    words = text.get_payload(decode=True).decode()
    assert ("The message is too large to be returned whole" in words) == bool(size)
    assert ("demasiado grande para devolverlo" in words) == bool(size)


def test_what_was_relayed_is_said_without_a_reproach():
    _, (text, _, _) = parts(made((RELAYED,), "relayed", ASKED))
    words = text.get_payload(decode=True).decode()
    assert "fue aceptado por el servidor de correo de:" in words
    assert "you will get no other confirmation" in words
    assert "  <ann@example.net>\r\n    mx1.example.net [192.0.2.1]: 250 2.0.0 Ok: queued as 4XyZ" in words


def test_an_8bit_header_is_quoted():
    original = "Subject: Año\r\nX-Long: ".encode() + b"x" * 2000 + b"\r\n\r\nbody"
    content = made(content=original)
    assert_wire_safe(content)
    _, (_, _, header) = parts(content)
    assert header["Content-Transfer-Encoding"] == "quoted-printable"
    assert header.get_payload(decode=True).rstrip(b"\r\n") == original.partition(b"\r\n\r\n")[0]


def test_utf8_recipient_has_its_own_address_type():
    _, (text, status, _) = parts(made((ACCENTED,)))
    fields = fields_of(status)[1]
    assert fields["Final-Recipient"] == "utf-8; jos\\x{E9}@ejemplo.pe"
    assert fields["Diagnostic-Code"] == "smtp; 550 5.1.1 direccion ?? invalida"
    assert "<josé@ejemplo.pe>" in text.get_payload(decode=True).decode()


def test_utf8_reverse_path_is_shown_and_7bit():
    content = made(envelope=replace(ENVELOPE, reverse_path="avisos@perú.pe"))
    assert_wire_safe(content)
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert message["To"].groups[0].display_name == "avisos@perú.pe"
    assert message["To"].addresses == ()


def test_never_for_the_null_reverse_path():
    null = replace(ENVELOPE, reverse_path="")
    assert compose(null, CONTENT, [REFUSED], "failed", reporting_mta="r", now_ms=NOW, message_id="x@r") is None


def test_without_a_recipient_it_is_an_error():
    with pytest.raises(ValueError, match="recipient"):
        made(())


def test_how_it_travels():
    dsn = notification_envelope(ENVELOPE, id="x", now_ms=NOW, expires_at=NOW + 1)
    assert dsn.is_notification
    assert dsn.recipients == ("news@example.org",)
    assert (dsn.account, dsn.pool, dsn.campaign, dsn.notify_after, dsn.smtputf8) == ("acme", "slow", "", 0, False)


def test_the_boundary_gives_way():
    boundary = email.message_from_bytes(made()).get_boundary()
    hostile = f"X: --{boundary}\r\n\r\n".encode()
    message, _ = parts(made(content=hostile))
    assert message.get_boundary() != boundary


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"A: 1\r\nB: 2\r\n\r\nbody", b"A: 1\r\nB: 2\r\n"),
        (b"A: 1\r\n", b"A: 1\r\n"),
        (b"A: 1", b"A: 1\r\n"),
        (b"\r\nbody\r\n\r\n", b""),
        (b"", b""),
        (b"A: 1\r\nB: " + b"x" * 30 + b"\r\n\r\n", b"A: 1\r\n"),
        (b"A: 1\r\nB: x\r\n y\r\n " + b"z" * 30 + b"\r\n\r\n", b"A: 1\r\n"),
        (b"A: " + b"x" * 30 + b"\r\n\r\n", b""),
    ],
)
def test_original_header_in_whole_fields(content: bytes, expected: bytes):
    assert original_header(content, 20) == expected


def test_a_huge_header_is_bounded():
    huge = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 500) for n in range(1000)) + b"\r\n"
    assert HEADER_LIMIT - 520 < len(original_header(huge)) <= HEADER_LIMIT


@pytest.mark.parametrize(
    ("status", "english"),
    [
        ("5.1.1", "The address does not exist."),
        ("5.1.9", "The address was not accepted."),
        ("4.4.7", "The time for delivery ran out."),
        ("5.9.9", "The destination's server did not accept the message."),
        ("", "The destination's server did not accept the message."),
    ],
)
def test_meaning(status: str, english: str):
    assert meaning(status)[1] == english


WILD = st.text(st.characters(), max_size=300) | st.text("\r\n:-. aé\x00\u2028", max_size=300)
RECORDS = st.builds(
    DsnRecord,
    recipient=WILD,
    action=st.just("failed"),
    status=st.just("5.1.1"),
    diagnostic_code=WILD,
    remote_mta=WILD,
    last_attempt_at=st.integers(0, 4_000_000_000_000),
    orcpt=WILD | WILD.map(lambda text: f"rfc822;{text}"),
)


@given(st.lists(RECORDS, min_size=1, max_size=4), st.binary(max_size=400), WILD.filter(bool), WILD)
def test_whatever_they_say_it_stays_where_it_is_quoted(
    records: list[DsnRecord], original: bytes, reverse_path: str, envid: str
):
    content = made(records, envelope=replace(ENVELOPE, reverse_path=reverse_path, envid=envid), content=original)
    assert_wire_safe(content)
    message, (_, status, _) = parts(content)
    assert message.keys() == [
        "Date",
        "From",
        "To",
        "Subject",
        "Message-ID",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
    ]
    allowed = {
        "Original-Recipient",
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
        "Last-Attempt-Date",
        "Will-Retry-Until",
    }
    groups = status.get_payload()
    assert len(groups) == 1 + len(records)
    for group in groups[1:]:
        assert not group.defects
        assert set(group.keys()) <= allowed
        assert group["Action"] == "failed"
        assert group.get_all("Status") == ["5.1.1"]


@given(st.binary(max_size=3000))
def test_any_header_comes_back_whole(original: bytes):
    content = made(content=original)
    _, (_, _, header) = parts(content)
    sent = original_header(original).replace(b"\r\n", b"\n")
    returned = header.get_payload(decode=True).replace(b"\r\n", b"\n")
    assert returned.rstrip(b"\n") == sent.rstrip(b"\n")


@given(WILD)
def test_a_field_is_folded_and_says_the_same(value: str):
    folded = field("Diagnostic-Code", value)
    assert all(len(line) <= 998 for line in folded.split("\r\n"))
    assert folded.replace("\r\n ", " ").split() == ["Diagnostic-Code:", *ascii_line(value).split()]


def test_a_word_without_end_is_cut():
    folded = field("X", "y" * 5000)
    assert max(map(len, folded.split("\r\n"))) <= 998
    assert folded.replace("\r\n ", "").count("y") == 5000
