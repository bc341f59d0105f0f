"""The sandbox as a process of its own: ready file, control socket, scenario files, SIGTERM, kill -9."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.providers import Providers
from sandbox.control import tell
from sandbox.receipts import Receipts
from sandbox.scenario import ScenarioError, load
from sandbox.server import Sandbox
from sandbox.world import World
from tests.test_sandbox_mx import dialogue, with_sandbox

REPOSITORY = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def process(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``python -m sandbox`` on free ports; yields the process and what it says once it is ready."""
    command = [sys.executable, "-m", "sandbox", "--dns", "127.0.0.1:0", "--port", "0", "--directory", str(directory)]
    command += ["--control", str(directory / "control"), "--ready", str(directory / "ready.json"), *options]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            endpoints = orjson.loads(running.stdout.readline())
            assert endpoints == orjson.loads((directory / "ready.json").read_bytes())
            yield running, endpoints
        finally:
            running.kill()


def send(endpoints: dict[str, Any], host: str, recipient: str, message_id: str) -> None:
    with smtplib.SMTP(endpoints["hosts"][host], endpoints["port"], timeout=5) as client:
        client.sendmail("s@x.test", [recipient], f"Message-ID: {message_id}\n\nHi\n")


def test_steered_from_outside_and_stopped(tmp_path: Path) -> None:
    with process(tmp_path) as (running, endpoints):
        control = tmp_path / "control"
        assert endpoints["dns"].startswith("127.0.0.1:") and endpoints["providers"]["google"] == ".gmail.test"
        assert control.stat().st_mode & 0o777 == 0o600
        send(endpoints, "mx1.gmail.test", "a@gmail.test", "<1@x>")
        assert tell(control, cmd="wait", messages=1)["reached"]
        assert not tell(control, cmd="wait", messages=2, seconds=0.01)["reached"]
        tell(control, cmd="behaviour", domain="gmail.test", set="down")
        with pytest.raises(ConnectionRefusedError):
            send(endpoints, "mx1.gmail.test", "a@gmail.test", "<2@x>")
        tell(control, cmd="behaviour", domain="gmail.test", set="normal")
        tell(control, cmd="dns", mode="servfail")
        report = tell(control, cmd="report")
        assert report["messages"] == 1 and report["peaks"] == {"google": {"127.0.0.1": 1}}
        for wrong in ({"cmd": "nothing"}, {"cmd": "behaviour", "domain": "gmail.test", "set": "x"}, {"cmd": "dns"}):
            with pytest.raises(RuntimeError):
                tell(control, **wrong)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert not control.exists()
    kinds = [record["kind"] for record in Receipts(Path(endpoints["ledger"])).records()]
    assert kinds == ["start", "message", "connection", "change", "change", "change"]


def test_ledger_survives_kill(tmp_path: Path) -> None:
    with process(tmp_path) as (running, endpoints):
        for number in range(5):
            send(endpoints, "mx1.gob.test", "a@gob.test", f"<{number}@x>")
        os.kill(running.pid, signal.SIGKILL)
        running.wait(10)
    assert len(Receipts(Path(endpoints["ledger"])).message_ids()) == 5


def test_scenario_file(tmp_path: Path) -> None:
    """Extra domains, hosts shared with a provider, behaviours of one's own and of the built-in world."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        """
        [behaviours]
        slowly.steps.mail = { delay_seconds = 0.01, reply = "250 2.1.0 In time" }
        [[domains]]
        name = "padron.test"
        mx = ["5 mx1.padron.test", "mx1.gmail.test"]
        behaviour = "slowly"
        connections_per_source = 2
        [[domains]]
        name = "gob.test"
        behaviour = "unknown"
        """
    )
    with process(tmp_path, "--scenario", str(scenario)) as (_, endpoints):
        send(endpoints, "mx1.padron.test", "a@padron.test", "<1@x>")
        send(endpoints, "mx1.gmail.test", "a@padron.test", "<2@x>")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(endpoints, "mx2.gob.test", "a@gob.test", "<3@x>")
        report = tell(tmp_path / "control", cmd="report")
        assert report["peaks"] == {
            "padron.test": {"127.0.0.1": 1},
            "google": {"127.0.0.1": 1},
            "gob.test": {"127.0.0.1": 1},
        }


@pytest.mark.parametrize("lasting", [False, True])
def test_timeline(tmp_path: Path, lasting: bool) -> None:
    """All hosts of a domain down and the DNS out, for good or for a time; each change is in the ledger."""

    async def scenario(sandbox: Sandbox) -> None:
        await sandbox.timeline_over()
        with pytest.raises(ConnectionRefusedError) if lasting else contextlib.nullcontext():
            async with dialogue(sandbox, "mx1.gob.test") as client:
                await client.greet()
        assert sandbox.world.dns_modes.get("") == ("silent" if lasting else None)
        changes = [(r["what"], r["to"]) for r in sandbox.ledger.receipts().records("change")]
        there, back = [("dns", "silent"), ("gob.test", "down")], [("dns", "normal"), ("gob.test", "normal")]
        assert sorted(changes) == sorted(there if lasting else there + back)

    until = {} if lasting else {"for_seconds": 0.1}
    timeline = [{"domain": "gob.test", "set": "down", **until}, {"dns": "silent", **until}]
    with_sandbox(tmp_path, scenario, extra={"timeline": timeline})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[domains]]\nname = 'a.test'\nbehaviour = 'odd'", "odd"),
        ("[[domains]]\nname = 'a.test'\nconnection_limit = 3", "connection_limit"),
        ("[[domains]]\nname = 'a.test'\nmx = ['x mx.a.test']", "domains"),
        ("[[timeline]]\ndomain = 'nowhere.test'\nset = 'down'", "nowhere.test"),
        ("[behaviours]\nx.steps.rcpt.reply = 'no reply'", "no SMTP reply"),
        ("[[hosts]]\nname = 'mx1.gob.test'\naddress = '0.0.0.0'", "loopback"),
        ("domains = ", "scenario.toml"),
    ],
)
def test_impossible_scenarios(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=named):
        load(path)


@pytest.mark.parametrize("options", [("--address", "10.0.0.1"), ("--dns", "0.0.0.0:0"), ("--scenario", "/nowhere")])
def test_refusals_of_the_command_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "sandbox", "--port", "0", "--directory", str(tmp_path), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1 and done.stderr.startswith("sandbox: ")


def test_providers_agree_with_the_relays_rules() -> None:
    """config/providers.sandbox.toml groups the sandbox's hosts as the sandbox itself does, with no higher limits."""
    world = World(load())
    rules = (REPOSITORY / "config" / "providers.sandbox.toml").read_text()
    for name, suffix in world.providers().items():
        assert f"[providers.{name}]" in rules and f'mx_suffixes = ["{suffix}"]' in rules
    assert Providers.load(str(REPOSITORY / "config" / "providers.sandbox.toml"))


@pytest.mark.parametrize("options", [(), ("--store",)], ids=["", "store"])
def test_throughput(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The sandbox is not the bottleneck: under 0.2 ms of processor time a small message (a loaded machine allows), kept
    or not: making files, and looking at them, would cost 0.8 ms and 2 ms."""
    count = 3000
    with process(tmp_path, *options) as (running, endpoints):
        import socket

        host = (endpoints["hosts"]["mx1.many.test"], endpoints["port"])
        with socket.create_connection(host) as client, client.makefile("rb") as replies:
            replies.readline()
            envelope = b"MAIL FROM:<s@x.test>\r\nRCPT TO:<a@many.test>\r\nDATA\r\n"
            before = processor_time(running.pid)
            for number in range(count):
                client.sendall(envelope)
                assert [replies.readline()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
                client.sendall(b"Message-ID: <%d@x>\r\n\r\nHi\r\n.\r\n" % number)
                assert replies.readline().startswith(b"250")
            spent = processor_time(running.pid) - before
        assert tell(tmp_path / "control", cmd="report")["messages"] == count
    assert spent / count < 0.0002, f"{count / spent:.0f} messages per processor second"


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
