"""The scenarios that are shipped: each can be played, says what it is, and is described in both languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import uvloop
from typer.testing import CliRunner

from relayctl.main import app
from sandbox.behaviour import Catalogue
from sandbox.control import tell
from sandbox.scenario import ScenarioError, find, load, scenarios
from sandbox.server import Sandbox
from sandbox.world import World
from tests.conftest import REPOSITORY
from tests.test_sandbox_mx import dialogue, with_sandbox


@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
def test_shipped(path: Path) -> None:
    plan = load(path)
    World(plan)
    assert plan.title and "relayctl sandbox send" in plan.play
    assert all(entry.say for entry in plan.timeline)
    done = CliRunner().invoke(app, ["sandbox", "scenario", "check", path.stem])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(app, ["sandbox", "scenario", "show", path.stem])
    assert shown.exit_code == 0 and plan.title in shown.output
    for page in ("docs/sandbox.md", "docs/es/sandbox.md"):
        assert f"`{path.stem}`" in (REPOSITORY / page).read_text(encoding="utf-8"), page


def test_recipients_of_the_advice_exist() -> None:
    """Whoever follows `play` sends to somebody, and the names in front of a + are behaviours."""
    for path in scenarios():
        plan = load(path)
        catalogue, names = Catalogue(plan.behaviours), {domain.name for domain in plan.domains}
        for word in plan.play.replace(";", " ").split():
            local, at, domain = word.partition("@")
            if at and domain != "gob.test;":
                assert domain.rstrip(".,") in names, (path, word)
                assert "+" not in local or catalogue.for_local_part(local) is not None, (path, word)


def test_every_behaviour_and_provider_says_what_it_is() -> None:
    plan = load()
    catalogue = Catalogue(plan.behaviours)
    assert all(catalogue.get(name).what for name in catalogue.names)
    assert {"451", "421", "450", "452", "550", "552", "553", "554"} <= {
        step.reply[:3] for name in catalogue.names for step in catalogue.get(name).steps.values()
    }
    for provider in plan.providers:
        assert provider.replies, provider.name


@pytest.mark.parametrize(
    ("local", "seconds"), [("slow5+x", 5), ("SLOW0.5+x", 0.5), ("slow.5+x", None), ("slow5.+x", None), ("slow5", None)]
)
def test_seconds_behind_a_name(local: str, seconds: float | None) -> None:
    found = Catalogue(load().behaviours).for_local_part(local)
    assert (found and found.steps["end_of_data"].delay_seconds) == seconds


def test_names_and_paths(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("title = 'mine'\n[[timeline]]\ndomain = 'nowhere.test'\nset = 'down'\n")
    assert find(str(own)) == own and find("dns-outage").name == "dns-outage.toml"
    with pytest.raises(ScenarioError, match="there are: bad-day-at-gmail, dns-outage"):
        find("nothing")
    for wrong, why in (("nothing", "no scenario 'nothing'"), (str(own), "nowhere.test"), ("none.toml", "none.toml")):
        done = CliRunner().invoke(app, ["sandbox", "scenario", "check", wrong])
        assert done.exit_code == 1 and why in done.output


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[records]]\nname = 'a.test'\ntype = 'A'\nvalues = ['x']", "is no A record"),
        ("[[records]]\nname = 'a.test'\ntype = 'SOA'\nvalues = ['x']", "records.0.type"),
        ("[[records]]\nname = 'a.test'\nvalues = []", "records.0.values"),
        ("[behaviours]\nx.later = { shape = 'odd' }", "no shape 'odd'"),
        ("[behaviours]\nx.steps.rcpt = { reply = '451 x', share = 0 }", "share"),
        ("[behaviours]\nx = { tls = 'required', tls_refusal = 'no' }", "no SMTP reply"),
        ("[[domains]]\nname = 'gob.test'\nsources = { '127.0.1.1' = 'odd' }", "odd"),
        ("[[domains]]\nname = 'gob.test'\nreplies = { odd = '451 x' }", "replies"),
        ("[[domains]]\nname = 'gob.test'\nunknown_share = 1.5", "unknown_share"),
    ],
)
def test_impossible(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=named):
        load(path)


def test_changes_end_unless_another_came_between(tmp_path: Path) -> None:
    """`behave --for`: the end of the first change does not undo the second; a planned source is as planned again."""

    async def scenario(sandbox: Sandbox) -> None:
        import asyncio

        async def told(**command: Any) -> None:
            await asyncio.to_thread(tell, tmp_path / "c", **command)

        moods = sandbox.world.domains["gob.test"].moods
        assert moods == {"": "accept", "127.0.1.5": "busy"}
        await told(cmd="behaviour", domain="gob.test", set="full", for_seconds=0.2)
        await told(cmd="behaviour", domain="gob.test", set="unknown")
        await told(cmd="behaviour", domain="gob.test", set="spam", sources=["127.0.1.5"], for_seconds=0.05)
        await told(cmd="dns", mode="refused", domain="gob.test", for_seconds=0.05)
        assert moods == {"": "unknown", "127.0.1.5": "spam"} and sandbox.zones._mode("gob.test") == "refused"
        await sandbox.timeline_over()
        assert sandbox.world.domains["gob.test"].moods == {"": "unknown", "127.0.1.5": "busy"}
        assert sandbox.zones._mode("gob.test") == "normal"
        async with dialogue(sandbox, "mx1.gob.test", "127.0.1.5") as client:
            assert (await client.read()).startswith("421")

    plan = {"domains": [{"name": "gob.test", "sources": {"127.0.1.5": "busy"}}]}
    with_sandbox(tmp_path, scenario, extra=plan, control=tmp_path / "c")


def test_launch_day_as_a_provider_plays_it(tmp_path: Path) -> None:
    """The first day's figures of each provider, by source address; the others' words beyond."""

    async def one(sandbox: Sandbox, host: str, source: str, domain: str) -> str:
        async with dialogue(sandbox, host, source) as client:
            await client.greet()
            return str(await client.send(f"a@{domain}"))

    async def scenario(sandbox: Sandbox) -> None:
        for host, most, beyond in (
            ("mx1.gmail.test", 20, "421 4.7.28 Unusual rate of mail from your IP address [127.0.1.1]"),
            ("mx2.outlook.test", 10, "451 4.7.651 The mail server [127.0.1.1]"),
            ("mx3.yahoo.test", 15, "421 4.7.0 [TSS04] Messages from 127.0.1.1"),
            ("mx1.icloud.test", 10, "421 4.7.0 [HCM1]"),
        ):
            domain = host.partition(".")[2]
            said = [await one(sandbox, host, "127.0.1.1", domain) for _ in range(most + 1)]
            assert [reply[:4] for reply in said[:most]] == ["250 "] * most
            assert said[most].startswith(beyond)
            assert (await one(sandbox, host, "127.0.1.2", domain)).startswith("250")
            assert sandbox.ledger.accepted[domain, "127.0.1.1"] == most

    async def run() -> None:
        async with Sandbox(tmp_path, load(find("launch-day"))) as sandbox:
            await scenario(sandbox)

    uvloop.run(run())
