"""The whole way once: a client → relayd → queue → delivery → Postfix as the agency's formal mail server → its next hop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from config.settings import RouteSettings
from signing import keys, record
from signing.proof import verify
from tests.conftest import REPOSITORY
from tests.listening import RecordingQueue, listening, run, settings

TREE = """\
[queue]
url = "{url}"
[signing]
directory = "keys"
[relayd]
hostname = "relay.agency.test"
[[relayd.listeners]]
name = "a"
address = "127.0.0.1"
port = {submission}
tls = "none"
[[accounts]]
name = "staff"
networks = ["127.0.0.0/16"]
[delivery]
hostname = "relay.agency.test"
sandbox = true
nameservers = ["127.0.0.1:1"]
[delivery.retry]
steps_seconds = [1]
[[routes]]
name = "formal"
host = "{host}"
port = {port}
accounts = ["staff"]
ca_file = "{ca}"
{login}
[metrics]
relayd = ""
delivery = ""
"""


class Kept:
    """The next hop of Postfix."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[str], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append((envelope.rcpt_tos, envelope.original_content))
        return "250 kept"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


@contextmanager
def role(name: str, path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process and its log."""
    log = path.parent / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", name, "--config", str(path)],
            cwd=REPOSITORY,
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait()


def lines(log: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_bytes().splitlines() if line.startswith(b"{")]
    return [line for line in found if line["event"] == event]


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("root")
def test_through_a_real_mail_server(
    redis_server: Any, tmp_path: Path, certificate: Any, tool: Callable[[str], Path]
) -> None:
    """Signed by us, it verifies at the far end; then the server no longer takes us, and nothing is lost or bounced."""
    if not str(tool("postconf")).endswith(".tools/bin/postconf"):
        pytest.skip("the private instance runs from the unpacked tools only")
    instance, directory = REPOSITORY / "tools" / "postfix-instance", Path(f"/tmp/tambo-formal-{os.getpid()}")
    next_hop, formal, submission = free_port(), free_port(), free_port()
    made = keys.generate(tmp_path / "keys", "agency.test", "rsa-2048", now=time.time())
    keys.rotate(tmp_path / "keys", "agency.test", now=time.time(), overlap=0.0)
    facts = {"url": redis_server.url, "submission": submission, "host": "127.0.0.1", "port": formal, "login": ""}
    path = tmp_path / "tambo.toml"
    path.write_text(TREE.format(**facts, ca=certificate.certificate))
    pem = tmp_path / "formal.pem"
    pem.write_bytes(certificate.key.read_bytes() + certificate.certificate.read_bytes())
    kept = Kept()
    sink = Controller(kept, hostname="127.0.0.1", port=next_hop)
    with ExitStack() as stack:
        sink.start()
        stack.callback(sink.stop)
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(subprocess.run, [instance, "stop", directory], check=False, timeout=30)
        subprocess.run(
            [
                instance,
                "start",
                directory,
                str(formal),
                str(next_hop),
                "smtpd_tls_security_level=encrypt",
                f"smtpd_tls_chain_files={pem}",
            ],
            check=True,
            timeout=30,
        )
        _, said = stack.enter_context(role("relayd", path))
        wait_for(lambda: bool(lines(said, "listening")))
        process, log = stack.enter_context(role("delivery", path))

        def submit(subject: str) -> None:
            content = f"From: Jefa <jefa@agency.test>\r\nSubject: {subject}\r\n\r\n.dot\r\nañadido \r\n\r\n"
            with smtplib.SMTP("127.0.0.1", submission) as smtp:
                assert smtp.sendmail("jefa@agency.test", ["a@x.test", "b@y.test"], content.encode()) == {}

        submit("first")
        wait_for(lambda: len(kept.messages) == 2)
        assert sorted(to for recipients, _ in kept.messages for to in recipients) == ["a@x.test", "b@y.test"]
        for _, content in kept.messages:
            assert verify(content, {made.key.name: record.text(made.key)}.get) == ""
            assert b"\r\n.dot\r\na\xc3\xb1adido \r\n\r\n" in content
        delivered = lines(log, "delivered")
        assert {(one["provider"], one["tls"][:4]) for one in delivered} == {("route:formal", "TLSv")}

        (tmp_path / "password").write_text("clave\n")
        (tmp_path / "password").chmod(0o600)
        facts["login"] = 'user = "relay"\npassword_file = "password"'
        path.write_text(TREE.format(**facts, ca=certificate.certificate))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(lines(log, "configuration reloaded")))
        submit("second")
        wait_for(lambda: bool(lines(log, "route suspended")))
        assert lines(log, "route suspended")[0]["why"] == "the smarthost offers none of AUTH PLAIN, LOGIN, CRAM-MD5"
        assert lines(log, "bounced") == []
        assert len(kept.messages) == 2

        facts["login"] = ""
        path.write_text(TREE.format(**facts, ca=certificate.certificate))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(kept.messages) == 3)
        wait_for(lambda: len(lines(log, "delivered")) == 3)
        (deferred,) = lines(log, "deferred")  # it said why, and waits for its own time
        assert (deferred["status"], deferred["phase"], deferred["provider"]) == ("4.7.8", "auth", "route:formal")
        assert lines(log, "task broken") == []


ROUTES = [
    {"name": "domain", "host": "h.test", "sender_domains": ["agency.test", "*.agency.test"]},
    {"name": "account", "host": "h.test", "accounts": ["app"]},
]


@pytest.mark.parametrize(
    ("reverse_path", "author", "routes", "pool"),
    [
        ("x@other.test", "From: Jefa <j@Agency.test>\r\n", ROUTES, "route:domain"),
        ("x@other.test", "From: j@a.agency.test\r\n", ROUTES, "route:domain"),
        ("x@agency.test", "From: j@other.test\r\n", ROUTES, "route:account"),  # From, not the reverse-path
        ("x@agency.test", "From: a@b.test, c@d.test\r\n", ROUTES, "route:domain"),  # in doubt: the reverse-path
        ("x@agency.test", "From: j@other.test\r\n", ROUTES[:1], "default"),
        ("", "From: j@agency.test\r\n", ROUTES, "route:domain"),
        ("x@other.test", "From: j@other.test\r\n", [], "default"),
    ],
)
def test_the_senders_route_is_settled_at_put(reverse_path: str, author: str, routes: Any, pool: str) -> None:
    async def scenario() -> None:
        queue = RecordingQueue()
        given = tuple(RouteSettings.model_validate(one) for one in routes)
        async with listening(queue, settings().model_copy(update={"routes": given})) as house:
            client = await house.connect()
            await client.hello()
            await client.ask(f"MAIL FROM:<{reverse_path}>")
            await client.ask("RCPT TO:<b@c.example>")
            await client.ask("DATA")
            assert (await client.ask(f"{author}Subject: x\r\n\r\nhola\r\n.")).startswith("250")
            assert queue.messages[0].envelope.pool == pool

    run(scenario())


@pytest.mark.parametrize("pool", ["route:domain", "x y", ""])
def test_no_account_is_granted_a_route(pool: str) -> None:
    with pytest.raises(ValueError, match="pool"):
        settings(account={"pools": [pool]})
