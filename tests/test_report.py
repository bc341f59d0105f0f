"""What the event says, and who is owed a DSN."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.replies import Rules, load_rules
from delivery.outcome import NOWHERE, Outcome, Via, accepted, expired, lost, replied, unroutable
from delivery.reply import Phase, Reply
from delivery.report import DsnRecord, diagnostic_code, mails_dsn, report, typed_address
from delivery.retry import Decision, Done, Fail, Retry, Unknown
from mailqueue.events import Event
from mailqueue.message import Envelope, Message, QueueItem, State

NOW = 1_700_000_000_000
HOUR = 3_600_000
VIA = Via("mx1.example.net [192.0.2.1]", "127.0.1.7", "TLSv1.3 X")
ENVELOPE = Envelope(
    "m1",
    "acme",
    "news@example.org",
    ("ann@example.net", "jo@example.net"),
    NOW - 5 * HOUR,
    NOW + 100 * HOUR,
    class_="transactional",
    campaign="march",
    notify_after=NOW - HOUR,
    metadata={"case": "7"},
)
STATE = State(attempts=2, at=NOW - HOUR // 2, reply="450 later", source="127.0.1.6")
REFUSED = replied(Reply(550, "5.1.1", "no such user"), Phase.RCPT, Rules(), VIA)
LATER = replied(Reply(450, "4.7.1", "greylisted"), Phase.RCPT, Rules(), VIA)
DOT_LOST = lost(Phase.END_OF_DATA, "reset", VIA)
AGAIN = Retry(NOW + 900_000, State(attempts=3, at=NOW))


def item(state: State = STATE, envelope: Envelope = ENVELOPE) -> QueueItem:
    return QueueItem(Message(envelope, b"Subject: x\r\n\r\nhi\r\n"), 1, "flow", "example.net", state)


@pytest.mark.parametrize(
    ("outcome", "decision", "expected"),
    [
        (accepted(Reply(250, "2.0.0", "ok"), VIA), Done(), ("delivered", "delivered", "2.0.0", 3, 0, "")),
        (LATER, AGAIN, ("deferred", "delayed", "4.7.1", 3, NOW + 900_000, "")),
        (REFUSED, Fail("5.1.1", "x"), ("bounced", "failed", "5.1.1", 3, 0, "")),
        (LATER, Fail("4.4.7", "x", expired=True), ("expired", "failed", "4.4.7", 3, 0, "delivery time expired")),
        (
            expired("450 later"),
            Fail("4.4.7", "x", expired=True),
            ("expired", "failed", "4.4.7", 2, 0, "delivery time expired"),
        ),
        (DOT_LOST, Unknown(Done()), ("unknown", "", "4.4.2", 3, 0, "message")),
        (DOT_LOST, Unknown(AGAIN), ("unknown", "", "4.4.2", 3, NOW + 900_000, "message")),
        (
            lost(Phase.GREETING, "closed", VIA),
            Retry(NOW + 1000, STATE),
            ("deferred", "delayed", "4.4.2", 2, NOW + 1000, "session"),
        ),
        (
            replied(Reply(554, "", "RBL"), Phase.RCPT, load_rules(), VIA),
            AGAIN,
            ("deferred", "delayed", "4.0.0", 3, NOW + 900_000, "dnsbl"),
        ),
    ],
)
def test_kind_action_status_attempt_next_reason(outcome: Outcome, decision: Decision, expected: tuple[object, ...]):
    event = report(item(), outcome, decision, now_ms=NOW, provider="google").event
    assert (event.kind, event.action, event.status, event.attempt, event.next_at, event.reason) == expected
    assert Event.from_json(event.to_json()) == event


def test_every_field_of_the_event():
    event = report(item(), REFUSED, Fail("5.1.1", "x"), now_ms=NOW, provider="google").event
    assert event == Event(
        kind="bounced",
        at=NOW,
        id="m1",
        account="acme",
        campaign="march",
        class_="transactional",
        metadata={"case": "7"},
        reverse_path="news@example.org",
        recipient="jo@example.net",
        index=1,
        action="failed",
        status="5.1.1",
        diagnostic_code="smtp; 550 5.1.1 no such user",
        remote_mta="mx1.example.net [192.0.2.1]",
        source="127.0.1.7",
        provider="google",
        destination="example.net",
        attempt=3,
        phase="rcpt",
        tls="TLSv1.3 X",
        size=18,
        received_at=NOW - 5 * HOUR,
    )


def test_a_failure_owes_a_record():
    record = report(item(), REFUSED, Fail("5.1.1", "x"), now_ms=NOW).record
    assert record == DsnRecord(
        recipient="jo@example.net",
        action="failed",
        status="5.1.1",
        diagnostic_code="smtp; 550 5.1.1 no such user",
        remote_mta="mx1.example.net [192.0.2.1]",
        last_attempt_at=NOW,
        arrived_at=NOW - 5 * HOUR,
    )


def test_an_expiry_without_attempt_tells_of_the_last_one():
    record = report(item(), expired(STATE.reply), Fail("4.4.7", "x", expired=True), now_ms=NOW).record
    assert record is not None
    assert (record.status, record.diagnostic_code, record.last_attempt_at) == ("4.4.7", "smtp; 450 later", STATE.at)


def test_a_delay_is_the_reapers_to_tell():
    assert report(item(), LATER, AGAIN, now_ms=NOW).record is None, "though the notice is an hour overdue"


def test_nothing_is_owed_for_what_went_well_or_may_have():
    fresh = item(State())
    for outcome, decision in ((accepted(Reply(250)), Done()), (DOT_LOST, Unknown(Done()))):
        assert report(fresh, outcome, decision, now_ms=NOW).record is None


def test_the_null_reverse_path_is_owed_nothing():
    bounce = item(State(), replace(ENVELOPE, reverse_path=""))
    assert report(bounce, REFUSED, Fail("5.1.1", "x"), now_ms=NOW).record is None
    assert report(bounce, LATER, AGAIN, now_ms=NOW).record is None
    assert report(bounce, REFUSED, Fail("5.1.1", "x"), now_ms=NOW).event.reverse_path == ""


@pytest.mark.parametrize(
    ("changes", "passed_on", "action", "owed"),
    [
        ({}, False, "delivered", False),
        ({"notify": ("", "SUCCESS")}, False, "relayed", True),
        ({"notify": ("SUCCESS", "")}, False, "delivered", False),
        ({"notify": ("", "SUCCESS,FAILURE")}, True, "delivered", False),
        ({"notify": ("", "SUCCESS"), "dsn": "stream"}, False, "relayed", False),
        ({"notify": ("", "SUCCESS"), "reverse_path": ""}, False, "delivered", False),
        ({"notify": ("", "NEVER")}, False, "delivered", False),
        ({"notify": ("", "SUCCESS"), "return_paths": ("r0@b.test", "r1@b.test")}, True, "relayed", True),
    ],
)
def test_a_success_is_relayed_only_where_the_next_hop_is_silent(
    changes: dict[str, object], passed_on: bool, action: str, owed: bool
):
    """RFC 3461 §5.2.2 (b), RFC 3464 §2.3.3."""
    taken = accepted(Reply(250, "2.1.5", "kept"), replace(VIA, dsn=passed_on))
    made = report(item(envelope=replace(ENVELOPE, **changes)), taken, Done(), now_ms=NOW)
    assert (made.event.kind, made.event.action, made.record is not None) == ("delivered", action, owed)
    if made.record is not None:
        assert (made.record.action, made.record.status) == ("relayed", "2.1.5")
        assert made.record.diagnostic_code == "smtp; 250 2.1.5 kept"


@pytest.mark.parametrize(
    ("notify", "dsn", "wanted"),
    [
        ("", "mail", "failed delayed"),
        ("NEVER", "mail", ""),
        ("SUCCESS", "mail", "relayed"),
        ("FAILURE", "mail", "failed"),
        ("DELAY", "mail", "delayed"),
        ("SUCCESS,FAILURE,DELAY", "mail", "failed delayed relayed"),
        ("SUCCESS,FAILURE,DELAY", "stream", ""),
    ],
)
def test_who_is_told_by_mail(notify: str, dsn: str, wanted: str):
    envelope = replace(ENVELOPE, notify=("", notify), dsn=dsn)
    assert [action for action in ("failed", "delayed", "relayed") if mails_dsn(envelope, 1, action)] == wanted.split()
    assert not any(mails_dsn(replace(envelope, reverse_path=""), 1, a) for a in ("failed", "delayed", "relayed"))


def test_a_record_keeps_the_original_recipient():
    envelope = replace(ENVELOPE, orcpt=("", "rfc822;Jo@old.example"))
    made = report(item(envelope=envelope), REFUSED, Fail("5.1.1", "x"), now_ms=NOW)
    assert made.record is not None
    assert made.record.orcpt == made.event.orcpt == "rfc822;Jo@old.example"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("550 5.1.1 no", "smtp; 550 5.1.1 no"),
        ("421", "smtp; 421"),
        ("connection refused", "x-tambo; connection refused"),
        ("5500 items", "x-tambo; 5500 items"),
    ],
)
def test_diagnostic_code(text: str, expected: str):
    assert diagnostic_code(text) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("jo@example.net", "rfc822; jo@example.net"),
        ('"a b"@example.net', 'rfc822; "a b"@example.net'),
        ("josé+x@ejemplo.pe", "utf-8; jos\\x{E9}\\x{2B}x@ejemplo.pe"),
        ("用户@例子.cn", "utf-8; \\x{7528}\\x{6237}@\\x{4F8B}\\x{5B50}.cn"),
        ("a\r\nb@x.org", "rfc822; a??b@x.org"),
    ],
)
def test_typed_address(address: str, expected: str):
    assert typed_address(address) == expected


@given(st.builds(DsnRecord, *[st.text(st.characters(codec="utf-8"))] * 5, st.integers(0, 2**53)))
def test_a_record_survives_the_queue(record: DsnRecord):
    if record.recipient and record.action and record.status:
        assert DsnRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("data", ["[]", "{}", '{"recipient": "x"}', "nonsense"])
def test_a_broken_record_is_a_value_error(data: str):
    with pytest.raises(ValueError):
        DsnRecord.from_json(data)


def test_a_later_versions_record_is_read():
    text = '{"recipient": "a@b.c", "action": "failed", "status": "5.0.0", "colour": "red"}'
    assert DsnRecord.from_json(text).recipient == "a@b.c"


def test_a_route_failure_has_no_remote():
    outcome = unroutable("5.1.2", "no such domain", permanent=True, via=NOWHERE)
    made = report(item(), outcome, Fail("5.1.2", "no such domain"), now_ms=NOW)
    assert made.event.diagnostic_code == "x-tambo; no such domain"
    assert (made.event.remote_mta, made.event.reason) == ("", "site")
