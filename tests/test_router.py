"""Routes from real DNS answers, and the next hops that are refused."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from config.providers import Providers
from delivery.provider import site_of
from delivery.resolver import Resolver
from delivery.router import NextHopPolicy, Refusal, Route, Router, is_local
from tests.dns_server import SERVFAIL, Zone, dns_server

SANDBOX = NextHopPolicy(sandbox=True)
OUTSIDE = NextHopPolicy()
RULES = Providers.load()


def route(zone: Zone, destination: str, policy: NextHopPolicy = SANDBOX, **options: Any) -> Route:
    async def scenario() -> None:
        async with dns_server(zone) as server:
            resolver = Resolver((server.address,), timeout=0.2, total=1.0)
            options_ = {"own_names": ("us.test",), "ipv6": True, "rng": random.Random(1), **options}
            found.append(await Router(resolver, RULES, policy, **options_).route(destination))

    found: list[Route] = []
    run(scenario())
    return found[0]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    uvloop.run(scenario)


def names(found: Route) -> list[str]:
    assert found.failure is None, found.failure
    return [host.name for host in found.hosts]


def status(found: Route) -> str:
    assert found.failure is not None
    assert found.hosts == ()
    return found.failure.status


ZONE: Zone = {
    ("in.test", "MX"): ["10 mx1.in.test.", "20 mx2.in.test.", "30 empty.in.test."],
    ("mx1.in.test", "A"): ["127.0.2.1", "127.0.2.2"],
    ("mx1.in.test", "AAAA"): ["::1"],
    ("mx2.in.test", "A"): ["127.0.2.3", "192.0.2.1"],
    ("empty.in.test", "TXT"): ['"nothing"'],
    ("a-only.test", "A"): ["127.0.2.4"],
    ("text-only.test", "TXT"): ['"nothing"'],
    ("null.test", "MX"): ["0 ."],
    ("broken.test", "MX"): SERVFAIL,
    ("half.test", "MX"): ["10 half-mx.test.", "20 mx1.in.test."],
    ("half-mx.test", "A"): SERVFAIL,
    ("half-mx.test", "AAAA"): SERVFAIL,
    ("dead.test", "MX"): ["10 half-mx.test.", "20 empty.in.test."],
    ("empty.test", "MX"): ["10 empty.in.test."],
    ("us-too.test", "MX"): ["10 us.test.", "20 mx1.in.test."],
    ("gmail.test", "MX"): ["5 gmail-smtp-in.l.google.com.", "10 alt1.gmail-smtp-in.l.google.com."],
    ("gmail-smtp-in.l.google.com", "A"): ["127.0.2.5"],
    ("mixed.test", "MX"): ["5 gmail-smtp-in.l.google.com.", "10 mx1.in.test."],
    ("alias.test", "MX"): ["10 mx-alias.test."],
    ("mx-alias.test", "CNAME"): ["mx1.in.test."],
    ("xn--bcher-kva.test", "A"): ["127.0.2.6"],
}


def test_hosts_in_order_with_the_addresses_we_may_use() -> None:
    found = route(ZONE, "in.test")
    assert names(found) == ["mx1.in.test", "mx2.in.test"]  # a host without address is skipped
    assert sorted(found.hosts[0].addresses[:2]) == ["127.0.2.1", "127.0.2.2"]
    assert found.hosts[0].addresses[2:] == ("::1",)
    assert found.hosts[1].addresses == ("127.0.2.3",)  # 192.0.2.1 is outside of the sandbox
    assert (found.group, found.site, found.stale) == (
        "default",
        "empty.in.test,mx1.in.test,mx2.in.test",
        False,
    )


def test_no_ipv6_without_a_source_for_it() -> None:
    assert all(":" not in a for host in route(ZONE, "in.test", ipv6=False).hosts for a in host.addresses)


@pytest.mark.parametrize(
    ("destination", "hosts"),
    [
        ("a-only.test", ["a-only.test"]),
        ("alias.test", ["mx-alias.test"]),
        ("half.test", ["mx1.in.test"]),
        ("bücher.test", ["xn--bcher-kva.test"]),
        ("A-ONLY.test.", ["a-only.test"]),
    ],
)
def test_routes(destination: str, hosts: list[str]) -> None:
    assert names(route(ZONE, destination)) == hosts


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("null.test", "5.1.10"),
        ("nowhere.test", "5.1.2"),
        ("text-only.test", "5.1.2"),
        ("broken.test", "4.4.3"),
        ("dead.test", "4.4.3"),
        ("empty.test", "4.4.4"),
        ("us-too.test", "5.4.6"),
        ("us.test", "5.1.2"),
        ("[127.0.0.1]", "5.4.6"),
        ("[IPv6:::1]", "5.4.6"),
        ("127.0.0.1", "5.1.2"),
        ("a..b", "5.1.2"),
        ("ü" * 64, "5.1.2"),
        ("", "5.1.2"),
    ],
)
def test_failures(destination: str, expected: str) -> None:
    found = route(ZONE, destination)
    assert status(found) == expected
    assert found.destination == destination
    assert found.failure is not None
    assert found.failure.permanent == expected.startswith("5")


def test_the_provider_is_who_owns_all_hosts() -> None:
    found = route(ZONE, "gmail.test")
    assert (found.group, found.site) == ("google", "google")
    mixed = route(ZONE, "mixed.test")
    assert (mixed.group, mixed.site) == ("default", "gmail-smtp-in.l.google.com,mx1.in.test")


def test_a_long_site_name_ends_in_a_digest_of_the_whole() -> None:
    rule = RULES.default
    hosts = [f"mx{n}.a-rather-long-domain-name.test" for n in range(20)]
    site = site_of(rule, hosts)
    assert len(site) == 200
    assert site == site_of(rule, hosts[::-1])
    assert site != site_of(rule, [*hosts[:-1], "other.test"])


# -- next hops that are refused ----------------------------------------------------------------------------------------

LOOP, PRIVATE = Refusal.LOOP, Refusal.PRIVATE


@pytest.mark.parametrize(
    ("address", "outside", "private_allowed", "sandbox"),
    [
        ("8.8.8.8", None, None, PRIVATE),
        ("2001:4860:4860::8888", None, None, PRIVATE),
        ("127.0.0.1", LOOP, LOOP, None),
        ("127.9.9.9", LOOP, LOOP, None),
        ("::1", LOOP, LOOP, None),
        ("::ffff:127.0.0.1", LOOP, LOOP, None),
        ("0.0.0.0", LOOP, LOOP, LOOP),
        ("0.1.2.3", LOOP, LOOP, LOOP),
        ("::", LOOP, LOOP, LOOP),
        ("::ffff:0.0.0.0", LOOP, LOOP, LOOP),
        ("224.0.0.1", LOOP, LOOP, LOOP),
        ("ff02::1", LOOP, LOOP, LOOP),
        ("255.255.255.255", LOOP, LOOP, LOOP),
        ("240.0.0.1", LOOP, LOOP, LOOP),
        ("10.1.2.3", PRIVATE, None, PRIVATE),
        ("172.16.0.1", PRIVATE, None, PRIVATE),
        ("192.168.1.1", PRIVATE, None, PRIVATE),
        ("100.64.0.1", PRIVATE, None, PRIVATE),
        ("169.254.1.1", PRIVATE, None, PRIVATE),
        ("fd00::1", PRIVATE, None, PRIVATE),
        ("fe80::1", PRIVATE, None, PRIVATE),
        ("::ffff:10.0.0.1", PRIVATE, None, PRIVATE),
        ("::ffff:8.8.8.8", None, None, PRIVATE),
    ],
)
def test_refusals(
    address: str, outside: Refusal | None, private_allowed: Refusal | None, sandbox: Refusal | None
) -> None:
    assert OUTSIDE.refuses(address) is outside
    assert NextHopPolicy(allow_private=True).refuses(address) is private_allowed
    assert SANDBOX.refuses(address) is sandbox


def test_our_own_listeners() -> None:
    policy = NextHopPolicy(port=2525, sandbox=True, own=frozenset({("127.0.0.1", 2525), ("127.0.2.9", 587)}))
    assert policy.refuses("127.0.0.1") is LOOP
    assert policy.refuses("::ffff:127.0.0.1") is LOOP
    assert policy.refuses("127.0.2.9") is None  # another port: somebody else


@pytest.mark.parametrize(
    ("addresses", "policy", "expected"),
    [
        (["127.0.0.1"], OUTSIDE, "5.4.6"),
        (["10.0.0.1"], OUTSIDE, "5.4.4"),
        (["10.0.0.1", "127.0.0.1"], OUTSIDE, "5.4.6"),
        (["8.8.8.8"], SANDBOX, "5.4.4"),
        (["0.0.0.0"], SANDBOX, "5.4.6"),
    ],
)
def test_all_refused_is_permanent(addresses: list[str], policy: NextHopPolicy, expected: str) -> None:
    zone: Zone = {("in.test", "MX"): ["10 mx.in.test."], ("mx.in.test", "A"): addresses}
    assert status(route(zone, "in.test", policy)) == expected


def test_a_refused_host_beside_one_that_dns_could_not_tell_is_temporary() -> None:
    zone: Zone = {**ZONE, ("in.test", "MX"): ["10 half-mx.test.", "20 mx.test."], ("mx.test", "A"): ["127.0.0.1"]}
    assert status(route(zone, "in.test", OUTSIDE)) == "4.4.3"


def test_an_mx_that_is_us_by_address_cuts_the_list() -> None:
    zone: Zone = {
        ("in.test", "MX"): ["10 a.test.", "20 b.test.", "30 c.test."],
        ("a.test", "A"): ["127.0.2.1"],
        ("b.test", "A"): ["127.0.2.9", "127.0.2.8"],
        ("c.test", "A"): ["127.0.2.3"],
    }
    policy = NextHopPolicy(sandbox=True, own=frozenset({("127.0.2.9", 25)}))
    assert names(route(zone, "in.test", policy)) == ["a.test"]
    zone["in.test", "MX"] = ["20 b.test.", "20 c.test.", "30 a.test."]
    assert status(route(zone, "in.test", policy)) == "5.4.6"


def test_the_number_of_hosts_and_addresses_is_bounded() -> None:
    zone: Zone = {("in.test", "MX"): [f"10 mx{n}.test." for n in range(30)]}
    zone.update({(f"mx{n}.test", "A"): [f"127.0.{n}.{i}" for i in range(1, 20)] for n in range(30)})
    found = route(zone, "in.test")
    assert len(found.hosts) == 10
    assert {len(host.addresses) for host in found.hosts} == {8}


def test_a_wildcard_listener_is_every_address_of_this_machine() -> None:
    policy = NextHopPolicy(
        port=25, allow_private=True, own=frozenset({("0.0.0.0", 25)}), local=lambda a: str(a) == "10.0.0.5"
    )
    assert policy.refuses("10.0.0.5") is Refusal.LOOP
    assert policy.refuses("10.0.0.6") is None
    assert is_local(ipaddress.ip_address("127.0.0.1"))
    assert not is_local(ipaddress.ip_address("192.0.2.1"))
