"""SPF by tables of RFC 7208's cases, and nothing that a record says can break or outlast it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import spf
from sandbox.spf import LookupFailed

Zone = Mapping[tuple[str, str], Sequence[str]]
ZONE: dict[tuple[str, str], Sequence[str]] = {
    ("net.test", "TXT"): ["something else", "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all"],
    ("a.test", "TXT"): ["v=spf1 a a:other.test/28 ~all"],
    ("a.test", "A"): ["192.0.2.1"],
    ("a.test", "AAAA"): ["2001:db8::1"],
    ("other.test", "A"): ["198.51.100.17"],
    ("mx.test", "TXT"): ["v=spf1 mx//64 ?all"],
    ("mx.test", "MX"): ["10 mail.mx.test.", "20 second.mx.test."],
    ("mail.mx.test", "A"): ["192.0.2.7"],
    ("second.mx.test", "AAAA"): ["2001:db8:0:1::5"],
    ("include.test", "TXT"): ["v=spf1 include:net.test -all"],
    ("includes-none.test", "TXT"): ["v=spf1 include:nothing.test -all"],
    ("redirect.test", "TXT"): ["v=spf1 redirect=net.test"],
    ("redirects-none.test", "TXT"): ["v=spf1 redirect=nothing.test"],
    ("redirect-after-all.test", "TXT"): ["v=spf1 +all redirect=nothing.test"],
    ("two.test", "TXT"): ["v=spf1 -all", "v=spf1 +all"],
    ("neutral.test", "TXT"): ["v=spf1"],
    ("modifier.test", "TXT"): ["v=spf1 exp=x.test later=1 +all"],
    ("ptr.test", "TXT"): ["v=spf1 ptr -all"],
    ("exists.test", "TXT"): ["v=spf1 exists:%{ir}.%{l1r-}._spf.%{d2} -all"],
    ("1.2.0.192.news._spf.exists.test", "A"): ["127.0.0.2"],
    ("loop.test", "TXT"): ["v=spf1 include:loop.test -all"],
    ("void.test", "TXT"): ["v=spf1 a:no1.test a:no2.test a:no3.test +all"],
    ("ten.test", "TXT"): ["v=spf1 " + "a " * 11 + "+all"],
    ("ten.test", "A"): ["203.0.113.1"],
    ("upper.test", "TXT"): ["V=SPF1 IP4:192.0.2.1 -ALL"],
    ("crowd.test", "TXT"): ["v=spf1 mx -all"],
    ("crowd.test", "MX"): [f"10 m{n}.crowd.test." for n in range(11)],
    ("down-inside.test", "TXT"): ["v=spf1 a:down.test -all"],
    **{(f"bad{n}.test", "TXT"): [f"v=spf1 {term} +all"] for n, term in enumerate((
        "ip4:192.0.2.0/33", "ip4:x", "ip4", "ip6:192.0.2.1", "include", "exists", "all:x.test", "a/x", "a:", "odd",
        "a/33", "redirect=", "redirect=a.test redirect=b.test", "a:%{q}.test", "a:%x.test", "-", "mx:/24",
    ))},
}  # fmt: skip


def looking(zone: Zone) -> spf.Lookup:
    def lookup(name: str, kind: str) -> Sequence[str]:
        if name == "down.test":
            raise LookupFailed("down.test: SERVFAIL")
        return zone.get((name, kind), ())

    return lookup


@pytest.mark.parametrize(
    ("domain", "source", "result"),
    [
        ("net.test", "192.0.2.200", "pass"),
        ("net.test", "2001:db8::9", "pass"),
        ("net.test", "192.0.3.1", "fail"),
        ("a.test", "192.0.2.1", "pass"),
        ("a.test", "2001:db8::1", "pass"),
        ("a.test", "198.51.100.30", "pass"),
        ("a.test", "198.51.100.33", "softfail"),
        ("mx.test", "192.0.2.7", "pass"),
        ("mx.test", "192.0.2.8", "neutral"),
        ("mx.test", "2001:db8:0:1::77", "pass"),
        ("include.test", "192.0.2.1", "pass"),
        ("include.test", "192.0.3.1", "fail"),
        ("includes-none.test", "192.0.2.1", "permerror"),
        ("redirect.test", "192.0.2.1", "pass"),
        ("redirects-none.test", "192.0.2.1", "permerror"),
        ("redirect-after-all.test", "192.0.2.1", "pass"),
        ("two.test", "192.0.2.1", "permerror"),
        ("neutral.test", "192.0.2.1", "neutral"),
        ("modifier.test", "192.0.2.1", "pass"),
        ("ptr.test", "192.0.2.1", "fail"),
        ("exists.test", "192.0.2.1", "pass"),
        ("exists.test", "192.0.2.9", "fail"),
        ("loop.test", "192.0.2.1", "permerror"),
        ("void.test", "192.0.2.1", "permerror"),
        ("ten.test", "192.0.2.1", "permerror"),
        ("upper.test", "192.0.2.1", "pass"),
        ("crowd.test", "192.0.2.1", "permerror"),
        ("down.test", "192.0.2.1", "temperror"),
        ("down-inside.test", "192.0.2.1", "temperror"),
        ("nothing.test", "192.0.2.1", "none"),
        ("single", "192.0.2.1", "none"),
        ("x..test", "192.0.2.1", "none"),
        *((f"bad{n}.test", "192.0.2.1", "permerror") for n in range(17)),
    ],
)
def test_results(domain: str, source: str, result: str) -> None:
    verdict = spf.check(looking(ZONE), source, f"news-1@{domain}", "helo.test")
    assert (verdict.result, verdict.domain) == (result, domain), verdict.why


def test_a_null_reverse_path_is_judged_by_helo() -> None:
    verdict = spf.check(looking(ZONE), "192.0.2.1", "", "Net.Test.")
    assert (verdict.result, verdict.domain) == ("pass", "net.test")


@pytest.mark.parametrize(
    ("macro", "expanded"),
    [  # RFC 7208 §7.4
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l}", "strong-bad"),
        ("%{l-}", "strong.bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
    ],
)
def test_macros(macro: str, expanded: str) -> None:
    asked: list[str] = []

    def lookup(name: str, kind: str) -> Sequence[str]:
        asked.append(name)
        return [f"v=spf1 exists:{macro}.x -all"] if kind == "TXT" else []

    spf.check(lookup, "192.0.2.3", "strong-bad@email.example.com", "helo")
    if "@" not in expanded:
        assert asked == ["email.example.com", f"{expanded}.x"]


TERMS = st.sampled_from(
    ["all", "-all", "a", "mx", "ptr", "include:x.test", "redirect=x.test", "exists:%{i}.x.test", "ip4:10.0.0.0/8", "%{"]
)


@given(st.one_of(st.text(), st.lists(st.one_of(TERMS, st.text(max_size=12))).map(" ".join)), st.text(max_size=30))
def test_any_record_ends_in_a_result_and_few_lookups(record: str, sender: str) -> None:
    asked = 0

    def lookup(name: str, kind: str) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return {"TXT": [f"v=spf1 {record}"], "MX": ["1 a.test."] * 10}.get(kind, ["192.0.2.1"])

    verdict = spf.check(lookup, "192.0.2.1", f"{sender}@x.test", sender)
    assert verdict.result in ("pass", "fail", "softfail", "neutral", "none", "temperror", "permerror")
    assert asked <= 1 + spf.MOST_LOOKUPS * (1 + spf.MOST_NAMES)
