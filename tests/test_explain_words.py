"""What ``relayctl explain`` says, from facts by hand."""

from __future__ import annotations

import time

import pytest

from ipreputation.inspect import Standing, binding
from mailqueue.events import Event
from relayctl.explain_past import ended, outcome
from relayctl.explain_words import limit_text, rate_text, replies


def test_which_limit_binds() -> None:
    free = Standing("a", "connections", 10, 3, 0.0)
    full = Standing("b", "connections", 10, 0, 25.0)
    soon = Standing("c", "messages", 1, 0, 0.25, rate=(4, 1.05))
    late = Standing("d", "messages", 5, 0, 400.0, rate=(10, 3600.05))
    assert binding([]) is None and binding([free]) is None
    assert binding([free, soon]) == soon and binding([late, soon]) == late
    opening = Standing("e", "opening", 1, 0, 9.0, rate=(1, 10.05))
    assert binding([full]) == full and binding([late, full]) == late, (
        "sessions there are, and nothing to send with them"
    )
    assert binding([full, opening]) == full and binding([free, opening]) is None
    assert binding([Standing("a", "connections", 10, 10, 0.0), opening]) == opening
    assert limit_text(full) == "10 of 10 connections open (b): one more fits when one of them ends"
    assert limit_text(soon) == "4/s messages (c): one more fits in 250 ms"
    assert limit_text(late) == "10/h messages (d): one more fits in 6 min 40 s"
    assert [rate_text(one) for one in (free, soon, late)] == ["", "4/s", "10/h"]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            Event("delivered", 0, remote_mta="mx.x [192.0.2.9]", diagnostic_code="smtp; 250 ok", attempt=3),
            "at attempt 3: 250 ok",
        ),
        (Event("bounced", 0, remote_mta="mx.x [192.0.2.9]", diagnostic_code="smtp; 550 no"), "refused for good"),
        (Event("bounced", 0, actor="ana@h", reason="closed"), "given up 1970-01-01 00:00:00 by ana@h: closed"),
        (
            Event("expired", 0, diagnostic_code="smtp; 450 busy"),
            "its time was over (4.4.7); the last reply was: 450 busy",
        ),
        (
            Event("removed", 0, actor="ana@h", reason="twice", refunded=1),
            "by ana@h: twice, and given back to the quota",
        ),
        (Event("unknown", 0, reason="the worker died after the final dot"), "perhaps delivered"),
        (Event("suppressed", 0, reason="complaint"), "on a suppression list (complaint)"),
        (
            Event("rejected", 0, account="rrhh", reason="rate", diagnostic_code="smtp; 451 4.7.1 rate"),
            "account show rrhh`",
        ),
    ],
)
def test_what_became_of_it(event: Event, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayctl.explain_past.clock", lambda ms: time.strftime("%F %T", time.gmtime(ms / 1000)))
    assert text in outcome(event)


def test_of_each_recipient_the_last_word_counts() -> None:
    said = [
        Event("unknown", 1, id="m", index=1),
        Event("deferred", 2, id="m", index=0),
        Event("delivered", 3, id="m", index=1),
        Event("late", 4, id="m", index=1),
        Event("bounced", 5, id="m", index=0),
        Event("rejected", 6, recipient="a@x"),
        Event("rejected", 7, recipient="a@x"),
    ]
    assert [(event.kind, event.at) for event in ended(said)] == [
        ("rejected", 6),
        ("rejected", 7),
        ("bounced", 5),
        ("delivered", 3),
    ]
    attempts = [Event("deferred", n, diagnostic_code=f"smtp; 45{n} x") for n in range(5)]
    assert [event.at for event in replies(attempts)] == [4, 3, 2]
