"""The relay as `make install` leaves it on a machine with systemd, two instances of relayd and delivery, all units on.

Next hops are the sandbox's, a service of the machine beside it. Mail is sent from within the machine's network.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.books import await_that
from benchmarks.harness import toml
from benchmarks.machine import InNetwork, Machine
from benchmarks.outcome import Outcome
from benchmarks.submit import Client
from sandbox.control import tell
from sandbox.ledger import Receipts

VPN, PORT = "10.20.0.5", 587
QUEUE = "tambo-queue.service"
RELAYD, DELIVERY = ("relayd@1.service", "relayd@2.service"), ("delivery@1.service", "delivery@2.service")
ROLES = (*RELAYD, *DELIVERY, "maintenance.service", "inbound.service")
SOCKETS = ("relayd@1.socket", "relayd@2.socket", "inbound.socket")
UNITS = (*ROLES, QUEUE)
METRICS = {"relayd@1.service": 9125, "relayd@2.service": 9135, "delivery@1.service": 9126, "delivery@2.service": 9136}
METRICS |= {"maintenance.service": 9127, "inbound.service": 9128}
PASSWORD = "the-queue's-own-word"
DOMAINS = ("gmail.test", "gob.test", *(f"d{n}.many.test" for n in range(12)))
SLOW = "lento.test"
SCENARIO = f"""\
[behaviours.lento.steps.end_of_data]
delay_seconds = 2.0
[[domains]]
name = "{SLOW}"
mx = ["mx.{SLOW}"]
behaviour = "lento"
"""
PROVIDERS = '[default]\nconnections = 100\nmessages_per_connection = 1000\ntls = "opportunistic"\n'
SANDBOX = """\
[Unit]
Before=tambo.target
[Service]
ExecStart=/opt/tambo/current/bin/tambo sandbox --config /etc/tambo/tambo.toml --scenario /etc/tambo/scenario.toml \\
  --control /run/sandbox --store
[Install]
WantedBy=multi-user.target
"""


def settings() -> dict[str, Any]:
    return {
        "queue": {"url": "unix:///run/tambo/queue.sock", "lease_seconds": 5, "disk_mark_mb": 1},
        "relayd": {
            "hostname": "relay.entidad.test",
            "max_connections_per_address": 1000,
            "listeners": [
                {"name": "vpn", "address": VPN, "port": PORT, "tls": "none"},
                {"name": "local", "address": "127.0.0.1", "port": 2587, "tls": "none"},
                {"name": "returned", "address": VPN, "port": 25, "tls": "none", "kind": "inbound"},
            ],
        },
        "inbound": {"mailboxes": ["abuse@entidad.test"]},
        "accounts": [{"name": "carga", "networks": ["10.20.0.0/24", "127.0.0.0/16"], "senders": ["entidad.test"]}],
        "signing": {"directory": "dkim"},
        "archive": {"directory": "/var/lib/tambo/archive"},
        "delivery": {
            "hostname": "relay.entidad.test",
            "sandbox": True,
            "port": 2525,
            "nameservers": ["127.0.0.1:5353"],
            "providers": "providers.toml",
            "pools": [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.8"}]}],
        },
        "sandbox": {"dns": "127.0.0.1:5353", "port": 2525, "directory": "/var/sandbox"},
    }


@dataclass
class Installed:
    """One relay on one machine, and what was promised to whoever sent through it."""

    machine: Machine
    ledger: Path  # the client's
    client: Client = field(init=False)
    tree: dict[str, Any] = field(default_factory=settings)

    def __post_init__(self) -> None:
        self.client = Client(PORT, self.ledger, {"carga": VPN}, DOMAINS, sessions=10, host=VPN)

    # ── as an administrator ────────────────────────────────────────────────────────────────────────────────────

    def make(self, *words: str, source: str = "/src") -> str:
        ran = self.machine.run("make", "-C", source, *words, "WHEELS=/wheels", seconds=900, check=False)
        if ran.returncode:
            raise RuntimeError(f"make {' '.join(words)}: {ran.stdout[-1500:]}\n{ran.stderr[-1500:]}")
        return ran.stdout

    def configure(self) -> None:
        """Everything that docs/install.md has an administrator write."""
        machine = self.machine
        self.save()
        machine.write("/etc/tambo/providers.toml", PROVIDERS)
        machine.write("/etc/tambo/scenario.toml", SCENARIO)
        machine.write("/etc/systemd/system/sandbox.service", SANDBOX)
        conf = machine.path("/etc/tambo/queue.conf")
        conf.write_text(conf.read_text() + f'requirepass "{PASSWORD}"\n')
        machine.write("/etc/credstore/tambo.queue.password", PASSWORD + "\n", 0o600)
        machine.run("chgrp", "tambo", "/etc/tambo/tambo.toml", "/etc/tambo/providers.toml")
        machine.run("relayctl", "config", "check")
        machine.run("relayctl", "systemd", "sockets", "--write")
        machine.systemctl("daemon-reload")
        machine.systemctl("enable", "tambo.target", "sandbox.service", *UNITS, *SOCKETS)

    def save(self) -> None:
        self.machine.write("/etc/tambo/tambo.toml", toml(self.tree), 0o640)
        self.machine.run("chgrp", "tambo", "/etc/tambo/tambo.toml")

    def give_address(self) -> None:
        """The tunnel is up."""
        self.machine.run("ip", "address", "add", f"{VPN}/32", "dev", "lo")

    def states(self, *units: str) -> dict[str, str]:
        chosen = units or (*UNITS, *SOCKETS)
        return dict(zip(chosen, self.machine.systemctl("is-active", *chosen, check=False).splitlines(), strict=True))

    def all_active(self, seconds: float = 60.0) -> bool:
        return await_that(lambda: set(self.states().values()) == {"active"}, seconds) >= 0

    def comes_back(self, unit: str, died: int, seconds: float) -> float:
        """Seconds until the unit is active with another process; -1 when it is not in time."""

        def is_back() -> bool:
            return self.machine.pid(unit) not in (0, died) and self.states(unit)[unit] == "active"

        return await_that(is_back, seconds)

    def metrics(self, unit: str) -> dict[str, float]:
        """name{labels} → value, from the process's status port."""
        code = (
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{METRICS[unit]}/metrics').read().decode())"
        )
        lines = self.machine.run("python3", "-c", code).stdout.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}

    def versions(self) -> dict[str, str]:
        """Unit → the version whose code its process runs."""
        found = {}
        for unit in ROLES:
            words = self.machine.path(f"/proc/{self.machine.pid(unit)}/cmdline").read_bytes().split(b"\0")
            found[unit] = re.sub(r"^/opt/tambo/([^/]+)/.*", r"\1", words[0].decode())
        return found

    # ── as an application ──────────────────────────────────────────────────────────────────────────────────────

    def load(self, messages: int) -> InNetwork:
        """From now on, until so many more were accepted."""
        return InNetwork(self.machine, lambda: uvloop.run(self.client.run(messages)))

    @contextlib.contextmanager
    def steady_load(self) -> Iterator[None]:
        """Mail comes in as long as this lasts, some pauses between."""
        ended = threading.Event()

        def submit() -> None:
            while not ended.wait(0.2):
                uvloop.run(self.client.run(50))

        work = self.inside(submit)
        try:
            yield
        finally:
            ended.set()
            work.result()

    def inside(self, work: Callable[[], Any]) -> InNetwork:
        """From now on, in the machine's network."""
        return InNetwork(self.machine, work)

    def queue_file_bytes(self) -> int:
        """Of all files that the queue's server keeps."""
        folder = self.machine.path("/var/lib/tambo/queue")
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def queued(self) -> int:
        ran = self.machine.run(
            *("redis-cli", "-s", "/run/tambo/queue.sock", "ZCARD", "{q0}:x"),
            environment={"REDISCLI_AUTH": PASSWORD},
            check=False,
        )
        return int(ran.stdout) if ran.stdout.strip().isdigit() else -1

    def drained(self, seconds: float = 120.0) -> bool:
        return await_that(lambda: self.queued() == 0, seconds) >= 0

    def receipts(self) -> Counter[tuple[str, str]]:
        """(Message-ID, recipient) → how often a next hop took it."""
        tell(self.machine.path("/run/sandbox"), cmd="flush")
        return Receipts(self.machine.path("/var/sandbox/ledger.jsonl")).deliveries()

    def books(self) -> tuple[int, int, int]:
        """Recipients promised; of those never received; received more than once."""
        receipts = self.receipts()
        promised = [(one.message_id, to) for one in self.client.accepted.values() for to in one.recipients]
        return len(promised), sum(not receipts[pair] for pair in promised), sum(receipts[pair] > 1 for pair in promised)

    def events(self, kind: str) -> int:
        """So many are in the stream."""
        said = self.machine.run(
            *("redis-cli", "-s", "/run/tambo/queue.sock", "--raw", "XRANGE", "events:{q0}", "-", "+"),
            environment={"REDISCLI_AUTH": PASSWORD},
        ).stdout
        return sum(orjson.loads(line)["kind"] == kind for line in said.splitlines() if line.startswith("{"))

    def stopped_in_order(self) -> list[str]:
        """The units by the time when they had stopped."""
        moments = {unit: int(self.machine.show(unit, "InactiveEnterTimestampMonotonic")) for unit in UNITS}
        return sorted(moments, key=lambda unit: moments[unit])


def books(world: Installed, outcome: Outcome, chapter: str, *, killed: bool) -> None:
    """Waits until the queue is empty; the check that ends a chapter."""
    empty = world.drained()
    promised, lost, twice = world.books()
    seen = f"{promised} promised, {lost} lost, {twice} twice" + ("" if empty else f", {world.queued()} still queued")
    outcome.check(f"{chapter}: every recipient with a 250 has arrived", empty and not lost and promised > 0, seen)
    if not killed:
        again = twice - int(outcome.figures.get("twice", 0))
        outcome.check(f"{chapter}: none twice", again == 0, again)
    outcome.figures["twice"] = twice
    outcome.figures["promised"] = promised


def seconds_of(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
