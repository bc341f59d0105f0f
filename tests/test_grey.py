from __future__ import annotations

from delivery.grey import SECONDS, Greylisters


def test_a_site_that_greylists_is_remembered_for_a_day_and_not_without_bound() -> None:
    grey = Greylisters(most=2)
    grey.note("a.test", 0.0)
    assert grey.has("a.test", SECONDS - 1) and not grey.has("a.test", SECONDS) and not grey.has("b.test", 0.0)
    grey.note("b.test", 1.0)
    grey.note("a.test", 2.0)
    grey.note("c.test", 3.0)
    assert [grey.has(site, 4.0) for site in ("a.test", "b.test", "c.test")] == [True, False, True]
