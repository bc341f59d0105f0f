"""Reply, loss, time-out, route failure → Outcome."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.replies import Rules, load_rules, parse_rules
from delivery.outcome import (
    DIAGNOSTIC_LIMIT,
    EXPIRED,
    Outcome,
    Result,
    Scope,
    Via,
    accepted,
    at_site,
    expired,
    judged,
    lost,
    not_connected,
    one_printable_line,
    replied,
    timed_out,
    tls_failed,
    unroutable,
)
from delivery.reply import Phase, Reply
from delivery.transaction import RecipientResult

RULES = load_rules()
VIA = Via("mx1.example.org [192.0.2.1]", "127.0.1.7", "TLSv1.3 TLS_AES_256_GCM_SHA384")


def brief(outcome: Outcome) -> str:
    return f"{outcome.result} {outcome.scope} {outcome.status}"


@pytest.mark.parametrize(
    ("phase", "code", "status", "expected"),
    [
        ("greeting", 421, "", "transient session 4.0.0"),
        ("greeting", 554, "", "transient session 4.0.0"),
        ("greeting", 521, "5.3.2", "transient session 4.3.2"),
        ("ehlo", 451, "4.7.1", "transient session 4.7.1"),
        ("ehlo", 550, "5.7.1", "transient session 4.7.1"),
        ("starttls", 454, "4.7.0", "transient session 4.7.0"),
        ("mail", 451, "4.3.0", "transient message 4.3.0"),
        ("mail", 550, "5.1.8", "permanent message 5.1.8"),
        ("mail", 552, "5.3.4", "permanent message 5.3.4"),
        ("mail", 421, "4.7.0", "transient session 4.7.0"),
        ("rcpt", 450, "4.2.1", "transient recipient 4.2.1"),
        ("rcpt", 550, "5.1.1", "permanent recipient 5.1.1"),
        ("rcpt", 550, "", "permanent recipient 5.0.0"),
        ("rcpt", 550, "4.2.1", "permanent recipient 5.2.1"),
        ("rcpt", 450, "5.1.1", "transient recipient 4.1.1"),
        ("rcpt", 552, "5.2.2", "transient recipient 4.2.2"),
        ("rcpt", 552, "", "transient recipient 4.0.0"),
        ("rcpt", 421, "", "transient session 4.0.0"),
        ("data", 451, "", "transient message 4.0.0"),
        ("data", 554, "5.5.1", "permanent message 5.5.1"),
        ("end-of-data", 250, "2.0.0", "delivered recipient 2.0.0"),
        ("end-of-data", 299, "", "delivered recipient 2.0.0"),
        ("end-of-data", 452, "4.3.1", "transient message 4.3.1"),
        ("end-of-data", 552, "5.2.2", "permanent message 5.2.2"),
        ("end-of-data", 554, "5.6.0", "permanent message 5.6.0"),
        ("end-of-data", 354, "", "unknown message 4.5.0"),
        ("rcpt", 354, "", "transient session 4.5.0"),
        ("data", 250, "", "transient session 4.5.0"),
        ("rcpt", 999, "", "transient session 4.5.0"),
    ],
)
def test_first_digit_and_phase(phase: str, code: int, status: str, expected: str):
    outcome = replied(Reply(code, status, "text"), Phase(phase), Rules(), VIA)
    assert brief(outcome) == expected
    assert outcome.reply is not None
    assert (outcome.remote_mta, outcome.source, outcome.tls) == (VIA.remote_mta, VIA.source, VIA.tls)
    senseless = code in (354, 999) or (code == 250 and phase == "data")
    assert outcome.rule == ("unmatched" if senseless else "")


@pytest.mark.parametrize(
    ("phase", "reply", "expected", "rule", "another"),
    [
        (
            "rcpt",
            Reply(554, "5.7.1", "Client host [192.0.2.7] blocked using zen.spamhaus.org"),
            "transient site 4.7.1",
            "spamhaus",
            True,
        ),
        (
            "end-of-data",
            Reply(550, "5.7.28", "an unusual rate of mail"),
            "transient site 4.7.28",
            "unusual-rate",
            True,
        ),
        ("greeting", Reply(554, "", "RBL"), "transient site 4.0.0", "dnsbl", True),
        ("rcpt", Reply(552, "", "mailbox not found"), "permanent recipient 5.0.0", "552-no-mailbox", False),
        ("rcpt", Reply(550, "", "Internal System Error"), "transient recipient 4.0.0", "host-trouble", False),
        ("mail", Reply(530, "", "Must issue a STARTTLS command"), "transient session 4.0.0", "tls-required", False),
        ("rcpt", Reply(550, "5.1.1", "<rbl@example.org> user unknown"), "permanent recipient 5.1.1", "", False),
    ],
)
def test_rules_overrule_the_first_digit(phase: str, reply: Reply, expected: str, rule: str, another: bool):
    outcome = replied(reply, Phase(phase), RULES, VIA)
    assert (brief(outcome), outcome.rule, outcome.another_source) == (expected, rule, another)


def test_a_rule_may_speak_of_a_single_phase():
    rules = parse_rules('[[rule]]\nid="once"\nphases=["mail"]\npattern="blocked"\nsamples=["550 blocked"]')
    assert replied(Reply(550, "", "blocked"), Phase.MAIL, rules).result is Result.TRANSIENT
    assert replied(Reply(550, "", "blocked"), Phase.RCPT, rules).result is Result.PERMANENT


@pytest.mark.parametrize("phase", list(Phase))
def test_a_loss_is_unknown_exactly_after_the_final_dot(phase: Phase):
    outcome = lost(phase, "connection reset", VIA)
    assert (outcome.result is Result.UNKNOWN) == (phase is Phase.END_OF_DATA)
    assert timed_out(phase, 30, VIA).result is outcome.result
    assert outcome.reply is None


def test_the_dialogue_knows_better_than_the_phase():
    assert lost(Phase.CONTENT, "reset", unknown=True).result is Result.UNKNOWN
    assert lost(Phase.END_OF_DATA, "reset", unknown=False).result is Result.TRANSIENT


@pytest.mark.parametrize(
    ("outcome", "expected", "untouched"),
    [
        (not_connected("connection refused"), "transient session 4.4.1", True),
        (not_connected("EADDRNOTAVAIL", our_fault=True), "transient session 4.3.5", True),
        (lost(Phase.GREETING, "closed"), "transient session 4.4.2", True),
        (lost(Phase.MAIL, "closed"), "transient session 4.4.2", True),
        (lost(Phase.RCPT, "closed"), "transient session 4.4.2", False),
        (lost(Phase.CONTENT, "closed"), "transient session 4.4.2", False),
        (lost(Phase.END_OF_DATA, "closed"), "unknown message 4.4.2", False),
        (timed_out(Phase.DATA, 120), "transient session 4.4.2", False),
        (tls_failed("certificate expired"), "transient session 4.7.5", True),
        (unroutable("5.1.2", "no such domain", permanent=True), "permanent site 5.1.2", False),
        (unroutable("5.4.3", "SERVFAIL", permanent=False), "transient site 4.4.3", False),
        (unroutable("", "no addresses", permanent=False), "transient site 4.4.4", False),
        (expired("450 4.2.1 later"), f"permanent recipient {EXPIRED}", False),
        (replied(Reply(421, "", "bye"), Phase.MAIL, Rules()), "transient session 4.0.0", True),
        (replied(Reply(421, "", "bye"), Phase.RCPT, Rules()), "transient session 4.0.0", False),
    ],
)
def test_failures_without_a_verdict(outcome: Outcome, expected: str, untouched: bool):
    assert brief(outcome) == expected
    assert outcome.untouched is untouched


def test_another_source_may_try_when_ours_is_gone():
    assert not_connected("EADDRNOTAVAIL", our_fault=True).another_source
    assert not not_connected("refused").another_source


def test_all_hosts_tried_widens_a_session_to_the_site():
    assert at_site(lost(Phase.CONNECT, "refused")).scope is Scope.SITE
    refused = replied(Reply(550, "5.1.1", "no"), Phase.RCPT, Rules())
    assert at_site(refused) is refused


def test_judged_reads_the_transactions_result():
    assert judged(RecipientResult(Reply(250, "2.0.0", "ok"), Phase.END_OF_DATA), RULES).result is Result.DELIVERED
    assert judged(RecipientResult(None, Phase.END_OF_DATA, "reset", unknown=True), RULES).result is Result.UNKNOWN
    assert judged(RecipientResult(None, Phase.CONTENT, "reset"), RULES).result is Result.TRANSIENT


def test_our_own_refusal_is_no_remote_reply():
    own = judged(RecipientResult(Reply(554, "5.6.3", "no 8BITMIME there, see spamhaus"), Phase.MAIL, local=True), RULES)
    assert brief(own) == "permanent message 5.6.3"
    assert own.reply is None
    assert own.diagnostic == "no 8BITMIME there, see spamhaus"
    assert own.rule == ""


def test_diagnostic_is_the_reply_said_once():
    outcome = replied(Reply(550, "5.1.1", "5.1.1 no such 5.1.1 user"), Phase.RCPT, Rules())
    assert outcome.diagnostic == "550 5.1.1 no such user"
    assert accepted(Reply(250, "", "queued as 1")).diagnostic == "250 queued as 1"


@given(st.text())
def test_a_diagnostic_is_one_printable_bounded_line(text: str):
    line = one_printable_line(text)
    assert len(line) <= DIAGNOSTIC_LIMIT
    assert line.isprintable()
    line.encode("utf-8")


@given(
    st.integers(200, 599),
    st.sampled_from(["", "2.0.0", "4.7.1", "5.1.1"]),
    st.text(max_size=200),
    st.sampled_from(list(Phase)),
)
def test_every_reply_has_an_outcome(code: int, status: str, text: str, phase: Phase):
    outcome = replied(Reply(code, status, text), phase, RULES)
    first = {Result.DELIVERED: "2", Result.PERMANENT: "5"}.get(outcome.result, "4")
    assert outcome.status.startswith(first)
    assert (outcome.result is Result.DELIVERED) == (code < 300 and phase is Phase.END_OF_DATA)
    if outcome.result is Result.PERMANENT:
        assert code >= 500
