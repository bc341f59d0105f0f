"""Keys in the processes: mail signed end to end, a rotation taken over on SIGHUP, bad keys that change nothing."""

from __future__ import annotations

import signal
import smtplib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.accept_path import DOMAIN, MX, SCENARIO
from benchmarks.harness import Relay, free_port, scratch
from benchmarks.load import Sink, contents
from signing import keys, proof, record, return_path
from signing.return_path import Reference, ReturnPaths

FROM = "entidad.test"
BOUNCES = "rebotes.entidad.test"
DAY = 86_400.0


class Signed:
    """A relay with a sink, an RSA and an Ed25519 key that sign, and signed return paths."""

    def __init__(self, directory: Path, relay: Relay, sink: Sink) -> None:
        self.keys = directory / "keys"
        self.relay = relay
        self.sink = sink
        self.sent = 0

    def send(self, sender: str, *recipients: str) -> bytes:
        """One message through relay and sink, as the last of its recipients got it."""
        with smtplib.SMTP("127.0.0.1", self.relay.submission) as smtp:
            text = f"From: {sender}\r\nTo: {recipients[0]}\r\nSubject: x\r\n\r\n{'y' * 1500}\r\nfin  \r\n"
            assert smtp.sendmail("app@entidad.test", recipients, text) == {}
        self.sent += len(recipients)
        self.sink.await_messages(self.sent, 100, patience=30)
        return list(contents(self.sink.dump))[-1]

    def hang_up(self, event: bytes) -> None:
        """SIGHUP to relayd, until it has said so."""
        process = self.relay.processes["relayd"]
        before = process.log.read_bytes().count(event)
        process.signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while process.log.read_bytes().count(event) == before:
            assert time.monotonic() < deadline, process.log.read_text()[-2000:]
            time.sleep(0.05)


@pytest.fixture
def signed(tool: Callable[[str], Path]) -> Iterator[Signed]:
    tool("smtp-sink")
    with scratch("signing") as directory:
        port = free_port(MX)
        for algorithm in ("rsa-2048", "ed25519"):
            keys.generate(directory / "keys", FROM, algorithm, selector=algorithm, now=time.time())
        keys.rotate(directory / "keys", FROM, now=time.time(), overlap=7 * DAY)
        return_path.add_key(directory / "rp.key", "")
        signing = {"directory": str(directory / "keys"), "return_path_key": str(directory / "rp.key")}
        account = {"name": "app", "networks": ["127.0.0.0/16"], "return_path": BOUNCES}
        with (
            Sink(directory, MX, port) as sink,
            Relay(
                directory / "relay",
                roles=("sandbox", "relayd", "delivery"),
                next_hop_port=port,
                scenario=SCENARIO,
                settings={"signing": signing},
                accounts=[account],
            ) as relay,
        ):
            yield Signed(directory, relay, sink)


def selectors(content: bytes) -> list[str]:
    header = content.partition(b"\r\n\r\n")[0].decode()
    return [part.partition(";")[0] for part in header.replace("\r\n\t", " ").split(" s=")[1:]]


def test_mail_is_signed_and_rotation_is_taken_over(signed: Signed) -> None:
    first = signed.send(f"a@citas.{FROM}", f"jo@{DOMAIN}")  # by the key of the domain above
    assert selectors(first) == ["rsa-2048", "ed25519"]
    keys.generate(signed.keys, FROM, "rsa-2048", selector="next", now=time.time())
    signed.hang_up(b'"configuration reloaded"')
    assert selectors(signed.send(f"a@{FROM}", f"jo@{DOMAIN}")) == ["rsa-2048", "ed25519"]
    keys.rotate(signed.keys, FROM, now=time.time(), overlap=7 * DAY)
    signed.hang_up(b'"configuration reloaded"')
    last = signed.send(f"a@{FROM}", f"jo@{DOMAIN}")
    assert selectors(last) == ["next", "ed25519"]
    records = {held.key.name: record.text(held.key) for held in keys.read(signed.keys)}
    assert [proof.verify(content, records.get, number) for content in (first, last) for number in (0, 1)] == [""] * 4

    (signed.keys / FROM / "next.pem").chmod(0o644)
    signed.hang_up(b'"configuration refused"')
    assert selectors(signed.send(f"a@{FROM}", f"jo@{DOMAIN}")) == ["next", "ed25519"]
    assert selectors(signed.send("a@otra.test", f"jo@{DOMAIN}")) == []


def test_each_recipient_has_a_return_path_of_its_own(signed: Signed) -> None:
    signed.send(f"a@{FROM}", f"jo@{DOMAIN}", f"su@{DOMAIN}")
    paths = ReturnPaths.load(signed.keys.parent / "rp.key")
    found = {}
    for content, received in zip(contents(signed.sink.dump), signed.sink.received(), strict=True):
        address = content.partition(b"X-Mail-Args: <")[2].partition(b">")[0].decode()
        assert address.endswith(f"@{BOUNCES}")
        found[received.recipients] = paths.read(address.upper()), received.queue_id
    ids = {queue_id for _, queue_id in found.values()}
    assert len(ids) == 1
    assert {who: reference for who, (reference, _) in found.items()} == {
        (f"jo@{DOMAIN}",): Reference(min(ids), 0),
        (f"su@{DOMAIN}",): Reference(min(ids), 1),
    }
