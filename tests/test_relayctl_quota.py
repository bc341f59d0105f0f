"""``relayctl account credit …`` and ``relayctl quota reconcile`` as an operator runs them, on a real queue."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from config.accounts import AccountSettings
from mailqueue.calendar import moment
from mailqueue.reaper import Reaper
from mailqueue.statement import statement
from relayctl.main import app
from streams.appender import Appender
from tests.queue_kit import opened
from tests.quota_kit import LIMA, check, many, paid

FILE = """\
[queue]
url = "{url}"
[[delivery.pools]]
name = "default"
"""
FAMILY = {
    "ministerio": {},
    "salud": {"parent": "ministerio"},
    "agua": {"parent": "ministerio"},
    "otra": {},
    "mensual": {"quota": "monthly", "allowance": 100},
}
for number, (name, facts) in enumerate(FAMILY.items()):
    facts.setdefault("quota", "bag")
    FILE += f'[[accounts]]\nname = "{name}"\nnetworks = ["10.{number}.0.0/16"]\nsenders = ["*"]\n'
    FILE += "".join(f"{key} = {orjson.dumps(value).decode()}\n" for key, value in facts.items())
Relayctl = Callable[..., Any]


@pytest.fixture
def relayctl(shared_redis: Any, tmp_path: Path) -> Relayctl:
    path = tmp_path / "tambo.toml"
    path.write_text(FILE.format(url=shared_redis.url))

    def run(*words: str, code: int = 0) -> Any:
        ran = CliRunner().invoke(app, [*words, "--config", str(path)])
        assert ran.exit_code == code, (ran.stdout, ran.stderr, ran.exception)
        return ran

    return run


def send(url: str, name: str, count: int, **changes: Any) -> str:
    """The verdict's kind."""

    async def scenario() -> str:
        async with opened(url) as queue:
            who = AccountSettings(name=name, **FAMILY[name])
            return (await queue.put(paid(*many(count), account=name, **changes), account=who)).kind

    return asyncio.run(scenario())


def balanced(url: str, *names: str) -> None:
    async def scenario() -> None:
        async with opened(url) as queue:
            for name in names:
                await check(queue.ledger, queue, name)

    asyncio.run(scenario())


def test_credit_share_out_use_and_reconcile(shared_redis: Any, relayctl: Relayctl) -> None:
    said = relayctl("account", "credit", "ministerio", "1000", "--reason", "orden 7").stdout
    assert said == "ministerio: credit +1000, 1000 recipients left\n"
    assert send(shared_redis.url, "ministerio", 40) == "queued"
    said = relayctl("account", "transfer", "ministerio", "salud", "600", "--reason", "reparto").stdout
    assert said == "ministerio: 600 recipients to salud, 360 left\n"
    relayctl("account", "transfer", "salud", "agua", "100", "--reason", "préstamo")
    relayctl("account", "transfer", "salud", "ministerio", "50", "--reason", "devuelto")
    assert (
        "410 recipients left"
        in relayctl(*("account", "transfer", "ministerio", "agua", "411", "--reason", "x"), code=1).stderr
    )
    assert "not of one family" in relayctl("account", "transfer", "agua", "otra", "1", "--reason", "x", code=1).stderr
    assert "no account salut" in relayctl("account", "credit", "salut", "1", "--reason", "x", code=1).stderr
    assert send(shared_redis.url, "salud", 450) == "queued"
    assert send(shared_redis.url, "salud", 1) == "over_quota"
    relayctl("account", "debit", "agua", "30", "--reason", "corrección")
    figures = {row["account"]: row for row in orjson.loads(relayctl("quota", "reconcile", "--json").stdout)}
    assert figures.keys() == {"ministerio", "salud", "agua"}
    assert figures["salud"] == {
        "account": "salud",
        "credited": 450,
        "lapsed": 0,
        "balance": 0,
        "left": 0,
        "in_transit": 0,
        "used": 450,
        "events": 450,
        "difference": 0,
        "agrees": True,
    }
    assert sum(row["credited"] for row in figures.values()) == 970
    assert "salud" in relayctl("quota", "reconcile", "salud").stdout
    balanced(shared_redis.url, *figures)


def test_reconcile_says_when_something_differs(shared_redis: Any, relayctl: Relayctl) -> None:
    relayctl("account", "credit", "otra", "10", "--reason", "x")
    send(shared_redis.url, "otra", 4)
    shared_redis.command("HINCRBY", "{q0}:bag:otra", "used", "1")
    (row,) = orjson.loads(relayctl("quota", "reconcile", "otra", "--json", code=1).stdout)
    assert (row["used"], row["events"], row["agrees"]) == (5, 4, False)
    shared_redis.command("HINCRBY", "{q0}:bag:otra", "used", "-1")
    shared_redis.command("HINCRBY", "{quota}:a:otra", "balance", "-1")
    (row,) = orjson.loads(relayctl("quota", "reconcile", "otra", "--json", code=1).stdout)
    assert row["difference"] == 1
    shared_redis.command("HINCRBY", "{quota}:a:otra", "balance", "1")
    shared_redis.command("XTRIM", "events:{q0}", "MAXLEN", "0")
    (row,) = orjson.loads(relayctl("quota", "reconcile", "otra", "--json").stdout)
    assert (row["events"], row["difference"]) == (None, 0)


def test_what_left_the_stream_is_reckoned_from_the_archive(
    shared_redis: Any, relayctl: Relayctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relayctl("account", "credit", "otra", "100", "--reason", "x")
    send(shared_redis.url, "otra", 20, campaign="enero")
    send(shared_redis.url, "otra", 30, campaign="febrero")

    async def archived() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            rows = await shard.command("XRANGE", shard.events, "-", "+")
            appender = Appender(tmp_path)
            appender.open()
            try:
                appender.append(0, [(place.decode(), fields[1]) for place, fields in rows])
            finally:
                appender.close()
            await shard.command("XTRIM", shard.events, "MAXLEN", 0)

    asyncio.run(archived())
    send(shared_redis.url, "otra", 5, campaign="enero")
    again = ("account", "replenish", "otra", "--all", "--campaign", "enero")
    assert "not all kept" in relayctl(*again, "--incident", "OECE-1", code=1).stderr
    (row,) = orjson.loads(relayctl("quota", "reconcile", "otra", "--json").stdout)
    assert (row["used"], row["events"]) == (55, None)
    monkeypatch.setenv("TAMBO__ARCHIVE__DIRECTORY", str(tmp_path))
    (row,) = orjson.loads(relayctl("quota", "reconcile", "otra", "--json").stdout)
    assert (row["used"], row["events"], row["agrees"]) == (55, 55, True)
    assert "replenish +25" in relayctl(*again, "--incident", "OECE-1").stdout


def test_replenish_gives_back_once_what_an_incident_cost(shared_redis: Any, relayctl: Relayctl) -> None:
    relayctl("account", "credit", "otra", "100", "--reason", "x")
    send(shared_redis.url, "otra", 20, campaign="enero")
    send(shared_redis.url, "otra", 30, campaign="febrero")
    give = ("account", "replenish", "otra")
    assert "75 recipients left" in relayctl(*give, "25", "--incident", "OECE-1").stdout
    assert "was given back" in relayctl(*give, "25", "--incident", "OECE-1", code=1).stderr
    assert "replenish +20" in relayctl(*give, "--all", "--campaign", "enero", "--incident", "OECE-2").stdout
    assert "replenish +50, 145" in relayctl(*give, "--all", "--incident", "OECE-3").stdout
    relayctl(*give, "--all", "--to", "2020-01-01", "--incident", "OECE-4", code=1)
    relayctl(*give, "--incident", "OECE-5", code=1)
    entry = orjson.loads(relayctl("account", "statement", "otra", "--json").stdout)["entries"][1]
    assert (entry["incident"], entry["amount"], entry["reason"], entry["origin"]) == ("OECE-1", 25, "incident", "cli")
    balanced(shared_redis.url, "otra")


def test_a_statement_adds_up_from_any_day(shared_redis: Any, relayctl: Relayctl) -> None:
    relayctl("account", "credit", "otra", "100", "--reason", "x")
    today = time.time()
    for days, origin in ((3, "smtp"), (1, "api"), (1, "smtp"), (0, "smtp")):
        send(shared_redis.url, "otra", 5, received_at=int((today - days * 86_400) * 1000), origin=origin)
    day = [moment(today - days * 86_400, LIMA).day for days in range(4)]
    whole = orjson.loads(relayctl("account", "statement", "otra", "--json").stdout)
    assert (whole["opening"], whole["closing"], len(whole["use"])) == (0, 80, 4)
    assert whole["use"][1] == {"day": day[1], "origin": "api", "recipients": 5}
    part = orjson.loads(relayctl("account", "statement", "otra", "--json", "--from", day[1], "--to", day[1]).stdout)
    assert part["closing"] - part["opening"] == -10 and part["opening"] == -5  # entries are of today
    rows = list(csv.DictReader(io.StringIO(relayctl("account", "statement", "otra", "--csv").stdout)))
    assert [row["kind"] for row in rows] == ["opening", "credit", *["use"] * 4, "closing"]
    assert rows[-1]["left"] == "80"
    assert "credit" in relayctl("account", "statement", "otra").stdout
    relayctl("account", "statement", "otra", "--from", "ayer", code=2)

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.shards[0].command("HINCRBY", "{q0}:bag:otra", "u:2020-01-01\nsmtp", 7)
            await queue.shards[0].command("HINCRBY", "{q0}:bag:otra", "used", 7)
            await Reaper(queue.shards[0], lambda *_: b"").tidy(1000)
            found = await statement(queue.ledger, "otra", LIMA)
            assert (found.opening, found.used, found.closing) == (-7, 20, 73)

    asyncio.run(scenario())


def test_test_mode(shared_redis: Any, relayctl: Relayctl) -> None:
    relayctl("account", "add", "prueba", "--networks", "10.9.0.0/16", "--quota", "bag", "--senders", "*")
    relayctl("account", "credit", "prueba", "5", "--reason", "x")
    relayctl("account", "test", "on", "prueba")
    assert orjson.loads(relayctl("account", "show", "prueba", "--json").stdout)["test"] is True
    relayctl("account", "test", "off", "prueba")
    kinds = [e["kind"] for e in orjson.loads(relayctl("account", "statement", "prueba", "--json").stdout)["entries"]]
    assert kinds == ["credit", "test", "test"]
    assert "change it there" in relayctl("account", "test", "on", "otra", code=1).stderr


def test_a_monthly_account_may_be_credited_before_its_first_mail(shared_redis: Any, relayctl: Relayctl) -> None:
    assert "150 recipients left" in relayctl("account", "credit", "mensual", "50", "--reason", "x").stdout
    assert send(shared_redis.url, "mensual", 150) == "queued"
    assert send(shared_redis.url, "mensual", 1) == "over_quota"
