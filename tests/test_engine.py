"""Delivery as a whole: from the queue through real sessions to the sandbox's mail hosts, and back as events and DSNs."""

from __future__ import annotations

import asyncio
import email.policy
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from delivery.lines import Lines
from ipreputation.store import LimitStore
from mailqueue import inspect, scripts
from mailqueue.queue import Queue
from tests.delivery_kit import Rig, make_engine, player
from tests.queue_kit import eventually, is_empty, message, now_ms, places


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path) -> Callable[..., None]:
    return player(shared_redis.url, tmp_path)


async def put(it: Rig, *recipients: str, count: int = 0, **changes: Any) -> list[str]:
    """One message to the recipients; or ``count`` messages, "%d" in the address is their number. Returns the ids."""
    sent = []
    for n in range(count or 1):
        to = [recipient.replace("%d", str(n)) for recipient in recipients]
        one = message(*to, **changes)
        identity = f"Message-ID: <{one.envelope.id}@x>\r\n\r\nhola\r\n".encode()
        sent.append(type(one)(one.envelope, changes.get("content", identity)))
    await asyncio.gather(*(it.queue.put(one) for one in sent))
    return [one.envelope.id for one in sent]


async def empty(it: Rig) -> None:
    async def nothing_left() -> bool:
        return await is_empty(it.queue.shards[0]) == []

    await eventually(nothing_left)


async def dsns(it: Rig, domain: str, count: int) -> list[EmailMessage]:
    """DSNs that arrived for a domain, after maintenance had its turn."""
    assert it.sandbox.store is not None
    kept = it.sandbox.store

    async def arrived() -> bool:
        await it.notify()
        return len(kept.messages(domain)) >= count

    await eventually(arrived)
    parsed = [
        email.message_from_bytes(p.read_bytes(), policy=email.policy.default) for p in it.sandbox.store.messages(domain)
    ]
    assert all(isinstance(one, EmailMessage) for one in parsed)
    return parsed  # type: ignore[return-value]


def reports(dsn: EmailMessage) -> list[Any]:
    """Per-recipient groups of the delivery-status part."""
    assert dsn.get_content_type() == "multipart/report"
    (status,) = [part for part in dsn.iter_parts() if part.get_content_type() == "message/delivery-status"]
    return list(status.get_payload())[1:]


# ── delivered ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mail_is_delivered_and_said(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        sent = await put(it, "u%d@gmail.test", "u%d@gob.test", count=50, campaign="enero", metadata={"n": 1})
        assert await it.until({"delivered": 100}) == {"received": 50, "delivered": 100}
        await empty(it)
        event = next(event for event in await it.events("delivered") if event.destination == "gmail.test")
        assert (event.provider, event.account, event.campaign, event.class_) == ("google", "rrhh", "enero", "bulk")
        assert (event.metadata, event.reverse_path, event.index) == ({"n": 1}, "aviso@entidad.test", 0)
        assert (event.action, event.attempt, event.phase, event.next_at) == ("delivered", 1, "end-of-data", 0)
        assert event.id in sent
        assert event.recipient.endswith("@gmail.test")
        assert event.status.startswith("2.")
        assert event.diagnostic_code.startswith("smtp; 250 ")
        assert event.remote_mta.startswith("mx1.gmail.test [127.0.")
        assert event.source.startswith("127.0.1.")
        assert event.size > 0
        assert 0 < event.received_at <= event.at <= now_ms()

    play(scenario)


def test_recipients_of_one_destination_share_a_transaction(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, *(f"u{n}@gob.test" for n in range(30)), "solo@gmail.test")
        await it.until({"delivered": 21})
        sizes = sorted(len(record["to"]) for record in it.sandbox.ledger.receipts().records("message"))
        assert sizes == [1, 10, 10, 10]

    play(scenario, recipients_per_transaction=10)


def test_tls_where_it_is_had(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "a@tls.test", "a@tlsrequired.test", "a@tlsbroken.test", "a@gob.test")
        await it.until({"delivered": 4})
        tls = {event.destination: event.tls for event in await it.events("delivered")}
        assert tls["tls.test"].startswith("TLSv1.3 ")
        assert tls["tlsrequired.test"].startswith("TLSv1.3 ")
        assert (tls["tlsbroken.test"], tls["gob.test"]) == ("", "")

    play(scenario)


def test_old_and_plain_servers(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "a@basic.test", "b@basic.test", "a@helo.test", "a@nomx.test", "a@alias.test", "a@halfdead.test")
        assert await it.until({"delivered": 6}) == {"received": 1, "delivered": 6}
        hosts = {event.destination: event.remote_mta.split()[0] for event in await it.events("delivered")}
        assert hosts["halfdead.test"] == "mx2.halfdead.test", "the other MX, in the same attempt"
        assert hosts["nomx.test"] == "nomx.test", "implicit MX"

    play(scenario)


def test_many_domains_on_one_site_do_not_wait_for_each_other(play: Any) -> None:
    """More destinations than tickets may wait at one site: none waits for a lease to run out."""

    async def scenario(it: Rig) -> None:
        await put(it, "u@d%d.many.test", count=150)
        await it.until({"delivered": 150}, seconds=15)

    play(scenario)


# ── refused ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_failures_of_one_message_are_one_dsn(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        content = b"Subject: cita\r\nMessage-ID: <orig@x>\r\n\r\nhola\r\n"
        bad = ("unknown+a@gob.test", "disabled+b@gmail.test", "a@nx.test", "a@null.test")
        await put(it, "bien@gob.test", *bad, reverse_path="jefa@basic.test", content=content)
        assert await it.until({"delivered": 1, "bounced": 4}) == {"received": 1, "delivered": 1, "bounced": 4}
        (dsn,) = await dsns(it, "basic.test", 1)
        assert dsn["Return-Path"] == "<>"
        assert dsn["To"].addresses[0].addr_spec == "jefa@basic.test"
        told = {group["Final-Recipient"].split("; ")[1]: group["Status"] for group in reports(dsn)}
        assert told == dict(zip(bad, ("5.1.1", "5.2.1", "5.1.2", "5.1.10"), strict=True))
        assert {group["Action"] for group in reports(dsn)} == {"failed"}
        assert b"Subject: cita" in dsn.as_bytes()
        await it.until({"delivered": 2})
        (event,) = [event for event in await it.events("delivered") if event.reverse_path == ""]
        assert event.recipient == "jefa@basic.test"
        await empty(it)
        assert await it.notify() == 0

    play(scenario, store=True)


def test_failures_far_apart_are_told_when_their_window_ends(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "unknown+a@gob.test", "full+b@gob.test", reverse_path="jefa@basic.test")
        await it.until({"bounced": 1, "deferred": 1})
        (dsn,) = await dsns(it, "basic.test", 1)
        assert [group["Final-Recipient"] for group in reports(dsn)] == ["rfc822; unknown+a@gob.test"]
        assert (await inspect.summary(it.queue.shards)).open >= 1, "the other one is still tried"

    play(scenario, store=True, dsn_window_seconds=0.3)


def test_nobody_is_told_of_a_null_reverse_path(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "unknown+a@gob.test", "a@nx.test", reverse_path="")
        await it.until({"bounced": 2})
        await empty(it)
        assert await it.notify() == 0

    play(scenario)


def test_an_undeliverable_dsn_ends(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "unknown+a@gob.test", reverse_path="unknown+b@gob.test")
        await it.until({"bounced": 1})
        assert await it.notify() == 1
        await it.until({"bounced": 2})
        await empty(it)
        assert await it.notify() == 0

    play(scenario)


def test_some_recipients_of_a_transaction_are_refused(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, *(f"u{n}@partial.test" for n in range(6)))
        assert await it.until({"delivered": 3, "bounced": 3}) == {"received": 1, "delivered": 3, "bounced": 3}
        assert len(list(it.sandbox.ledger.receipts().records("message"))) == 1

    play(scenario)


def test_the_whole_message_is_refused(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "a@spam.test", "b@spam.test")
        await it.until({"bounced": 2})
        assert {(event.status, event.phase) for event in await it.events("bounced")} == {("5.7.1", "end-of-data")}

    play(scenario)


# ── try again ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_greylisting_is_sat_out(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "greylist")
        await put(it, "a@gob.test")
        await it.until({"deferred": 1, "delivered": 1})
        (deferred,), (delivered,) = await it.events("deferred"), await it.events("delivered")
        assert (deferred.attempt, delivered.attempt) == (1, 2)
        assert (deferred.action, deferred.phase, deferred.status[0]) == ("delayed", "rcpt", "4")
        assert deferred.diagnostic_code.startswith("smtp; 45")
        assert deferred.source == delivered.source or deferred.source
        assert 800 <= deferred.next_at - deferred.at <= 1200
        assert delivered.at >= deferred.next_at

    play(scenario, pools=[{"name": "default", "sources": [{"address": "127.0.1.1"}]}])


@pytest.mark.parametrize("behaviour", ["drop-rcpt", "drop-data", "garbage-rcpt", "bye"])
def test_a_session_lost_midway_costs_only_its_message_time(play: Any, tmp_path: Path, behaviour: str) -> None:
    more = tmp_path / "more.toml"
    more.write_text('[behaviours]\nbye.steps.rcpt.reply = "421 4.3.2 closing the channel"\n')

    async def scenario(it: Rig) -> None:
        await put(it, "u%d@gob.test", count=30)
        await put(it, f"{behaviour}+a@gob.test")
        await it.until({"delivered": 30, "deferred": 1})
        (event, *_) = await it.events("deferred")
        assert event.recipient == f"{behaviour}+a@gob.test"
        assert event.status.startswith("4.")
        copies = it.sandbox.ledger.receipts().deliveries()
        assert max(copies.values()) == 1

    play(scenario, scenario=more)


@pytest.mark.parametrize(("policy", "copies", "unknowns"), [("retry", 2, 2), ("never", 1, 1), ("once:1", 2, 2)])
def test_the_final_dot_was_not_answered(play: Any, policy: str, copies: int, unknowns: int) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "drop-after-dot+a@gob.test", unknown=policy)
        await it.until({"unknown": unknowns})
        receipts = it.sandbox.ledger.receipts()
        assert sum(receipts.deliveries().values()) == receipts.unanswered() == copies
        events = await it.events("unknown")
        assert {(event.action, event.phase) for event in events} == {("", "end-of-data")}
        assert (events[-1].next_at > 0) == (policy == "retry")
        if policy != "retry":
            await empty(it)
            assert await it.notify() == 0

    play(scenario)


def test_time_runs_out(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "full+a@gob.test", reverse_path="jefa@basic.test", expires_at=now_ms() + 1500)
        await it.until({"expired": 1})
        (event,) = await it.events("expired")
        assert (event.status, event.action, event.attempt) == ("4.4.7", "failed", 3)
        assert "4.2.2" in event.diagnostic_code
        (dsn,) = await dsns(it, "basic.test", 1)
        (group,) = reports(dsn)
        assert (group["Status"], group["Action"]) == ("4.4.7", "failed")
        assert "4.2.2" in group["Diagnostic-Code"]

    play(scenario, store=True)


def test_a_delay_is_told_once(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "full+a@gob.test", reverse_path="jefa@basic.test", notify_after=now_ms() + 100)
        await it.until({"deferred": 2})
        assert await it.reaper.look() == 1
        (dsn,) = await dsns(it, "basic.test", 1)
        (group,) = reports(dsn)
        assert (group["Action"], group["Status"][0]) == ("delayed", "4")
        assert group["Will-Retry-Until"]
        await it.until({"deferred": 4})
        assert await it.reaper.look() == 0
        assert await it.notify() == 0

    play(scenario, store=True)


# ── nobody there ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_site_that_is_down_costs_one_item_an_attempt(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "down")
        sent = await put(it, "u%d@gob.test", count=20)
        counts = await it.until({"suspended": 1, "deferred": 1})
        assert counts["deferred"] <= 2
        touched = {event.id for event in await it.events("deferred")}
        for one in sent:
            found = await inspect.find(it.queue.shards, one)
            assert found is not None
            (item,) = await inspect.items(*found)
            assert (item.state.attempts == 0) == (one not in touched)
        await it.sandbox.set_behaviour("gob.test", "normal")
        await it.until({"delivered": 20})
        (event, *_) = await it.events("suspended")
        assert (event.destination, event.provider) == ("gob.test", "default")
        assert event.next_at > event.at

    play(scenario)


def test_an_outage_of_dns_bounces_nothing(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        it.sandbox.pause_dns("servfail")
        await put(it, "u@d%d.many.test", count=120)
        await it.until({"suspended": 120, "deferred": 120})
        assert {event.status for event in await it.events("deferred")} == {"4.4.3"}
        it.sandbox.resume_dns()
        counts = await it.until({"delivered": 120})
        assert counts["bounced"] == 0

    play(scenario)


def test_silence_of_dns_is_an_outage_too(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "a@mute.test", "a@gob.test")
        counts = await it.until({"deferred": 1, "delivered": 1})
        assert counts["bounced"] == 0

    play(scenario)


def test_a_host_that_never_greets(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "a@silent.test", "a@busy.test", "a@closed.test", "a@garbage.test", "a@drop.test", "a@gob.test")
        counts = await it.until({"deferred": 5, "delivered": 1})
        assert counts["bounced"] == 0
        phases = {event.destination: event.phase for event in await it.events("deferred")}
        assert phases.pop("drop.test") == "mail"
        assert set(phases.values()) == {"greeting"}

    play(scenario)


# ── stops ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["account:rrhh", "provider:google"])
def test_suspended_while_running(play: Any, key: str) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "slow0.3+%d@gmail.test", count=20, campaign="enero")
        await it.until({"delivered": 1})
        await it.queue.suspend(key)
        await put(it, "a@gob.test", account="otra")

        async def nothing_in_flight() -> bool:
            return not (await inspect.summary(it.queue.shards)).in_flight

        await eventually(nothing_in_flight)
        before = (await it.until({"delivered": 2}))["delivered"]
        assert before < 21, "most were not yet under way"
        await asyncio.sleep(0.3)
        assert (await it.until())["delivered"] == before
        await it.queue.resume(key)
        await it.until({"delivered": 21})

    play(scenario, pools=[{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.2"}]}])


def test_a_suspended_source_sends_no_more(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "u%d@gob.test", count=100)
        await it.until({"delivered": 100})
        assert set(it.sandbox.ledger.receipts().by_source()) == {"127.0.1.1", "127.0.1.2"}
        await it.queue.suspend("source:127.0.1.1")

        async def stopped() -> bool:
            return "127.0.1.1" in it.engine.stopped_sources

        async def running() -> bool:
            return not it.engine.stopped_sources

        await eventually(stopped)
        since = now_ms()
        await put(it, "v%d@gob.test", count=100)
        await it.until({"delivered": 200})
        late = [event.source for event in await it.events("delivered") if event.at > since]
        assert set(late) == {"127.0.1.2"}, "neither over sessions that were open already"
        await it.queue.suspend("source:127.0.1.1", 0.2)
        await eventually(running)
        await put(it, "w%d@gob.test", count=100)
        await it.until({"delivered": 300})
        assert it.sandbox.ledger.receipts().by_source()["127.0.1.1"] > 50, "the suspension ended by itself"

    play(scenario, pools=[{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.2"}]}])


# ── limits, classes, life ──────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def another_engine(it: Rig, name: str) -> AsyncIterator[Any]:
    """A second delivery process' parts on the same queue."""
    queue = await Queue.open(it.settings.queue, name, patience=5)
    redis = scripts.connect(it.settings.queue.url, timeout=None, most=64)
    holder: list[Any] = []
    limits = LimitStore(redis, name, it.settings.queue.lease_seconds, on_freed=lambda n: holder[0].limit_freed(n))
    try:  # what a failure leaves open would keep the loop from closing
        async with limits:
            holder.append(await make_engine(queue, it.settings, None, limits))
            work = asyncio.create_task(holder[0].run())
            try:
                yield holder[0]
            finally:
                holder[0].stop()
                await asyncio.wait_for(work, 30)
    finally:
        await queue.close()
        await redis.aclose()


def test_two_engines_share_the_limits(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        async with another_engine(it, "other"):
            await put(it, "u%d@gmail.test", count=400)
            await put(it, "u%d@icloud.test", count=100)
            await it.until({"delivered": 500}, seconds=30)
        assert it.sandbox.ledger.violations == []
        assert max(it.sandbox.ledger.receipts().deliveries().values()) == 1

    play(scenario, pools=[{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.2"}]}])


def test_an_emergency_overtakes(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        for n in range(60):
            await put(it, "slow1+%d@gmail.test", count=5, campaign=str(n))
        await it.until({"delivered": 1})
        await put(it, "sos@gmail.test", class_="emergency")
        started = time.monotonic()

        async def helped() -> bool:
            return any(event.class_ == "emergency" for event in await it.events("delivered"))

        await eventually(helped, 20)
        assert time.monotonic() - started < 6, "as long as a chain of transactions under way, no longer"
        assert (await it.until())["delivered"] < 200

    play(scenario, pools=[{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.2"}]}])


def test_a_drain_under_load_loses_nothing(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "u%d@gob.test", count=600)
        await it.until({"delivered": 50})
        it.engine.stop()
        await asyncio.wait_for(asyncio.shield(it.work), 20)
        done = (await it.until())["delivered"]
        assert done < 600
        found = await places(it.queue.shards)
        assert len(found) == 600 - done
        assert all(len(where) == 1 and ":q:" in where[0] for where in found.values()), "nothing is left claimed"
        async with another_engine(it, "next"):
            await it.until({"delivered": 600})
        copies = it.sandbox.ledger.receipts().deliveries()
        assert (len(copies), max(copies.values())) == (600, 1)
        assert it.sandbox.ledger.slots.total == 0

    play(scenario)


def test_limits_forgotten_by_their_server(play: Any) -> None:
    """The leases are gone from one moment to the next: they are had again or their sessions end; no mail is lost."""

    async def scenario(it: Rig) -> None:
        await put(it, "slow0.3+%d@gmail.test", count=40)
        await it.until({"delivered": 2})
        redis = it.queue.shards[0]
        names = await redis.command("KEYS", "{rep}*")
        assert names
        await redis.command("DEL", *names)
        await it.until({"delivered": 40}, seconds=30)
        assert max(it.sandbox.ledger.receipts().deliveries().values()) == 1

    play(scenario, queue={"lease_seconds": 3.0})


def test_shards_are_served_alike(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        await put(it, "u%d@gob.test", "u%d@gmail.test", "unknown+%d@gob.test", count=60)
        assert (await it.until({"delivered": 120, "bounced": 60}))["delivered"] == 120
        for shard in it.queue.shards:
            assert await shard.command("ZCARD", shard.prefix + "bd") > 5, "each has its part of the failures"

    play(scenario, queue={"shards": 3})


def test_a_site_that_waits_for_a_session_does_not_keep_the_drain_waiting(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(Lines, "open_more", nothing)

    async def scenario(it: Rig) -> None:
        await put(it, "u%d@gob.test", count=5)

        async def waits() -> bool:
            return any(site.tickets for site in it.engine._sites.values())

        await eventually(waits)
        it.engine.stop()
        await asyncio.wait_for(asyncio.shield(it.work), 5)

    play(scenario)


def test_a_peer_that_hangs_up_before_mail_is_a_refusal(play: Any) -> None:
    """Not knocked at for ever: one item says why, the destination waits."""

    async def scenario(it: Rig) -> None:
        await it.sandbox.set_behaviour("gob.test", "drop-mail")
        await put(it, "u%d@gob.test", count=20)
        await it.until({"suspended": 1, "deferred": 1})
        assert sum(it.sandbox.ledger.connections.values()) < 40
        await it.sandbox.set_behaviour("gob.test", "normal")
        await it.queue.resume("destination:gob.test")
        await it.until({"delivered": 20})

    play(scenario)


def test_all_sources_stopped_touches_no_item(play: Any) -> None:
    async def scenario(it: Rig) -> None:
        for source in ("127.0.1.1", "127.0.1.2"):
            await it.queue.suspend(f"source:{source}")
        await put(it, "u%d@gob.test", count=5)
        await asyncio.sleep(0.5)
        assert (await it.until())["deferred"] == 0
        for source in ("127.0.1.1", "127.0.1.2"):
            await it.queue.resume(f"source:{source}")
        counts = await it.until({"delivered": 5})
        assert counts["deferred"] == 0

    play(scenario, pools=[{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.2"}]}])
