"""When to try again, and when to stop: (outcome, state, time) → Decision. Pure; the engine merely obeys.

*Attempts.* ``State.attempts`` counts the attempts that told us something about the item or its site: a refusal, a
lost end of data, a site none of whose hosts would talk. A session that ended before a transaction for the item was
begun (``Outcome.untouched``: 421 or a drop up to the reply to MAIL) costs no attempt and the item is due again in about a
second, on another session; but twice within :data:`PATIENCE_MS` it does count, so that a host that hangs up on
everybody is not called every second. The n-th counted attempt (n from 1) is followed by step n of the schedule, the
last step repeats. The attempt that delivers or gives up is counted in its event (:mod:`delivery.report`), not here.

*Expiry.* No retry is due after ``expires_at``; one that would be is due at ``expires_at``, the last attempt. What
fails at or after it fails for good, 4.4.7, with the last diagnostic.

*Unknown.* ``Envelope.unknown`` decides: ``retry`` = the schedule, ``never`` = done, ``once:<s>`` = one more time after
that many seconds (not sooner: done, if it would be after ``expires_at``), then done.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from config.settings import RetrySettings
from delivery.outcome import EXPIRED, EXPIRY, Outcome, Result, one_printable_line
from mailqueue.message import Envelope, State

PATIENCE_MS = 30_000
SESSION_DELAY_MS = 1_000
REPLY_LIMIT = 200  # characters of State.reply: every waiting item carries it in memory


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more to do for this recipient."""


@dataclass(frozen=True, slots=True)
class Retry:
    due_ms: int  # Unix milliseconds, later than now and at most expires_at
    state: State


@dataclass(frozen=True, slots=True)
class Fail:
    """Give up: a DSN is owed."""

    status: str
    diagnostic: str
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """The final dot was sent and not answered; what the sender's policy says."""

    then: Done | Retry


Decision = Done | Retry | Fail | Unknown


def decide(
    outcome: Outcome, state: State, envelope: Envelope, *, now_ms: int, settings: RetrySettings, rng: random.Random
) -> Decision:
    """``state`` is the item's before this attempt; the decision carries the one after it."""
    if outcome.result is Result.DELIVERED:
        return Done()
    if outcome.rule == EXPIRY:
        return Fail(outcome.status, outcome.diagnostic, expired=True)
    if outcome.result is Result.PERMANENT:
        return Fail(outcome.status, outcome.diagnostic)
    after = replace(
        state,
        reply=one_printable_line(outcome.diagnostic, REPLY_LIMIT),
        source=outcome.source or state.source,
        at=now_ms,
    )
    if outcome.result is Result.UNKNOWN:
        return _after_unknown(outcome, after, envelope, now_ms=now_ms, settings=settings, rng=rng)
    if now_ms >= envelope.expires_at:
        return Fail(EXPIRED, outcome.diagnostic, expired=True)
    if outcome.untouched and not 0 <= now_ms - state.at < PATIENCE_MS:
        return Retry(
            _not_after(now_ms + rng.randint(SESSION_DELAY_MS // 2, SESSION_DELAY_MS * 3 // 2), envelope), after
        )
    return _next_step(after, envelope, now_ms, settings, rng)


def step_ms(attempts: int, settings: RetrySettings, rng: random.Random) -> int:
    """The wait after the ``attempts``-th counted attempt (from 1), jitter included, at least 1 ms."""
    steps = settings.steps_seconds
    step = steps[min(max(attempts, 1), len(steps)) - 1]
    return max(1, round(step * 1000 * (1 + rng.uniform(-settings.jitter, settings.jitter))))


def _next_step(after: State, envelope: Envelope, now_ms: int, settings: RetrySettings, rng: random.Random) -> Retry:
    counted = replace(after, attempts=after.attempts + 1)
    return Retry(_not_after(now_ms + step_ms(counted.attempts, settings, rng), envelope), counted)


def _after_unknown(
    outcome: Outcome, after: State, envelope: Envelope, *, now_ms: int, settings: RetrySettings, rng: random.Random
) -> Decision:
    policy, _, wait = envelope.unknown.partition(":")
    after = replace(after, unknowns=after.unknowns + 1)
    if policy == "retry":
        if now_ms >= envelope.expires_at:
            return Fail(
                EXPIRED, outcome.diagnostic, expired=True
            )  # nobody ever said it was taken: the sender must hear
        return Unknown(_next_step(after, envelope, now_ms, settings, rng))
    due = now_ms + int(wait or 0) * 1000
    if policy == "once" and after.unknowns == 1 and now_ms < due <= envelope.expires_at:
        return Unknown(Retry(due, replace(after, attempts=after.attempts + 1)))
    return Unknown(Done())


def _not_after(due_ms: int, envelope: Envelope) -> int:
    return min(due_ms, envelope.expires_at)
