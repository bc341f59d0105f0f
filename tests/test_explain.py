"""``relayctl explain`` on real cases: a delivery with its sandbox, a queue, a relayd."""

from __future__ import annotations

import asyncio
import smtplib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop
from typer.testing import CliRunner

from config.load import Loaded
from config.settings import RouteSettings, Settings
from delivery.pool import Source
from delivery.routes import Routes
from ipreputation.limits import Limits, limits_for
from ipreputation.store import LimitStore
from mailqueue import scripts
from mailqueue.message import State
from mailqueue.processes import Process
from mailqueue.queue import Queue
from mailqueue.selection import Selection
from mailqueue.worker import Settlement
from relayctl.audit import actor
from relayctl.explain import answer, lines
from relayctl.main import app
from tests.delivery_kit import Rig, player, providers, rig
from tests.queue_kit import claim_all, eventually, message, now_ms, opened, working
from tests.test_relayd_main import FILE, relayd

RULES = """
extends = "packaged"
[providers.google]
mx_suffixes = [".gmail.test"]
domains = ["gmail.test"]
tls = "opportunistic"
message_rate = "2/h"
connections = 1
[providers.google.samples]
mx = ["mx1.gmail.test"]
not_mx = ["mx1.gob.test"]
recipients = ["someone@gmail.test"]
not_recipients = ["someone@gob.test"]
"""
SOURCES = [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.2"}]}]
FORMAL = RouteSettings.model_validate(
    {"name": "formal", "host": "127.0.0.9", "port": 2525, "tls": "none", "recipient_domains": ["gob.test"]}
)
ONE_SOURCE = [{"name": "default", "sources": [{"address": "127.0.1.1"}]}]


async def explain(queue: Queue, settings: Settings, wanted: Selection, rules: str | None = None) -> list[Any]:
    """As JSON, with ``codes`` and the lines of a terminal beside."""
    found = await answer(queue, Loaded(settings, {}, providers(rules)), wanted)
    rows = found.plain()
    for row, told in zip(rows, found.open, strict=False):
        row["lines"] = "\n".join(lines(*told))
    return [{**row, "codes": [reason["code"] for reason in row["why"]]} for row in rows]


@pytest.fixture
def play(shared_redis: Any, tmp_path: Path) -> Callable[..., None]:
    return player(shared_redis.url, tmp_path, pools=SOURCES)


async def put(it: Rig, *recipients: str, **changes: Any) -> Selection:
    one = message(*recipients, **changes)
    assert (await it.queue.put(one)).kind == "queued"
    return Selection(ids=(one.envelope.id,))


# ── by a delivery that works ───────────────────────────────────────────────────────────────────────────────────────


def test_greylisted_delivered_refused_and_no_dns(play: Any) -> None:
    async def story(it: Rig) -> None:
        grey = await put(it, "a@greylist.test", campaign="enero")
        both = await put(it, "b@gob.test", "c@unknown.test")
        await it.until({"deferred": 1, "delivered": 1, "bounced": 1})
        (row,) = await explain(it.queue, it.settings, grey)
        assert (row["codes"][0], row["state"], row["attempts"]) == ("greylisted", "deferred", 1)
        assert "451 4.7.1" in row["why"][0]["text"] and "greylisted" in row["why"][0]["text"]
        assert row["next_at"] > now_ms() - 1000 and row["waits_for"] == "its time of retry"
        (reply,) = row["replies"]
        assert reply["text"].startswith("smtp; 451 4.7.1") and reply["source"].startswith("127.0.1.")
        assert "the one with the fewest sessions there" in row["source"] and reply["source"] in row["source"]
        assert "why     greylisted" in row["lines"] and "campaign enero" in row["lines"]

        delivered, refused = await explain(it.queue, it.settings, both)
        assert (delivered["codes"], refused["codes"]) == (["delivered"], ["bounced"])
        assert "mx1.gob.test" in delivered["why"][0]["text"] and "550 5.1.1" in refused["why"][0]["text"]

        it.engine._absences._steps = (60.0,)  # not over before it is looked at
        it.sandbox.pause_dns("servfail")
        lost = await put(it, "d@yahoo.test")
        await it.until({"suspended": 1, "deferred": 2})
        (row,) = await explain(it.queue, it.settings, lost)
        assert row["codes"][:2] == ["suspended", "dns"] and row["replies"], row
        assert "destination yahoo.test is suspended by the relay" in row["why"][0]["text"]
        assert "SERVFAIL" in row["why"][0]["text"] and "4.4.3" in row["why"][1]["text"]
        assert row["waits_for"] in ("the end of destination:yahoo.test", "its time of retry") and row["next_at"]
        it.sandbox.resume_dns()

    play(story, retry={"steps_seconds": [600]})


def test_what_waits_for_a_pace(play: Any) -> None:
    async def story(it: Rig) -> None:
        for n in range(4):
            sent = await put(it, f"{n}@gmail.test")
        await it.until({"delivered": 1})

        async def settled() -> bool:
            return (await explain(it.queue, it.settings, sent, RULES))[0]["codes"][:1] == ["over-limit"]

        await eventually(settled)
        (row,) = await explain(it.queue, it.settings, sent, RULES)
        limit = row["limit"]
        assert (limit["name"], limit["kind"], limit["used"], limit["most"]) == (
            "google/127.0.1.1#messages",
            "messages",
            1,
            1,
        )
        assert 1000 < limit["wait"] <= 1801, "one more in half an hour"
        assert "2/h messages (google/127.0.1.1#messages): one more fits in" in row["why"][0]["text"]
        assert row["waits_for"] == "room under google/127.0.1.1#messages"
        assert "over a limit: its only usable source is at what google takes" in row["why"][0]["text"]
        ahead = (row["next_at"] - now_ms()) / 1000 - limit["wait"]
        assert min(abs(ahead - before * 1800.05) for before in (0, 1, 2)) < 5, "those before it have their turn first"
        assert {one["kind"] for one in row["limits"]} == {"connections", "opening", "messages"}
        (site,) = [site for site in it.engine._sites.values() if site.name == "google"]
        site.lines.rest(Source("127.0.1.1", "x.test"), "554 5.7.1 blocked")
        assert it.engine.live()["rests"] == {"google": {"127.0.1.1": 600}}

    play(story, rules=RULES, pools=ONE_SOURCE)


def test_what_waits_for_a_connection(shared_redis: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(shared_redis.url, tmp_path, pools=ONE_SOURCE, rules=RULES) as it:
            await it.queue.suspend("account:rrhh", 0, "wait")
            sent = await put(it, "a@gmail.test")
            redis = scripts.connect(shared_redis.url, timeout=None)
            try:
                async with LimitStore(redis, "another", 30) as store:
                    rule = providers(RULES).named("google")
                    limits = limits_for(rule, "google", "127.0.1.1")
                    granted = await store.connect([("127.0.1.1", Limits(limits.connections))], 1)
                    assert len(granted.leases) == 1
                    (row,) = await explain(it.queue, it.settings, sent, RULES)
                    assert row["codes"] == ["suspended", "over-limit"], row["codes"]
                    assert "1 of 1 connections open (google/127.0.1.1)" in row["why"][1]["text"]
                    assert "`relayctl queue resume account:rrhh --reason …`" in row["waits_for"]
                (row,) = await explain(it.queue, it.settings, sent, RULES)
                assert row["codes"] == ["suspended"]
            finally:
                await redis.aclose()

    uvloop.run(scenario())


def test_a_smarthost_route(play: Any) -> None:
    """Its host is not there: the relay suspends the route, and the words say whose doing it is."""
    route = RouteSettings.model_validate(
        {"name": "formal", "host": "nowhere.test", "port": 2525, "tls": "none", "recipient_domains": ["gob.test"]}
    )

    async def story(it: Rig) -> None:
        it.engine._absences._steps = (60.0,)  # not over before it is looked at
        sent = await put(it, "a@gob.test")
        await it.until({"suspended": 1})
        settings = it.settings.model_copy(update={"routes": (route,)})
        (row,) = await explain(it.queue, settings, sent)
        assert row["codes"][0] == "suspended" and "dns" in row["codes"]
        assert "route formal is suspended by the relay" in row["why"][0]["text"]
        assert row["source"].startswith("by smarthost formal, because of its recipient domain; pool default")
        await it.queue.suspend("route:formal", 0, "their maintenance")
        (row,) = await explain(it.queue, settings, sent)
        assert "route formal is suspended by an operator, until resumed: their maintenance" in row["why"][0]["text"]
        assert row["next_at"] == 0 and row["waits_for"] == "resume: `relayctl queue resume route:formal --reason …`"

    play(story, routes=Routes((route,)))


# ── by a queue without delivery ────────────────────────────────────────────────────────────────────────────────────


def settings_of(url: str) -> Settings:
    tree = {"queue": {"url": url}, "delivery": {"sandbox": True, "nameservers": ["127.0.0.1:9"], "pools": SOURCES}}
    return Settings.model_validate(tree)


@pytest.fixture
def relayctl(shared_redis: Any, tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{shared_redis.url}"\n[delivery]\nnameservers = ["127.0.0.1:9"]\n')
    return lambda *words: CliRunner().invoke(app, [*words, "--config", str(path)])


def test_nobody_works(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(sent := message("a@[192.0.2.1]"))
            (row,) = await explain(queue, settings_of(shared_redis.url), Selection(ids=(sent.envelope.id,)))
            assert row["codes"][0] == "no-worker" and row["waits_for"] == "a delivery process"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "key", ["account:rrhh", "campaign:rrhh/enero", "provider:default", "destination:[192.0.2.1]", "flow:1.1"]
)
def test_each_kind_of_suspension(shared_redis: Any, key: str) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue):
            await queue.put(sent := message("a@[192.0.2.1]", campaign="enero"))
            wanted, settings = Selection(ids=(sent.envelope.id,)), settings_of(shared_redis.url)
            await queue.suspend(key, 3600, "called us")
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"] == ["suspended"]
            kind, _, name = key.partition(":")
            assert f"{kind} {name} is suspended by an operator, until" in row["why"][0]["text"]
            assert "called us" in row["why"][0]["text"] and f"resume {key}" in row["why"][0]["text"]
            assert abs(row["next_at"] - now_ms() - 3_600_000) < 60_000 and row["waits_for"] == f"the end of {key}"
            await queue.resume(key)
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"] == ["due"]
            for address in ("127.0.1.1", "127.0.1.2"):
                await queue.suspend(f"source:{address}", 0, "blocked")
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"][0] == "no-source" and "source:127.0.1.1 until resumed: blocked" in row["why"][0]["text"]

    asyncio.run(scenario())


def test_sources_that_rest(shared_redis: Any) -> None:
    """What delivery processes say of themselves: only where none of them would try is it a reason."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue):
            settings = settings_of(shared_redis.url).model_copy(update={"routes": (FORMAL,)})
            await queue.put(sent := message("a@gob.test"))
            wanted = Selection(ids=(sent.envelope.id,))
            await say(queue, "a", {"rests": {"route:formal": {"127.0.1.1": 300, "127.0.1.2": 500}}})
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"][0] == "no-source" and row["waits_for"] == "a source to be tried again"
            assert "rest: 127.0.1.1, 127.0.1.2; the first is tried again in 5 min" in row["why"][0]["text"]
            assert abs(row["next_at"] - now_ms() - 300_000) < 5000
            await say(queue, "b", {"rests": {"route:formal": {"127.0.1.1": 200}}})
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"] == ["due"] and "resting: 127.0.1.1 (3 min 20 s)" in row["source"]

    asyncio.run(scenario())


def test_a_host_that_does_not_greet(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue):
            settings = settings_of(shared_redis.url).model_copy(update={"routes": (FORMAL,)})
            await queue.put(sent := message("a@gob.test"))
            wanted = Selection(ids=(sent.envelope.id,))
            waits = {"domains": ["gob.test"], "peer": "127.0.0.9[127.0.0.9]", "source": "127.0.1.1"}
            waits |= {"phase": "greeting", "seconds": 70}
            await say(queue, "a", {"opening": [{"site": "elsewhere.test", **waits}]})
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"] == ["due"]
            await say(queue, "b", {"opening": [{"site": "route:formal", **waits, "seconds": n} for n in (4, 70)]})
            (row,) = await explain(queue, settings, wanted)
            assert row["codes"] == ["opening"] and abs(row["next_at"] - now_ms()) < 5000
            text = "delivery waits for 127.0.0.9[127.0.0.9] to greet, 70 s by now, from 127.0.1.1; 2 sessions are"
            assert text in row["why"][0]["text"] and row["waits_for"] == "a session"
            await say(queue, "b", {"opening": [{"site": "route:formal", **waits, "again": 40}]})
            (row,) = await explain(queue, settings, wanted)
            assert row["waits_for"] == "a session: one more is tried then"
            assert abs(row["next_at"] - now_ms() - 40_000) < 5000

    asyncio.run(scenario())


async def say(queue: Queue, name: str, live: dict[str, Any]) -> None:
    """As a delivery process says it of itself."""
    shard, process = queue.shards[0], Process("delivery", name, 7, "", 0.0, "1", 1, live=live)
    said = {**asdict(process), "at": now_ms() / 1000}
    await shard.command("HSET", shard.prefix + "processes", process.name, orjson.dumps(said))


def test_held_and_leased(shared_redis: Any, relayctl: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            before = now_ms()
            await queue.put(sent := message("a@[192.0.2.1]", "b@[192.0.2.1]"))
            one, two = await claim_all(worker, recipients=10)
            await worker.settle(Settlement(two, "again", None, now_ms() + 60_000, State(1, 0, "450 4.2.0 later")))
            held = await asyncio.to_thread(relayctl, "queue", "hold", sent.envelope.id, "--reason", "wrong letter")
            assert held.exit_code == 0
            wanted, settings = Selection(ids=(sent.envelope.id,)), settings_of(shared_redis.url)
            leased, held = await explain(queue, settings, wanted)
            assert leased["codes"] == ["leased"] and held["codes"] == ["held"]
            assert (
                f"{worker._name} has it since " in leased["why"][0]["text"] and before <= leased["next_at"] <= now_ms()
            )
            assert f"by {actor()}: wrong letter" in held["why"][0]["text"] and "queue release" in held["waits_for"]
            assert one.recipient == leased["recipient"]

    asyncio.run(scenario())


def test_the_verb(shared_redis: Any, relayctl: Any) -> None:
    async def fill() -> str:
        async with opened(shared_redis.url) as queue:
            await queue.put(sent := message("a@[192.0.2.1]", "b@[192.0.2.1]"))
            return sent.envelope.id

    id = asyncio.run(fill())
    for words in (("explain", id), ("queue", "explain", id)):
        ran = relayctl(*words)
        assert ran.exit_code == 0 and "a@[192.0.2.1] – queued, " in ran.stdout and f" old  ({id}/0)" in ran.stdout, (
            ran.output
        )
        assert "  why     no delivery process has a lease on this queue" in ran.stdout
        assert "  next    not known, waits for a delivery process" in ran.stdout
    rows = orjson.loads(relayctl("explain", "--recipient", "B@[192.0.2.1]", "--json").stdout)["recipients"]
    assert [(row["recipient"], row["why"][0]["code"]) for row in rows] == [("b@[192.0.2.1]", "no-worker")]
    assert relayctl("queue", "remove", id, "--reason", "sent twice").exit_code == 0
    gone = relayctl("explain", id)
    assert gone.exit_code == 0 and f"by {actor()}: sent twice" in gone.stdout
    assert relayctl("explain", "06gvnihfsth09neceq0o").exit_code == 1
    for wrong in ((), ("not-an-id",), ("--recipient", "x.test")):
        assert relayctl("explain", *wrong).exit_code == 2


def test_what_quota_and_rate_refused_at_the_door(redis_server: Any, tmp_path: Path) -> None:
    """Nothing waits in the queue for a quota: the client was refused, and that is what there is to say."""
    path = tmp_path / "tambo.toml"
    text = FILE.format(url=redis_server.url, size=100_000)
    path.write_text(text.replace('["127.0.0.0/16"]', '["127.0.0.0/16"]\nquota = "bag"\n'))
    with relayd(path) as (_, told):
        port = told("listening")["port"]
        with smtplib.SMTP("127.0.0.1", port) as smtp, pytest.raises(smtplib.SMTPDataError, match="quota exhausted"):
            smtp.sendmail("a@b.example", ["c@d.example"], "From: a@b.example\r\n\r\nhi\r\n")
        refused = told("rejected")
    for words in (["--recipient", "c@d.example"], [refused["id"]]):
        ran = CliRunner().invoke(app, ["explain", *words, "--config", str(path)])
        assert ran.exit_code == 0 and "c@d.example – rejected" in ran.stdout, ran.output
        assert (
            "refused at submission" in ran.stdout and "never was in the queue: 550 5.7.1 quota exhausted" in ran.stdout
        )
        assert "`relayctl account statement app`" in ran.stdout
