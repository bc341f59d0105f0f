"""The schedule, the policy for unknown outcomes, the end."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.replies import Rules
from config.settings import RetrySettings
from delivery.outcome import Outcome, accepted, at_site, expired, lost, replied, unroutable
from delivery.reply import Phase, Reply
from delivery.retry import PATIENCE_MS, REPLY_LIMIT, Decision, Done, Fail, Retry, Unknown, decide
from mailqueue.message import Envelope, State

NOW = 1_700_000_000_000
DAY = 86_400_000
PLAIN = RetrySettings.model_validate({"jitter": 0})
ENVELOPE = Envelope("m1", "acme", "news@example.org", ("jo@example.net",), NOW, NOW + 5 * DAY)

GREYLISTED = replied(Reply(450, "4.7.1", "greylisted"), Phase.RCPT, Rules())
REFUSED = replied(Reply(550, "5.1.1", "no such user"), Phase.RCPT, Rules())
HANGUP = lost(Phase.GREETING, "closed")
DOT_LOST = lost(Phase.END_OF_DATA, "reset")
ANY_FAILURE = [GREYLISTED, HANGUP, DOT_LOST, at_site(HANGUP), unroutable("4.4.3", "SERVFAIL", permanent=False)]


def decided(
    outcome: Outcome,
    state: State | None = None,
    envelope: Envelope = ENVELOPE,
    now_ms: int = NOW,
    settings: RetrySettings = PLAIN,
    seed: int = 1,
) -> Decision:
    return decide(outcome, state or State(), envelope, now_ms=now_ms, settings=settings, rng=random.Random(seed))


def retry_in(decision: Decision) -> Retry:
    assert isinstance(decision, Retry | Unknown), decision
    retry = decision.then if isinstance(decision, Unknown) else decision
    assert isinstance(retry, Retry), decision
    return retry


@pytest.mark.parametrize(
    ("attempts", "minutes"), [(0, 1), (1, 5), (2, 15), (3, 30), (4, 60), (5, 120), (6, 240), (7, 240), (30, 240)]
)
def test_the_schedule(attempts: int, minutes: int):
    retry = retry_in(decided(GREYLISTED, State(attempts=attempts)))
    assert retry.due_ms - NOW == minutes * 60_000
    assert retry.state.attempts == attempts + 1


def test_the_state_remembers_the_attempt():
    outcome = replace(GREYLISTED, source="127.0.1.3", diagnostic="450 " + "x" * 900)
    state = retry_in(decided(outcome, State(attempts=2, unknowns=1))).state
    assert (state.attempts, state.unknowns, state.source, state.at) == (3, 1, "127.0.1.3", NOW)
    assert len(state.reply) == REPLY_LIMIT


def test_a_source_stays_remembered_when_no_attempt_had_one():
    assert retry_in(decided(lost(Phase.CONNECT, "dns"), State(source="127.0.1.3"))).state.source == "127.0.1.3"


def test_delivered_and_refused_are_the_end():
    assert decided(accepted(Reply(250))) == Done()
    assert decided(REFUSED) == Fail("5.1.1", "550 5.1.1 no such user")
    assert decided(unroutable("5.1.2", "no such domain", permanent=True)) == Fail("5.1.2", "no such domain")


def test_the_last_attempt_is_at_the_expiry_and_then_it_fails_with_its_last_reply():
    late = ENVELOPE.expires_at - 60_000
    assert retry_in(decided(GREYLISTED, State(attempts=9), now_ms=late)).due_ms == ENVELOPE.expires_at
    for now in (ENVELOPE.expires_at, ENVELOPE.expires_at + DAY):
        assert decided(GREYLISTED, now_ms=now) == Fail("4.4.7", "450 4.7.1 greylisted", expired=True)
        assert decided(HANGUP, now_ms=now) == Fail("4.4.7", "closed", expired=True)
        assert decided(accepted(Reply(250)), now_ms=now) == Done()
        assert decided(REFUSED, now_ms=now) == Fail("5.1.1", "550 5.1.1 no such user")


def test_expiry_without_an_attempt():
    assert decided(expired("450 4.2.1 later")) == Fail("4.4.7", "450 4.2.1 later", expired=True)
    assert decided(expired()) == Fail("4.4.7", "delivery time expired", expired=True)


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.TLS, Phase.MAIL])
def test_a_session_that_did_not_touch_the_item_costs_no_attempt(phase: Phase):
    retry = retry_in(decided(lost(phase, "closed"), State(attempts=3, at=NOW - 60_000)))
    assert retry.state.attempts == 3
    assert 500 <= retry.due_ms - NOW <= 1500


def test_twice_in_a_row_it_does():
    first = retry_in(decided(HANGUP))
    second = retry_in(decided(HANGUP, first.state, now_ms=first.due_ms))
    assert (first.state.attempts, second.state.attempts) == (0, 1)
    assert second.due_ms - first.due_ms == 60_000
    later = retry_in(decided(HANGUP, first.state, now_ms=NOW + PATIENCE_MS))
    assert later.state.attempts == 0


def test_a_clock_that_went_back_is_no_row():
    assert retry_in(decided(HANGUP, State(at=NOW + 3_600_000))).state.attempts == 0


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.CONTENT])
def test_a_session_lost_within_the_transaction_is_an_attempt(phase: Phase):
    assert retry_in(decided(lost(phase, "closed"))).state.attempts == 1


def test_a_site_without_a_host_is_an_attempt():
    assert retry_in(decided(at_site(HANGUP))).state.attempts == 1


class TestUnknown:
    def test_retry(self):
        decision = decided(DOT_LOST, State(attempts=1))
        assert isinstance(decision, Unknown)
        retry = retry_in(decision)
        assert (retry.due_ms - NOW, retry.state.attempts, retry.state.unknowns) == (300_000, 2, 1)

    def test_retry_until_the_time_is_over(self):
        decision = decided(DOT_LOST, now_ms=ENVELOPE.expires_at)
        assert decision == Fail("4.4.7", "reply to end of data lost: reset", expired=True)

    def test_never(self):
        envelope = replace(ENVELOPE, unknown="never")
        assert decided(DOT_LOST, envelope=envelope) == Unknown(Done())
        assert decided(DOT_LOST, envelope=envelope, now_ms=envelope.expires_at) == Unknown(Done())
        assert retry_in(decided(GREYLISTED, envelope=envelope)).state.attempts == 1

    def test_once(self):
        envelope = replace(ENVELOPE, unknown="once:86400")
        first = retry_in(decided(DOT_LOST, envelope=envelope, settings=RetrySettings.model_validate({"jitter": 0.5})))
        assert (first.due_ms - NOW, first.state.unknowns) == (DAY, 1)
        assert decided(DOT_LOST, first.state, envelope, first.due_ms) == Unknown(Done())

    def test_once_is_never_sooner_than_asked(self):
        envelope = replace(ENVELOPE, unknown="once:86400", expires_at=NOW + DAY - 1)
        assert decided(DOT_LOST, envelope=envelope) == Unknown(Done())


@given(
    st.sampled_from(ANY_FAILURE),
    st.builds(State, attempts=st.integers(0, 100), unknowns=st.integers(0, 2)),
    st.integers(-DAY, 6 * DAY),
    st.sampled_from(["retry", "never", "once:3600"]),
    st.tuples(st.floats(0, 0.5), st.integers()),
)
def test_due_lies_after_now_and_not_after_the_expiry(
    outcome: Outcome, state: State, age: int, policy: str, chance: tuple[float, int]
):
    jitter, seed = chance
    envelope = replace(ENVELOPE, unknown=policy)
    settings = RetrySettings.model_validate({"jitter": jitter})
    decision = decided(outcome, state, envelope, NOW + age, settings, seed)
    retry = decision.then if isinstance(decision, Unknown) else decision
    if isinstance(retry, Retry):
        assert NOW + age < retry.due_ms <= envelope.expires_at
        assert retry.state.attempts - state.attempts in (0, 1)
    else:
        assert NOW + age >= envelope.expires_at or isinstance(decision, Unknown)


@given(st.integers(0, 40), st.integers(), st.floats(0, 0.1))
def test_a_later_attempt_never_waits_less(attempts: int, seed: int, jitter: float):
    settings = RetrySettings.model_validate({"jitter": jitter})
    waits = [
        retry_in(decided(GREYLISTED, State(attempts=n), settings=settings, seed=seed)).due_ms
        for n in (attempts, attempts + 1)
    ]
    assert waits[0] <= waits[1]


@given(st.integers(0, 10), st.integers(), st.floats(0, 0.5))
def test_jitter_stays_within_its_share(attempts: int, seed: int, jitter: float):
    settings = RetrySettings.model_validate({"jitter": jitter})
    plain = retry_in(decided(GREYLISTED, State(attempts=attempts))).due_ms - NOW
    wait = retry_in(decided(GREYLISTED, State(attempts=attempts), settings=settings, seed=seed)).due_ms - NOW
    assert abs(wait - plain) <= jitter * plain + 1


def test_every_item_comes_to_an_end():
    state, now, attempts = State(), NOW, 0
    while isinstance(decision := decided(GREYLISTED, state, now_ms=now, seed=attempts), Retry):
        state, now, attempts = decision.state, decision.due_ms, attempts + 1
    assert decision == Fail("4.4.7", "450 4.7.1 greylisted", expired=True)
    assert now == ENVELOPE.expires_at
    assert 30 <= attempts <= 40
