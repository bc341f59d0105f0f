"""The resolver against real DNS packets: outcomes, cache, single flight, servers that fail, stale answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from delivery.resolver import Outcome, Resolver, name_of, server_of
from tests.dns_server import GARBAGE, NXDOMAIN, REFUSED, SERVFAIL, SILENT, TRUNCATED, Zone, dns_server

ZONE: Zone = {
    ("in.test", "MX"): ["10 MX1.in.test.", "20 mx2.in.test."],
    ("mx1.in.test", "A"): ["127.0.2.1", "127.0.2.2"],
    ("mx1.in.test", "AAAA"): ["::1"],
    ("null.test", "MX"): ["0 ."],
    ("a-only.test", "A"): ["127.0.2.3"],
    ("alias.test", "CNAME"): ["in.test."],
    ("dead-alias.test", "CNAME"): ["gone.test."],
    ("broken.test", "MX"): SERVFAIL,
    ("refused.test", "MX"): REFUSED,
    ("garbage.test", "MX"): GARBAGE,
    ("silent.test", "MX"): SILENT,
    ("large.test", "MX"): TRUNCATED,
    ("large.test", "MX over TCP"): [f"{n} mx{n}.large.test." for n in range(150)],
    ("half.test", "A"): SERVFAIL,
    ("half.test", "AAAA"): ["::1"],
    ("quarter.test", "A"): SERVFAIL,
    ("xn--bcher-kva.test", "MX"): ["0 mx.test."],
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def resolver(*servers: str, **options: Any) -> Resolver:
    return Resolver(servers, **{"timeout": 0.15, "total": 2.0, **options})


def run(scenario: Coroutine[Any, Any, None]) -> None:
    uvloop.run(scenario)


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_what_dns_says_of_a_domain(loop: Any) -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            dns = resolver(server.address)
            answers = {name: await dns.mx(name) for name in ("in.test", "null.test", "a-only.test", "alias.test")}
            assert answers["in.test"].records == ((10, "mx1.in.test"), (20, "mx2.in.test"))
            assert answers["null.test"].records == ((0, ""),)
            assert (answers["a-only.test"].outcome, answers["a-only.test"].records) == (Outcome.NO_DATA, ())
            assert answers["alias.test"].records == answers["in.test"].records
            for name in ("nowhere.test", "dead-alias.test"):
                assert (await dns.mx(name)).outcome is Outcome.NO_DOMAIN

    loop(scenario())


@pytest.mark.parametrize("name", ["broken", "refused", "garbage", "silent"])
def test_failure_is_temporary_and_never_no_mx(name: str) -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            answer = await resolver(server.address).mx(f"{name}.test")
            assert (answer.outcome, answer.records) == (Outcome.TEMPORARY, ())
            assert answer.text.startswith(f"MX of {name}.test: ")

    run(scenario())


def test_a_server_that_is_not_there_is_temporary() -> None:
    async def scenario() -> None:
        async with dns_server({}) as server:
            address = server.address
        assert (await resolver(address).mx("in.test")).outcome is Outcome.TEMPORARY

    run(scenario())


def test_addresses_of_a_host() -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            dns = resolver(server.address)
            answer = await dns.addresses("mx1.in.test")
            assert sorted(answer.addresses[:2]) == ["127.0.2.1", "127.0.2.2"]
            assert answer.addresses[2:] == ("::1",)
            assert (await dns.addresses("half.test")).addresses == ("::1",)
            assert (await dns.addresses("quarter.test")).outcome is Outcome.TEMPORARY
            assert (await dns.addresses("in.test")).outcome is Outcome.NO_DATA
            assert (await dns.addresses("nowhere.test")).outcome is Outcome.NO_DOMAIN
            assert len((await resolver(server.address, ipv6=False).addresses("mx1.in.test")).addresses) == 2

    run(scenario())


def test_a_truncated_answer_is_fetched_over_tcp_and_bounded() -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            answer = await resolver(server.address, timeout=1.0).mx("large.test")
            assert len(answer.records) == 100
            assert [way for _, _, way in server.asked] == ["udp", "tcp"]

    run(scenario())


def test_aliases_that_the_server_does_not_follow_are_followed() -> None:
    async def scenario() -> None:
        zone: Zone = {**ZONE, ("loop.test", "CNAME"): ["loop.test."], ("l1.test", "CNAME"): ["l2.test."]}
        zone["l2.test", "CNAME"] = ["l1.test."]
        async with dns_server(zone) as server:
            server.chase = False
            dns = resolver(server.address)
            assert len((await dns.mx("alias.test")).records) == 2
            assert (await dns.mx("dead-alias.test")).outcome is Outcome.NO_DOMAIN
            assert (await dns.mx("l1.test")).outcome is Outcome.TEMPORARY

    run(scenario())


@pytest.mark.parametrize("first", [SERVFAIL, REFUSED, SILENT, GARBAGE])
def test_the_next_server_is_asked_and_then_preferred(first: str) -> None:
    async def scenario() -> None:
        async with dns_server({("*", "*"): first}) as bad, dns_server(ZONE) as good:
            dns = resolver(bad.address, good.address)
            assert len((await dns.mx("in.test")).records) == 2
            assert len((await dns.mx("null.test")).records) == 1
            assert len(bad.asked) == 1

    run(scenario())


def test_the_total_time_bounds_all_rounds() -> None:
    async def scenario() -> None:
        async with dns_server({("*", "*"): SILENT}) as server:
            dns = resolver(server.address, timeout=5.0, total=0.1)
            assert (await dns.mx("in.test")).text == "MX of in.test: no answer within 0.1 s"

    run(scenario())


# -- cache -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl", "fresh", "expired"), [(1, 59, 61), (600, 599, 601), (86_400, 3599, 3601)])
def test_time_to_live_is_clamped(ttl: int, fresh: float, expired: float) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with dns_server(ZONE) as server:
            server.ttl = ttl
            dns = resolver(server.address, clock=clock)
            for moment, asked in ((0, 1), (fresh, 1), (expired, 2)):
                clock.now = 1000.0 + moment
                await dns.mx("in.test")
                assert len(server.asked) == asked

    run(scenario())


@pytest.mark.parametrize("name", ["nowhere.test", "a-only.test"])
def test_negative_answers_are_kept_a_shorter_while(name: str) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with dns_server(ZONE) as server:
            server.ttl = 86_400
            dns = resolver(server.address, clock=clock)
            for moment, asked in ((0, 1), (299, 1), (301, 2)):
                clock.now = 1000.0 + moment
                await dns.mx(name)
                assert len(server.asked) == asked

    run(scenario())


def test_the_cache_forgets_what_was_not_used_longest() -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            dns = resolver(server.address, cache_size=2)
            for name in ("in.test", "null.test", "in.test", "a-only.test", "IN.test.", "null.test"):
                await dns.mx(name)
            assert [name for name, _, _ in server.asked] == ["in.test", "null.test", "a-only.test", "null.test"]

    run(scenario())


def test_one_question_for_all_who_ask_and_it_outlives_a_cancelled_one() -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            server.hold = asyncio.Event()
            dns = resolver(server.address, timeout=2.0)
            waiters = [asyncio.create_task(dns.mx("in.test")) for _ in range(50)]
            await server.heard.wait()
            waiters[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiters[0]
            server.hold.set()
            answers = await asyncio.gather(*waiters[1:])
            assert all(len(answer.records) == 2 for answer in answers)
            assert len(server.asked) == 1

    run(scenario())


def test_close_gives_up_what_is_under_way() -> None:
    async def scenario() -> None:
        async with dns_server({("*", "*"): SILENT}) as server:
            dns = resolver(server.address, timeout=5.0)
            waiter = asyncio.create_task(dns.mx("in.test"))
            await server.heard.wait()
            await dns.close()
            with pytest.raises(asyncio.CancelledError):
                await waiter

    run(scenario())


def test_an_expired_answer_is_served_while_dns_fails() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with dns_server(dict(ZONE)) as server:
            dns = resolver(server.address, clock=clock)
            assert not (await dns.mx("in.test")).stale
            server.zone["in.test", "MX"] = SERVFAIL
            clock.now += 301
            answer = await dns.mx("in.test")
            assert (answer.stale, len(answer.records), answer.outcome) == (True, 2, Outcome.FOUND)
            asked = len(server.asked)
            clock.now += 4
            assert (await dns.mx("in.test")).stale
            assert len(server.asked) == asked  # not every message waits for the outage
            clock.now += 3600
            assert (await dns.mx("in.test")).outcome is Outcome.TEMPORARY
            server.zone["in.test", "MX"] = ["5 new.test."]
            clock.now += 6
            assert (await dns.mx("in.test")).records == ((5, "new.test"),)

    run(scenario())


def test_no_mail_is_returned_on_the_word_of_an_expired_answer() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with dns_server(dict(ZONE)) as server:
            dns = resolver(server.address, clock=clock)
            for asked in (dns.mx("nowhere.test"), dns.mx("a-only.test"), dns.addresses("in.test")):
                await asked
            server.zone = {("*", "*"): SERVFAIL}
            clock.now += 301
            assert (await dns.mx("nowhere.test")).outcome is Outcome.TEMPORARY
            assert (await dns.addresses("in.test")).outcome is Outcome.TEMPORARY
            implicit = await dns.mx("a-only.test")
            assert (implicit.outcome, implicit.stale) == (Outcome.NO_DATA, True)

    run(scenario())


def test_a_domain_that_disappears_is_not_served_stale() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with dns_server(dict(ZONE)) as server:
            dns = resolver(server.address, clock=clock)
            await dns.mx("in.test")
            server.zone["in.test", "MX"] = NXDOMAIN
            clock.now += 301
            assert (await dns.mx("in.test")).outcome is Outcome.NO_DOMAIN

    run(scenario())


# -- names -------------------------------------------------------------------------------------------------------------


def test_international_names() -> None:
    async def scenario() -> None:
        async with dns_server(ZONE) as server:
            dns = resolver(server.address)
            for name in ("bücher.test", "BÜCHER.test.", "xn--bcher-kva.test"):
                assert (await dns.mx(name)).records == ((0, "mx.test"),)
            assert len(server.asked) == 1
            assert (await dns.mx("a..b")).outcome is Outcome.BAD_NAME
            assert (await dns.addresses("")).outcome is Outcome.BAD_NAME

    run(scenario())


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64 + ".test", "ü" * 60 + ".test", "a." * 128, "\ud800.test"])
def test_what_is_no_name(name: str) -> None:
    assert name_of(name) is None


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("[::1]", ("::1", 53)),
    ],
)
def test_nameservers(text: str, server: tuple[str, int]) -> None:
    assert server_of(text) == server


@pytest.mark.parametrize("text", ["localhost", "127.0.0.1:x", "", "1.2.3"])
def test_a_nameserver_is_an_address(text: str) -> None:
    with pytest.raises(ValueError):
        server_of(text)
