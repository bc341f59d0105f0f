"""The rule file: what the shipped one says, and what the validator refuses."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.replies import LINE_LIMIT, PHASES, RulesRefused, load_rules, one_line, parse_rules, read_sample
from delivery.reply import Phase

GOOD = """
[[rule]]
id = "blocked"
codes = ["55x"]
pattern = '''\\bblocked \\(by us\\)'''
scope = "site"
samples = ["550 5.7.1 blocked (by us)"]
counter_samples = ["550 blocked by us"]
"""


def rule(**changes: str) -> str:
    values = {"id": '"blocked"', "pattern": "'''\\bblocked'''", "samples": '["550 blocked"]'} | changes
    return "[[rule]]\n" + "\n".join(f"{key} = {value}" for key, value in values.items()) + "\n"


def test_shipped_rules_load_and_are_few():
    rules = load_rules()
    assert 15 <= len(rules.rules) <= 30
    assert {r.result for r in rules.rules} == {"transient", "permanent"}


def test_phases_are_the_dialogues():
    assert set(PHASES) == {phase.value for phase in Phase}


@pytest.mark.parametrize(
    "reply",
    [
        "550 5.1.1 <jo@example.org>: Recipient address rejected: User unknown in virtual mailbox table",
        "550 5.1.1 No such user - gsmtp",
        "550 Requested action not taken: mailbox unavailable",
        "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302)",
        "550 5.4.1 Recipient address rejected: Access denied.",
        "550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found",
        "550 5.2.1 The email account that you tried to reach is inactive.",
        "554 5.7.1 <jo@example.org>: Relay access denied",
        "550 5.1.1 <rbl-spamhaus@xbl.example.org>: user unknown",
        "551 User not local; please try <jo@example.com>",
        "550 5.1.1 Dirección de correo desconocida",
        "550 5.7.26 Unauthenticated mail is not accepted due to the domain's DMARC policy",
        "552 5.3.4 Message size exceeds fixed limit",
    ],
)
def test_no_rule_speaks_for_what_the_first_digit_says_well(reply: str):
    code, line = read_sample(reply) or (0, "")
    found = load_rules().match("rcpt", code, line)
    assert found is None or found.result == "permanent"


def test_match_gives_the_rule_with_its_phases_and_codes():
    rules = parse_rules(GOOD)
    assert rules.match("rcpt", 550, "550 blocked (BY US)").id == "blocked"
    assert rules.match("rcpt", 450, "450 blocked (by us)") is None
    only_mail = parse_rules(GOOD.replace("codes", 'phases = ["mail"]\ncodes'))
    assert only_mail.match("rcpt", 550, "550 blocked (by us)") is None
    assert only_mail.match("mail", 550, "550 blocked (by us)") is not None


def test_no_rules_is_a_rule_set():
    assert parse_rules("").rules == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule", "Expected"),
        ("rules = 1", "unknown key 'rules'"),
        ("[rule]\nid = 'x'", "write each rule as [[rule]]"),
        (rule(id='"Bad Id"'), "id:"),
        (rule(patern="'''x'''"), "rule 'blocked': patern"),
        (rule(codes='["250"]'), "codes"),
        (rule(phases='["helo"]'), "phases"),
        (rule(result='"delivered"'), "result"),
        (rule(samples="[]"), "samples"),
        (rule(samples='["blocked"]'), "sample is no reply"),
        (rule(samples='["550 open"]'), "does not match its sample"),
        (rule(samples='["450 blocked"]'), "does not match its sample"),
        (rule(counter_samples='["550 blocked too"]'), "matches its counter-sample"),
        (rule(counter_samples='["x"]'), "counter-sample is no reply"),
        (rule(pattern="'''\\\\[HCM1\\\\]'''", samples='["550 [HCM1]"]'), "doubled backslash"),
        (rule(pattern="'''blocked (by us)'''"), "bare parenthesis"),
        (rule(pattern="'''blocked .*'''"), "unbounded repetition"),
        (rule(pattern="'''blocked .{3,}'''"), "unbounded repetition"),
        (rule(pattern="'''(?:blocked)?'''"), "matches anything"),
        (rule(pattern="'''blocked['''"), "pattern:"),
        (rule() + rule(pattern="'''550 blocked'''"), "id used twice"),
        (rule() + rule(id='"again"'), "same pattern, phases and codes as 'blocked'"),
        (rule() + rule(id='"later"', pattern="'''550 blocked'''"), "rule 'blocked' stands before it"),
    ],
)
def test_a_wrong_file_is_refused_with_the_fault(text: str, says: str):
    with pytest.raises(RulesRefused, match=re.escape(says)):
        parse_rules(text)


def test_all_faults_are_told_at_once():
    with pytest.raises(RulesRefused) as refused:
        parse_rules(rule(id='"one"', pattern="'''a (b)'''") + rule(id='"two"', pattern="'''c.*'''"))
    assert "'one'" in str(refused.value)
    assert "'two'" in str(refused.value)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("550 5.1.1 no", (550, "550 5.1.1 no")),
        ("550-5.1.1 no\n550 5.1.1 such  user", (550, "550 5.1.1 no such user")),
        ("554 <jo@x.org>: no", (554, "554 @ no")),
        ("550", None),
        ("hello", None),
    ],
)
def test_read_sample(sample: str, expected: tuple[int, str] | None):
    assert read_sample(sample) == expected


@given(st.text(max_size=5000))
def test_a_line_is_bounded_and_single(text: str):
    line = one_line(550, "5.1.1", text)
    assert len(line) <= LINE_LIMIT
    assert "\n" not in line
    assert "@" not in line.replace(" @", "")
