"""``relayctl sandbox`` as a newcomer uses it: beside an ``up`` that plays a scenario, in its directory, without options."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from relayctl.main import app
from tests.test_up import RELAYCTL, environment, running

pytestmark = pytest.mark.timeout(120)


class House:
    """Commands in the directory above ``var``."""

    def run(self, *words: str, code: int = 0) -> str:
        """What it says; standard error where it fails."""
        done = CliRunner().invoke(app, words)
        assert done.exit_code == code, (words, done.output, done.exception)
        return done.stdout or done.stderr

    def json(self, *words: str) -> Any:
        return orjson.loads(self.run(*words, "--json"))

    def events(self) -> list[dict[str, Any]]:
        lines = self.run("events", "tail", "--from", "0", "--end", "--json").splitlines()
        return [orjson.loads(line) for line in lines]

    def until(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.run("sandbox", "report")
            time.sleep(0.2)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAMBO_CONFIG", str(tmp_path / "var" / "tambo.toml"))
    return House()


def test_nobody_there(tmp_path: Path, house: House) -> None:
    """Every verb that needs a sandbox says that none runs, and how to start one; a stale directory too."""
    stale = tmp_path / "var" / "sandbox" / "endpoints.json"
    for _ in range(2):
        for words in (
            ("report",),
            ("behave", "gmail.test", "busy"),
            ("mail", "list"),
            ("bounce", "1"),
            ("dns", "show", "x"),
        ):
            said = house.run("sandbox", *words, code=1)
            assert said.startswith(f"no sandbox runs in {tmp_path}/var: start `relayctl up`")
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(orjson.dumps({"control": str(tmp_path / "gone")}))
    assert "start `relayctl up`" in house.run("sandbox", "send", "a@gmail.test", code=1)
    assert "5m" in house.run("sandbox", "behave", "a.test", "busy", "--for", "often", code=2)
    assert "no scenario 'nothing'" in house.run("up", "--scenario", "nothing", code=1)


def test_late_bounces_end_to_end(tmp_path: Path, house: House) -> None:
    """A shipped scenario: what was taken comes back, in three shapes, to the return path of its recipient."""
    with running(tmp_path / "var", "--scenario", "late-bounces") as up:
        sent = ["a@gob.test", "b@uni.edu.pe.test", "c@bodega.com.pe.test", "unknown+d@gmail.test", "e@many.test"]
        assert house.run("sandbox", "send", *sent).startswith("5 taken, the last one: 250 2.0.0 queued as ")
        said = house.run("sandbox", "send", "f@outlook.test", "x" * 65 + "@gob.test", "g@gob.test", code=1)
        assert said.startswith("the relay did not take it: 5") and said.endswith("(1 taken before)\n")
        house.until(lambda: sum(event["kind"] == "returned" for event in house.events()) == 3)
        check_what_came_back(house)
        check_mail(house)
        check_steering(house)
        up.signal(signal.SIGINT)
        code, said = up.end()
        assert code == 0 and "killed" not in said


def check_what_came_back(house: House) -> None:
    events = house.events()
    ids = {event["recipient"]: event["id"] for event in events if event["kind"] == "delivered"}
    returned = {event["id"] for event in events if event["kind"] == "returned"}
    assert returned == {ids[to] for to in ("a@gob.test", "b@uni.edu.pe.test", "c@bodega.com.pe.test")}
    assert [event["recipient"] for event in events if event["kind"] == "bounced"] == ["unknown+d@gmail.test"]
    report = house.json("sandbox", "report")
    assert {shape: replies["250"] for shape, replies in report["returned"].items()} == {
        "dsn": 1,
        "plain": 1,
        "qmail": 1,
    }
    assert report["replies"]["gmail.test"] == {"550 5.1.1 The email account that you tried to reach does not exist": 1}
    assert "late-qmail5" in house.run("sandbox", "report")


def check_mail(house: House) -> None:
    (mail,) = house.json("sandbox", "mail", "list", "--domain", "many.test")
    assert (mail["recipients"], mail["spf"], mail["dkim"], mail["dmarc"]) == (["e@many.test"], "pass", "pass", "pass")
    assert mail["reverse_path"].startswith("b-") and mail["reverse_path"].endswith("@bounces.gob.test")
    assert house.json("sandbox", "mail", "count", "--recipient", "E@Many") == {"count": 1}
    assert house.run("sandbox", "mail", "count", "--subject", "no such thing").strip() == "0"
    shown = house.run("sandbox", "mail", "show", mail["id"])
    assert shown == Path(mail["file"]).read_text()  # the runner, too, makes LF of CRLF
    assert "\n\tdkim=pass header.d=gob.test" in shown and house.json("sandbox", "mail", "show", mail["id"]) == mail
    assert mail["id"] in house.run("sandbox", "mail", "list", "--since", "5m")

    said = house.json("sandbox", "bounce", mail["id"], "--shape", "exim")
    assert said["to"] == mail["reverse_path"] and said["reply"].startswith("250 2.0.0 taken as ")
    assert "to <abuse@gob.test>: 250" in house.run("sandbox", "complain", mail["id"])
    kinds = [(event["kind"], event["recipient"]) for event in house.events()[-2:]]
    assert kinds == [("returned", mail["reverse_path"]), ("unverified", "abuse@gob.test")]
    (notice,) = [each for each in house.json("sandbox", "mail", "list") if not each["reverse_path"]]
    assert (notice["spf"], notice["dmarc"]) == ("pass", "pass")
    assert "reverse-path is null" in house.run("sandbox", "bounce", notice["id"], code=1)


def check_steering(house: House) -> None:
    assert "for 127.0.1.3, 50%, for 5m" in house.run(
        "sandbox", "behave", "GMAIL.test", "storm", "--source", "127.0.1.3", "--share", "0.5", "--for", "5m"
    )
    assert "storm 50% (127.0.1.3)" in house.run("sandbox", "report")
    assert "there are: accept" in house.run("sandbox", "behave", "gmail.test", "odd", code=1)
    assert "no domain" in house.run("sandbox", "behave", "odd.test", "busy", code=1)
    assert "451 at first" in house.run("sandbox", "behaviours")
    assert set(house.json("sandbox", "behaviours")) == {"behaviours", "shapes"}
    house.run("sandbox", "dns", "set", "servfail", "--domain", "yahoo.test")
    assert "SERVFAIL" in house.run("sandbox", "dns", "show", "yahoo.test", code=1)
    house.run("sandbox", "dns", "set", "normal", "--domain", "yahoo.test")
    assert house.run("sandbox", "dns", "show", "yahoo.test").splitlines()[0] == "1 mx1.yahoo.test."
    assert "already runs" in house.run("sandbox", "run", code=1)


def test_alone(tmp_path: Path, house: House) -> None:
    """`sandbox run` without a relay: found the same way, steered the same way, gone after SIGTERM."""
    command = [*RELAYCTL, "sandbox", "run", "--scenario", "dns-outage"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment(tmp_path / "home")) as alone:
        try:
            assert alone.stdout is not None
            said = orjson.loads(alone.stdout.readline())
            assert said["control"] == str(tmp_path / "var" / "sandbox" / "control")
            house.run("sandbox", "behave", "gmail.test", "busy")
            assert house.json("sandbox", "report")["behaviours"]["gmail.test"] == {"": "busy"}
            alone.send_signal(signal.SIGTERM)
            assert alone.wait(20) == 0
        finally:
            alone.kill()
    assert "no sandbox runs" in house.run("sandbox", "report", code=1)
