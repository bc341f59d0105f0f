"""Clients that nobody here wrote, against a relayd process and a real queue: swaks, msmtp, smtplib, smtp-source, Postfix."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import pytest

from benchmarks.harness import Relay, free_port, scratch
from benchmarks.postfix import Postfix
from config.settings import QueueSettings
from mailqueue.events import Event
from mailqueue.queue import Queue
from relayctl.account import hasher
from tests import queue_kit
from tests.conftest import Certificate

USER, PASSWORD = "app", "correct horse battery"
SENDER, RECIPIENT = "avisos@entidad.test", "ana@gob.test"


@dataclass(frozen=True, slots=True)
class World:
    """A running relayd; ports by the listener's tls mode. By password on all of them, without one from 127.0.7.0/24."""

    relay: Relay
    ports: dict[str, int]
    authority: Path

    def received(self) -> list[Event]:
        """Events about what was accepted, oldest first."""

        async def read() -> list[Event]:
            queue = await Queue.open(QueueSettings(url=self.relay.url), "test", patience=5)
            try:
                return [event for event in await queue_kit.events(queue) if event.kind == "received"]
            finally:
                await queue.close()

        return asyncio.run(read())


@pytest.fixture(scope="module")
def world(certificate: Certificate) -> Iterator[World]:
    ports = {mode: free_port() for mode in ("none", "starttls", "implicit")}
    files = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    listeners = [
        {"name": mode, "address": "127.0.0.1", "port": port, "tls": mode, **(files if mode != "none" else {})}
        for mode, port in ports.items()
    ]
    accounts = [
        {"name": USER, "password_hash": hasher().hash(PASSWORD)},
        {"name": "trusted", "networks": ["127.0.7.0/24", "127.0.0.1/32"]},
    ]
    with scratch("clients") as directory:
        relay = Relay(directory, roles=["relayd"], accounts=accounts)
        relay.configure({"relayd": {"listeners": listeners}})
        with relay:
            yield World(relay, ports, certificate.certificate)


def run(*words: object, typed: str = "") -> str:
    done = subprocess.run(
        [str(word) for word in words], input=typed, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("none", []),
        ("starttls", ["--tls"]),
        ("starttls", ["--tls", "--auth", "PLAIN"]),
        ("starttls", ["--tls", "--auth", "LOGIN"]),
        ("implicit", ["--tls-on-connect"]),
        ("implicit", ["--tls-on-connect", "--auth", "PLAIN"]),
        ("implicit", ["--tls-on-connect", "--auth", "LOGIN"]),
    ],
)
def test_swaks(world: World, tool: Callable[[str], Path], mode: str, words: list[str]) -> None:
    if "--auth" in words:
        words = [*words, "--auth-user", USER, "--auth-password", PASSWORD]
    verified = ["--tls-verify", "--tls-ca-path", world.authority] if mode != "none" else []
    before = len(world.received())
    told = run(
        *(tool("swaks"), "--server", "localhost" if verified else "127.0.0.1", "--port", world.ports[mode]),
        *("--from", SENDER, "--to", f"{RECIPIENT},b@gob.test", *words, *verified),
    )
    assert "250 2.0.0 queued as " in told
    (event,) = world.received()[before:]
    assert event.account == (USER if "--auth" in words else "trusted")
    assert event.recipients == (RECIPIENT, "b@gob.test")


@pytest.mark.parametrize(("mode", "starttls"), [("starttls", "on"), ("implicit", "off")])
@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_msmtp(
    world: World, tool: Callable[[str], Path], tmp_path: Path, mode: str, starttls: str, mechanism: str
) -> None:
    configuration = tmp_path / "msmtprc"
    configuration.write_text(
        f"""\
account default
host localhost
port {world.ports[mode]}
tls on
tls_starttls {starttls}
tls_trust_file {world.authority}
auth {mechanism}
user {USER}
password {PASSWORD}
from {SENDER}
dsn_notify failure
dsn_return headers
"""
    )
    configuration.chmod(0o600)
    before = len(world.received())
    message = f"From: {SENDER}\nTo: {RECIPIENT}\nSubject: canci\u00f3n\n\nHola.\n.\n..\n"
    run(tool("msmtp"), "--file", configuration, RECIPIENT, typed=message)
    (event,) = world.received()[before:]
    assert (event.account, event.recipients) == (USER, (RECIPIENT,))


@pytest.mark.parametrize("mode", ["none", "starttls", "implicit"])
def test_smtplib(world: World, mode: str) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, "canción"
    message["X-Tambo-Campaign"] = "clientes"
    message.set_content("Señores:\n" + "ñ" * 3000 + "\n")
    context = ssl.create_default_context(cafile=str(world.authority))
    before = len(world.received())
    port = world.ports[mode]
    client = (
        smtplib.SMTP_SSL("localhost", port, context=context) if mode == "implicit" else smtplib.SMTP("127.0.0.1", port)
    )
    with client as smtp:
        if mode == "starttls":
            smtp._host = "localhost"  # type: ignore[attr-defined]
            smtp.starttls(context=context)
        if mode != "none":
            smtp.login(USER, PASSWORD)
        for _ in range(3):
            assert smtp.send_message(message, rcpt_options=["NOTIFY=FAILURE"]) == {}
    found = world.received()[before:]
    assert [event.campaign for event in found] == ["clientes"] * 3


def test_smtp_source(world: World, tool: Callable[[str], Path]) -> None:
    before = len(world.received())
    run(
        *(tool("smtp-source"), "-s", "10", "-m", "200", "-l", "10240", "-N", "-d"),
        *("-f", SENDER, "-t", RECIPIENT, f"127.0.0.1:{world.ports['none']}"),
    )
    found = world.received()[before:]
    assert len(found) == 200
    assert len({event.recipients for event in found}) == 200


class Cutter:
    """Between a client and relayd: the first ``cuts`` connections lose every reply after the final dot, and end."""

    def __init__(self, port: int, cuts: int) -> None:
        self._target, self._cuts = port, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                cutting, self._cuts = self._cuts > 0, self._cuts - 1
                threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client, cutting), daemon=True).start()

    @staticmethod
    def _copy(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket, cutting: bool) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if cutting and b"queued as" in data:
                    self.cut += 1
                    break
                client.sendall(data)
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_postfix_in_front_and_a_reply_that_gets_lost(
    world: World, root: None, tool: Callable[[str], Path], tmp_path: Path
) -> None:
    """Postfix sends 50 recipients a transaction, all under one idempotency key made of the Message-ID. Three of its
    transactions are accepted and the 250 never reaches it, so it sends them again: each recipient is queued once."""
    tool("postconf")
    recipients = [f"u{number}@gob.test" for number in range(120)]
    checks = tmp_path / "checks"
    checks.write_text(r"/^Message-Id:\s*<(.*)>/ PREPEND X-Tambo-Idempotency-Key: $1" + "\n")
    tmp_path.chmod(0o755)
    cutter = Cutter(world.ports["none"], cuts=3)
    settings = {
        "smtp_header_checks": f"regexp:{checks}",
        "smtp_destination_recipient_limit": "50",
        "minimal_backoff_time": "1s",
        "maximal_backoff_time": "1s",
        "queue_run_delay": "1s",
        "smtp_destination_concurrency_limit": "1",
        "smtp_destination_concurrency_failed_cohort_limit": "10",
        "transport_retry_time": "1s",
    }
    before = len(world.received())
    try:
        with scratch("postfix") as directory, Postfix(directory, f"127.0.0.1:{cutter.port}", settings) as postfix:
            with smtplib.SMTP("127.0.0.1", postfix.submission) as smtp:
                smtp.sendmail(SENDER, recipients, f"From: {SENDER}\r\nMessage-ID: <uno@entidad.test>\r\n\r\nhola\r\n")
            deadline = time.monotonic() + 60
            while postfix.queued():
                assert time.monotonic() < deadline, (directory / "log" / "mail.log").read_text()
                time.sleep(0.2)
    finally:
        cutter.close()
    found = world.received()[before:]
    queued = Counter(
        recipient for event in found for index, recipient in enumerate(event.recipients) if index not in event.skipped
    )
    assert cutter.cut == 3
    assert sorted(len(event.recipients) for event in found) == [20, 50, 50]
    assert queued == Counter(recipients)
