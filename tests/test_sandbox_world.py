"""The world beyond plain domains: certificates good and bad, records and keys in the DNS, aliases, and loopback only."""

from __future__ import annotations

import ast
import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from sandbox.loopback import bound, require_loopback
from sandbox.mailer import Door
from sandbox.scenario import ScenarioError, load
from sandbox.server import Sandbox
from sandbox.spf import LookupFailed
from signing import keys, record
from tests.conftest import REPOSITORY
from tests.test_sandbox_mx import EOF, dialogue, with_sandbox


@pytest.mark.parametrize(
    ("behaviour", "fault"),
    [
        ("tls", ""),
        ("tls-required", ""),
        ("tls-expired", "certificate has expired"),
        ("tls-wrong-name", "Hostname mismatch"),
        ("tls-self-signed", "self-signed certificate"),
    ],
)
def test_certificates(tmp_path: Path, behaviour: str, fault: str) -> None:
    """Who trusts the sandbox's authority finds the good one right, and each of the others wrong in its own way."""

    async def scenario(sandbox: Sandbox) -> None:
        trusting = ssl.create_default_context(cafile=sandbox.endpoints()["authority"])
        await sandbox.set_behaviour("gob.test", behaviour)
        reader, writer = await asyncio.open_connection(sandbox.host_address("mx2.gob.test"), sandbox.port)
        try:
            for line in (b"EHLO x\r\n", b"STARTTLS\r\n"):
                while (await reader.readline())[3:4] == b"-":
                    pass
                writer.write(line)
            while not (await reader.readline()).startswith(b"220 "):
                pass
            if fault:
                with pytest.raises(ssl.SSLCertVerificationError, match=fault):
                    await writer.start_tls(trusting, server_hostname="mx2.gob.test")
                return
            await writer.start_tls(trusting, server_hostname="mx2.gob.test")
            writer.write(b"NOOP\r\n")
            assert (await reader.readline()).startswith(b"250")
        finally:
            writer.close()

    with_sandbox(tmp_path, scenario)


@pytest.mark.parametrize(
    ("behaviour", "lines", "said"),
    [
        ("tls-google", ["EHLO x", "MAIL FROM:<s@x.test>", "NOOP"], ["250", "550 5.7.29", "250"]),
        ("drop-starttls", ["EHLO x", "STARTTLS"], ["250", EOF]),
        ("rp-microsoft", [], []),
        ("busy-apple", ["EHLO x", "MAIL FROM:<s@x.test>"], ["250", "451 4.7.1 [BS02]"]),
        ("no-ptr-google", ["EHLO x"], ["250"]),
    ],
)
def test_more_manners(tmp_path: Path, behaviour: str, lines: list[str], said: list[str]) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        await sandbox.set_behaviour("gob.test", behaviour)
        async with dialogue(sandbox, "mx1.gob.test", "127.0.1.8") as client:
            assert (await client.read()).startswith("421 RP-001" if behaviour == "rp-microsoft" else "220 ")
            for line, start in zip(lines, said, strict=True):
                assert (await client.say(line))[0].startswith(start)
            if behaviour == "no-ptr-google":
                assert (await client.send("a@gob.test")).startswith("550 5.7.25 [127.0.1.8] ")
        assert sum(sandbox.ledger.replies.values()) == (behaviour not in ("drop-starttls",))

    with_sandbox(tmp_path, scenario)


RECORDS = [
    {"name": "_dmarc.firma.test", "values": ["v=DMARC1; p=none"]},
    {"name": "firma.test", "values": ["v=spf1 mx -all", 'quote " and \\ in it']},
    {"name": "firma.test", "type": "MX", "values": ["10 mx1.gob.test."]},
    {"name": "long.test", "values": ["x" * 700]},
    {"name": "web.firma.test", "type": "CNAME", "values": ["mx1.gob.test."]},
    {"name": "7.1.0.127.in-addr.arpa", "type": "PTR", "values": ["relay7.gob.test."]},
    {"name": "_25._tcp.mx1.gob.test", "type": "TLSA", "values": ["3 1 1 " + "ab" * 32]},
]


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("_dmarc.firma.test", "TXT", ["v=DMARC1; p=none"]),
        ("firma.test", "TXT", ["v=spf1 mx -all", 'quote " and \\ in it']),
        ("firma.test", "MX", ["10 mx1.gob.test."]),
        ("firma.test", "A", []),
        ("long.test", "TXT", ["x" * 700]),
        ("7.1.0.127.in-addr.arpa", "PTR", ["relay7.gob.test."]),
        ("_25._tcp.mx1.gob.test", "TLSA", ["3 1 1 " + "ab" * 32]),
        ("_tcp.mx1.gob.test", "TXT", []),
        ("nothing.firma.test", "TXT", []),
        ("gob.test", "TXT", ["v=spf1 ip4:127.0.0.0/8 -all"]),
        ("ajeno.test", "TXT", ["v=spf1 -all"]),
        ("cname.test", "MX", ["10 mx.cname.test."]),
        ("fmuni.gob.pe.test", "MX", ["0 ."]),
        ("notaria.com.pe.test", "MX", []),
    ],
)
def test_records(tmp_path: Path, name: str, kind: str, found: list[str]) -> None:
    """As a receiver in the sandbox finds them, and over the wire alike."""

    async def scenario(sandbox: Sandbox) -> None:
        assert sorted(sandbox.zones.lookup(name, kind)) == sorted(found)
        host, _, port = sandbox.dns_address.rpartition(":")
        answer = await dns.asyncquery.tcp(dns.message.make_query(name, kind), host, port=int(port), timeout=5)
        assert sum(len(rrset) for rrset in answer.answer) == len(found)

    with_sandbox(tmp_path, scenario, extra={"records": RECORDS})


def test_aliases_and_failures(tmp_path: Path) -> None:
    """An MX that names an alias leads to the host behind it, which takes the mail."""

    async def scenario(sandbox: Sandbox) -> None:
        assert sandbox.zones.lookup("mx.cname.test", "A") == [sandbox.host_address("mx1.gob.test")]
        assert sandbox.zones.lookup("mx.cname.test", "CNAME") == ["mx1.gob.test."]
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            assert (await client.send("a@cname.test")).startswith("250")
        for mode in ("servfail", "refused", "silent"):
            sandbox.pause_dns(mode, "gob.test")  # type: ignore[arg-type]
            with pytest.raises(LookupFailed):
                sandbox.zones.lookup("_dmarc.gob.test", "TXT")
        with pytest.raises(LookupFailed):
            sandbox.zones.lookup("x" * 64 + ".test", "TXT")

    with_sandbox(tmp_path, scenario)


def test_keys_are_published_as_they_are(tmp_path: Path) -> None:
    """A key made while the sandbox runs is found at once, over the wire too; a directory that is damaged has none."""
    directory = tmp_path / "keys"

    async def scenario(sandbox: Sandbox) -> None:
        name, (host, _, port) = "s1._domainkey.gob.test", sandbox.dns_address.rpartition(":")
        assert sandbox.zones.lookup(name, "TXT") == []
        made = keys.generate(directory, "gob.test", "ed25519", selector="s1", now=0.0)
        for _ in range(2):
            assert sandbox.zones.lookup(name, "TXT") == [record.text(made.key)]
            query = dns.message.make_query(name, "TXT")
            answer = await dns.asyncquery.udp(query, host, port=int(port), timeout=5)
            assert answer.rcode() == dns.rcode.NOERROR and len(answer.answer) == 1
        made.path.write_text("damaged")
        assert sandbox.zones.lookup(name, "TXT") == []

    with_sandbox(tmp_path, scenario, keys=directory)


@pytest.mark.parametrize("address", ["0.0.0.0", "10.1.2.3", "192.0.2.1", "::", "2001:db8::1", "localhost", "", "*"])
def test_no_address_but_loopback(tmp_path: Path, address: str) -> None:
    """Not to bind, not to send to, not in a scenario."""
    with pytest.raises(ValueError, match="loopback"):
        require_loopback(address)
    with pytest.raises(ValueError, match="loopback"):
        bound(address, 0, socket.SOCK_STREAM)
    with pytest.raises(ValueError, match="loopback"):
        Door(address, 25)
    with pytest.raises(ValueError, match="loopback"):
        Sandbox(tmp_path, dns=f"[{address}]:0")
    if address not in ("", "*", "localhost"):
        with pytest.raises(ScenarioError, match="loopback"):
            load(extra={"hosts": [{"name": "mx1.gob.test", "address": address}]})


def test_everything_listens_and_connects_on_loopback(tmp_path: Path) -> None:
    """What the kernel says of every socket of a running sandbox."""
    import psutil

    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            mine = psutil.Process().net_connections(kind="inet")
        addresses = {connection.laddr.ip for connection in mine}
        assert len(addresses) > 30 and all(ip.startswith("127.") or ip == "::1" for ip in addresses)

    with_sandbox(tmp_path, scenario)


SOCKETS = {"create_server", "create_datagram_endpoint", "open_connection", "create_connection", "start_server", "SMTP"}


def test_sockets_are_made_in_few_places() -> None:
    """Every call that binds or connects stands in a file that asks sandbox.loopback first, or is a unix socket."""
    known = {"dns.py", "mx.py", "mailer.py", "control.py", "loopback.py", "slots.py"}
    for path in sorted((REPOSITORY / "sandbox").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls: set[Any] = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not calls & (SOCKETS | {"socket"}) or path.name in known, path.name
