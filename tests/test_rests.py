from __future__ import annotations

from delivery.rests import TIDY_SECONDS, Rests


def test_a_source_rests_at_its_site_until_its_time() -> None:
    rests = Rests()
    rests.note("google", "127.0.1.1", 700.0, 100.0, "421 4.7.28 unusual rate")
    rests.note("google", "127.0.1.2", 160.0, 100.0, "")
    assert rests.rests("google", "127.0.1.1", 699.9) and not rests.rests("google", "127.0.1.1", 700.0)
    assert not rests.rests("yahoo", "127.0.1.1", 100.0)
    assert rests.at("google", 160.0) == {"127.0.1.1": 700.0}
    assert rests.left(200.0) == {"google": {"127.0.1.1": 500.0}}
    assert rests.why("google") == "421 4.7.28 unusual rate" and rests.why("yahoo") == ""


def test_all_may_try_again() -> None:
    rests = Rests()
    rests.note("google", "127.0.1.1", 700.0, 100.0, "421 4.7.28 unusual rate")
    rests.end()
    assert rests.left(101.0) == {} and rests.why("google") == ""


def test_what_is_over_is_forgotten() -> None:
    rests = Rests()
    for number in range(1000):
        rests.note(f"s{number}.test", "127.0.1.1", 10.0, 0.0, "x")
    rests.note("late.test", "127.0.1.1", 700.0, TIDY_SECONDS, "y")
    assert set(rests._until) == set(rests._why) == {"late.test"}
