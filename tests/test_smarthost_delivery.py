"""Mail that takes a smarthost route: from the queue through it, what happens when it won't have us, and the way back."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import SecretStr

from config.settings import RouteSettings
from delivery.router import NextHopPolicy, Refusal
from delivery.routes import Routes
from mailqueue import inspect
from mailqueue.server import info_map
from tests.delivery_kit import Rig, rig
from tests.smtp_peer import DROP, SILENCE, Peer, listening
from tests.test_engine import another_engine, empty, put

PLAIN = {"EHLO": "250-mx.test\r\n250-STARTTLS\r\n250-SIZE 50000000\r\n250-8BITMIME\r\n250 AUTH PLAIN"}
KNOWN = {**PLAIN, "AUTH": "235 2.7.0 welcome"}


class Formal(Peer):
    """A smarthost: how many connections it has had at once, and whether it knows us."""

    open = most = 0
    pause = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await super().serve(reader, writer)
        finally:
            self.open -= 1

    async def _act(self, verb: str, writer: asyncio.StreamWriter) -> bool:
        if verb == ".":
            await asyncio.sleep(self.pause)
        return await super()._act(verb, writer)

    def routes(self, certificate: Any, *keys: Mapping[str, Any]) -> Routes:
        """Routes to it: under TLS verified by the certificate, with a user, unless ``keys`` say otherwise."""
        base = {
            "host": "127.0.0.1",
            "port": self.port,
            "ca_file": str(certificate.certificate),
            "user": "relay",
            "password_file": "/nowhere",
        }
        made = [RouteSettings.model_validate({"name": "formal", **base, **one}) for one in keys]
        return Routes(made, {one.name: SecretStr("clave") for one in made})

    def recipients(self) -> list[str]:
        return [line[9:].rstrip(">") for line in self.heard if line.startswith("RCPT TO:<")]


Story = Callable[[Rig, Formal], Awaitable[None]]


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path, certificate: Any) -> Callable[..., None]:
    """``play(story, *keys of routes, script=…, **options of rig)``."""

    def run(story: Story, *keys: Mapping[str, Any], script: Any = None, **options: Any) -> None:
        async def whole() -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            server = Formal({**KNOWN, **(script or {})}, context)
            async with listening(server.serve) as server.port:
                routes = server.routes(certificate, *keys)
                async with rig(shared_redis.url, tmp_path, routes=routes, **options) as it:
                    await story(it, server)

        uvloop.run(whole())

    return run


BY_ACCOUNT = {"accounts": ["rrhh"]}
BY_RECIPIENT = {"recipient_domains": ["gob.test"]}


def take_over(it: Rig, routes: Routes) -> None:
    """What a reload does."""
    it.engine._router.routes = routes
    it.engine.configure(it.settings.delivery, it.engine._providers)


# ── ways ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_ways(play: Any) -> None:
    """A recipient domain's route, a sender's, and everybody else by MX; the same destination goes both ways."""

    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test", "b@gob.test", "a@gmail.test")
        await put(it, "c@gob.test", "c@gmail.test", pool="route:other")
        await put(it, "d@nx.test", pool="route:other")
        assert await it.until({"delivered": 6}) == {"received": 3, "delivered": 6}
        ways = {event.recipient: (event.provider, event.tls[:7]) for event in await it.events("delivered")}
        assert ways == {
            "a@gob.test": ("route:formal", "TLSv1.3"),
            "b@gob.test": ("route:formal", "TLSv1.3"),
            "a@gmail.test": ("google", ""),
            "c@gob.test": ("route:formal", "TLSv1.3"),  # the recipient's beats the sender's
            "c@gmail.test": ("route:other", "TLSv1.3"),
            "d@nx.test": ("route:other", "TLSv1.3"),  # nobody asked DNS
        }
        assert sorted(server.recipients()) == sorted(ways.keys() - {"a@gmail.test"})
        assert len(server.messages) == 4, "recipients of one message and route in one transaction"
        (event,) = [event for event in await it.events("delivered") if event.recipient == "d@nx.test"]
        assert event.remote_mta == "127.0.0.1 [127.0.0.1]"
        assert event.source.startswith("127.0.1.")
        await empty(it)

    play(story, BY_RECIPIENT, {**BY_ACCOUNT, "name": "other"})


def test_sessions_are_used_again_and_their_number_kept(play: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        server.pause = 0.01
        async with another_engine(it, "other") as other:
            take_over_routes = it.engine._router.routes
            other._router.routes = take_over_routes
            other.configure(it.settings.delivery, other._providers)
            await put(it, "u%d@gob.test", count=60)
            await put(it, "v%d@d%d.many.test", count=60, pool="route:formal")
            await it.until({"delivered": 120}, seconds=30)
        assert (await it.until())["deferred"] == 0
        assert server.most <= 3
        assert len(server.peers) >= 120 / 10, "10 messages a connection"
        assert len(server.peers) < 60
        assert len(server.messages) == 120

    play(
        story,
        {**BY_RECIPIENT, **BY_ACCOUNT, "connections": 3, "messages_per_connection": 10},
        pools=[{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.4"}]}],
    )


def test_the_pool_of_the_route_connects(play: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test", pool="route:formal")
        await it.until({"delivered": 1})
        assert {address for address, _ in server.peers} == {"127.0.1.9"}

    pools = [
        {"name": "default", "sources": [{"address": "127.0.1.1"}]},
        {"name": "inner", "sources": [{"address": "127.0.1.9"}]},
    ]
    play(story, {**BY_ACCOUNT, "pool": "inner"}, pools=pools)


def test_replies_are_the_recipients(play: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test", "b@gob.test", pool="route:formal")
        await it.until({"delivered": 1, "bounced": 1})
        (bounced,) = await it.events("bounced")
        assert (bounced.recipient, bounced.status, bounced.provider) == ("b@gob.test", "5.1.1", "route:formal")
        assert len(server.messages) == 1

    play(story, BY_ACCOUNT, script={"RCPT": ["250 ok", "550 5.1.1 unknown"]})


@pytest.mark.parametrize(("policy", "copies"), [("retry", 2), ("never", 1)])
def test_the_final_dot_was_not_answered(play: Any, policy: str, copies: int) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test", unknown=policy, pool="route:formal")
        await it.until({"unknown": 1})
        if policy == "retry":
            await it.until({"delivered": 1})
        await empty(it)
        assert len(server.messages) == copies
        (event,) = await it.events("unknown")
        assert (event.phase, event.provider) == ("end-of-data", "route:formal")

    play(story, BY_ACCOUNT, script={".": [DROP, "250 2.0.0 kept"]})


# ── what an operator has to mend ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "why", "phase"),
    [
        ({"AUTH": "535 5.7.8 wrong password"}, "535 5.7.8 wrong password", "auth"),
        ({"AUTH": "550 5.1.1 no such user"}, "550 5.1.1 no such user", "auth"),
        ({"MAIL": "530 5.7.0 log in first"}, "530 5.7.0 log in first", "ehlo"),
        ({"EHLO": "250 mx.test"}, "STARTTLS is required and not offered", "ehlo"),
        ({"greeting": "554 5.7.1 who are you"}, "554 5.7.1 who are you", "greeting"),
    ],
)
@pytest.mark.parametrize("way", ["recipient", "sender"])
def test_nothing_bounces_while_the_smarthost_will_not_have_us(
    play: Any, way: str, script: Any, why: str, phase: str, certificate: Any
) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "u%d@gob.test", count=30, pool="route:formal" if way == "sender" else "default")
        await put(it, "a@gob.test" if way == "sender" else "a@gmail.test")
        counts = await it.until({"suspended": 1, "deferred": 1, "delivered": 1})
        assert counts["bounced"] == 0
        assert counts["deferred"] <= 12, "the others stay untouched"
        (event, *more) = await it.events("suspended")
        assert {one.destination for one in (event, *more)} == {"route:formal"}
        assert (event.provider, event.destination, event.reason) == ("route:formal", "route:formal", why)
        deferred = await it.events("deferred")
        assert {one.phase for one in deferred} <= {phase, "mail"}
        assert {one.status[0] for one in deferred} == {"4"}
        facts = await inspect.summary(it.queue.shards)
        assert {key: value.partition(" ")[2] for key, value in facts.stops.items()} == {"route:formal": f"relay: {why}"}
        for verb in script:
            server.script[verb] = {**KNOWN, "MAIL": "250 ok", "greeting": "220 mx.test"}[verb]
        keys = BY_RECIPIENT if way == "recipient" else BY_ACCOUNT
        take_over(it, server.routes(certificate, {**keys, "messages_per_connection": 50}))
        await it.until({"delivered": 31, "resumed": 1}, seconds=10)
        assert (await it.until())["bounced"] == 0

    play(story, BY_RECIPIENT if way == "recipient" else BY_ACCOUNT, script=script)


@pytest.mark.parametrize("keys", [{"host": "localhost"}, {"ca_file": None}])
def test_another_certificate(play: Any, keys: Any) -> None:
    """Of another name (the address is resolved to the same place), or by an authority that is not trusted."""

    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test", "b@gob.test", pool="route:formal")
        counts = await it.until({"suspended": 1, "deferred": 1})
        assert (counts["bounced"], counts["delivered"], server.messages) == (0, 0, [])
        assert "AUTH" not in server.verbs()
        (event, *_) = await it.events("deferred")
        assert event.status[0] == "4"

    play(story, {**BY_ACCOUNT, **keys})


def test_mail_of_a_route_that_is_gone_waits_for_it(play: Any, certificate: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "u%d@gob.test", count=20, pool="route:formal")
        await put(it, "a@gob.test")
        counts = await it.until({"suspended": 1, "deferred": 1, "delivered": 1})
        assert (counts["bounced"], counts["deferred"]) == (0, 1)
        (event, *_) = await it.events("suspended")
        assert (event.destination, event.reason) == ("route:formal", "route:formal is not in the configuration")
        await asyncio.sleep(1.0)
        counts = await it.until()
        assert counts["delivered"] == 1, "and does not go by MX"
        assert counts["suspended"] <= 4
        take_over(it, server.routes(certificate, BY_ACCOUNT))
        await it.until({"delivered": 21})
        take_over(it, Routes())
        await put(it, "z@gob.test", pool="route:formal")
        await it.until({"deferred": 2})
        assert len(server.messages) == 20

    play(story)


def test_a_changed_route_counts_for_new_sessions(play: Any, certificate: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test", pool="route:formal")
        await it.until({"delivered": 1})
        new = server.routes(certificate, {**BY_ACCOUNT, "user": "otro"})
        take_over(it, new)
        await put(it, "b@gob.test", pool="route:formal")
        await it.until({"delivered": 2})
        assert len([line for line in server.heard if line.startswith("AUTH")]) >= 2
        assert len({line for line in server.heard if line.startswith("AUTH")}) == 2

    play(story, BY_ACCOUNT)


def test_an_operator_stops_a_route(play: Any, certificate: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await it.queue.suspend("route:formal", reason="maintenance")
        await put(it, "a@gob.test", pool="route:formal")
        await put(it, "b@gmail.test")
        await it.until({"delivered": 1})
        take_over(it, server.routes(certificate, {**BY_ACCOUNT, "connections": 2}))
        await asyncio.sleep(0.5)
        assert (await it.until())["delivered"] == 1, "a reload does not resume what an operator has stopped"
        assert await it.queue.resume("route:formal")
        await it.until({"delivered": 2})

    play(story, BY_ACCOUNT)


def test_a_destination_whose_mx_hosts_are_down_is_no_matter_to_a_route(play: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await it.sandbox.set_behaviour("gob.test", "down")
        it.engine._absences._steps = (60.0,)
        await put(it, "a@gob.test")
        await it.until({"suspended": 1})
        await put(it, "b@gob.test", pool="route:formal")
        await it.until({"delivered": 1})
        await it.queue.suspend("destination:gob.test", 60, "by hand")
        await put(it, "c@gob.test", pool="route:formal")
        await asyncio.sleep(0.5)
        assert server.recipients() == ["b@gob.test"], "what an operator suspends is suspended on every way"

    play(story, BY_ACCOUNT)


async def scripts_run(it: Rig, seconds: float) -> int:
    """How many scripts the queue's server has run in so many seconds."""

    async def count() -> int:
        facts = info_map(await it.queue.shards[0].command("INFO", "commandstats"))
        return int(facts["cmdstat_evalsha"].removeprefix("calls=").partition(",")[0])

    before = await count()
    await asyncio.sleep(seconds)
    return await count() - before


def test_a_route_without_an_address_is_not_asked_for_ever(play: Any) -> None:
    """The destination lies in the route's lane though nobody ever got there."""

    async def story(it: Rig, server: Formal) -> None:
        it.engine._absences._steps = (60.0,)
        await put(it, "u%d@gob.test", count=20)
        await it.until({"suspended": 1, "deferred": 1})
        assert await scripts_run(it, 1.0) < 30
        counts = await it.until()
        assert (counts["suspended"], counts["deferred"], counts["bounced"]) == (1, 1, 0)

    play(story, {**BY_RECIPIENT, "host": "nowhere.test"})


def test_no_recipient_route_any_more_for_mail_of_a_senders(play: Any, certificate: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await put(it, "a@gob.test")
        await it.until({"delivered": 1})
        await it.queue.suspend("route:other", reason="maintenance")
        take_over(it, server.routes(certificate, {**BY_ACCOUNT, "name": "other"}))
        await put(it, "b@gob.test", pool="route:other")
        await asyncio.sleep(0.3)
        assert server.recipients() == ["a@gob.test"], "the operator stopped the other one"
        assert await scripts_run(it, 1.0) < 30
        assert await it.queue.resume("route:other")
        await it.until({"delivered": 2})

    play(story, BY_RECIPIENT, {**BY_ACCOUNT, "name": "other"})


@pytest.mark.parametrize("way", ["recipient", "sender"])
def test_every_source_of_a_routes_pool_is_stopped(play: Any, way: str) -> None:
    """Its mail waits, untouched and unasked; that the sources of the account's pool are stopped is no matter to it."""

    async def story(it: Rig, server: Formal) -> None:
        await it.queue.suspend("source:127.0.1.9")
        await put(it, "u%d@gob.test", count=5, pool="default" if way == "recipient" else "route:formal")
        await asyncio.sleep(0.5)
        assert await scripts_run(it, 1.0) < 30
        await it.queue.suspend("source:127.0.1.1")
        await it.queue.resume("source:127.0.1.9")
        counts = await it.until({"delivered": 5}, seconds=10)
        assert counts["deferred"] == 0

    pools = [
        {"name": "default", "sources": [{"address": "127.0.1.1"}]},
        {"name": "inner", "sources": [{"address": "127.0.1.9"}]},
    ]
    play(story, {**(BY_RECIPIENT if way == "recipient" else BY_ACCOUNT), "pool": "inner"}, pools=pools)


def test_an_operators_word_outlives_a_failure(play: Any, certificate: Any) -> None:
    """What delivery suspends for a minute does not end what an operator has suspended for longer, nor does a reload."""

    async def story(it: Rig, server: Formal) -> None:
        await put(it, "u%d@gob.test", count=3, pool="route:formal")
        await asyncio.wait_for(server.asked.wait(), 5)  # a session is being opened
        await it.queue.suspend("route:formal", 3600, reason="maintenance")
        stops = await it.queue.workers()[0].stops()
        server.script["EHLO"] = KNOWN["EHLO"]
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(1.5)
        assert await it.queue.workers()[0].stops() == stops
        take_over(it, server.routes(certificate, {**BY_ACCOUNT, "connections": 2}))
        await asyncio.sleep(0.5)
        assert await it.queue.workers()[0].stops() == stops
        assert server.messages == []
        assert await it.queue.resume("route:formal")
        await it.until({"delivered": 3})

    play(story, BY_ACCOUNT, script={"EHLO": SILENCE}, timeouts={"ehlo": 5, "idle": 1})


def test_a_new_route_counts_for_mail_that_waits_at_mx_hosts(play: Any, certificate: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        await it.sandbox.set_behaviour("gob.test", "slow")
        await put(it, "u%d@gob.test", count=200)
        await it.until({"delivered": 1})
        take_over(it, server.routes(certificate, BY_RECIPIENT))
        before = (await it.until())["delivered"]
        await it.until({"delivered": 200})
        late = [event for event in await it.events("delivered") if event.provider == "route:formal"]
        assert len(late) >= 200 - before - 32, "all but what was under way"

    play(story)


def test_a_crowd_for_one_route_keeps_nobody_else_waiting(play: Any) -> None:
    async def story(it: Rig, server: Formal) -> None:
        server.pause = 0.2
        await put(it, "u@d%d.many.test", count=300, pool="route:formal")
        await it.until({"delivered": 1})
        await put(it, "v@d%d.many.test", count=50)
        await it.until({"delivered": 52})
        mx = [event for event in await it.events("delivered") if event.provider != "route:formal"]
        assert len(mx) == 50
        server.pause = 0.0
        await it.until({"delivered": 350}, seconds=15)

    play(story, {**BY_ACCOUNT, "connections": 2})


@pytest.mark.parametrize(
    ("address", "given", "options", "refusal"),
    [
        ("10.0.0.1", False, {}, None),
        ("192.0.2.1", False, {}, None),
        ("203.0.113.9", False, {}, None),
        ("127.0.0.1", False, {}, Refusal.LOOP),
        ("127.0.0.1", True, {}, None),
        ("127.0.0.1", False, {"sandbox": True}, None),
        ("10.0.0.1", True, {"sandbox": True}, Refusal.PRIVATE),
        ("0.0.0.0", True, {}, Refusal.LOOP),
        ("224.0.0.1", True, {}, Refusal.LOOP),
        ("127.0.0.1", True, {"own": frozenset({("127.0.0.1", 587)})}, Refusal.LOOP),
        ("127.0.0.1", True, {"own": frozenset({("0.0.0.0", 587)})}, Refusal.LOOP),
        ("127.0.0.1", True, {"own": frozenset({("127.0.0.1", 25)})}, None),
    ],
)
def test_where_a_smarthost_may_be(address: str, given: bool, options: Any, refusal: Refusal | None) -> None:
    assert NextHopPolicy(**options).refuses_smarthost(address, 587, given=given) is refusal
