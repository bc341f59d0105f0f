"""``relayctl dkim``: from a key that waits to one that may go, records looked up at a real DNS server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from relayctl.main import app
from signing import keys, record
from signing.return_path import ReturnPaths
from tests.dns_server import SERVFAIL, Zone, dns_server

DOMAIN = "entidad.test"


class Operator:
    """Runs ``relayctl dkim …`` on a configuration of its own; ``zone`` is what DNS says meanwhile."""

    def __init__(self, directory: Path, zone: Zone, nameserver: str) -> None:
        self.keys = directory / "keys"
        self.zone = zone
        self.nameserver = nameserver
        self.config = directory / "tambo.toml"
        self.return_path_key = directory / "return-path.key"
        self.config.write_text(
            f'[signing]\ndirectory = "{self.keys}"\nreturn_path_key = "{self.return_path_key}"\n', encoding="utf-8"
        )

    def __call__(self, *words: str, status: int = 0, dns: bool = False) -> Any:
        asking = ["--nameserver", self.nameserver] if dns else []
        ended = CliRunner().invoke(app, ["dkim", *words, *asking, "--config", str(self.config)])
        assert ended.exit_code == status, ended.output
        return ended

    def states(self) -> dict[str, str]:
        rows = orjson.loads(self("list", "--json").stdout)
        return {row["selector"]: row["state"] for row in rows}

    def publish(self) -> None:
        for held in keys.read(self.keys):
            parts = record.strings(record.text(held.key))
            self.zone[held.key.name, "TXT"] = [" ".join(f'"{part}"' for part in parts)]


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    zone: Zone = {}
    loop, up = asyncio.new_event_loop(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        async with dns_server(zone) as server:
            address.append(server.address)
            up.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = loop.create_task(serve())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,))
    thread.start()
    assert up.wait(10)
    yield Operator(tmp_path, zone, address[0])
    loop.call_soon_threadsafe(task.cancel)
    thread.join()
    loop.close()


def test_a_life_of_keys(operator: Operator) -> None:
    made = operator("generate", DOMAIN, "--selector", "a").stdout
    assert 'a-rsa._domainkey.entidad.test. 3600 IN TXT ( "v=DKIM1; k=rsa; p=' in made
    assert f"relayctl dkim rotate {DOMAIN}" in made
    assert operator.states() == {"a-rsa": "ready", "a-ed25519": "ready"}

    early = operator("rotate", DOMAIN, status=1, dns=True)
    assert "nothing changed" in early.stderr and "no record at a-rsa._domainkey" in early.stderr
    assert "no record at" in operator("test", DOMAIN, status=1, dns=True).stdout
    operator.publish()
    assert "good" in operator("test", DOMAIN, dns=True).stdout
    assert "a-rsa._domainkey.entidad.test signs from now on" in operator("rotate", DOMAIN, dns=True).stdout
    assert operator.states() == {"a-rsa": "signing", "a-ed25519": "signing"}

    operator("generate", DOMAIN, "--selector", "b", "--algorithm", "rsa-2048", "--now", "--overlap", "0s")
    assert operator.states() == {"a-rsa": "removable", "a-ed25519": "signing", "b": "signing"}
    assert "remove the record a-rsa._domainkey.entidad.test" in operator("list").stdout
    assert "a-rsa._domainkey.entidad.test: rsa-sha256, may be removed" in operator("show", DOMAIN).stdout
    shown = orjson.loads(operator("show", DOMAIN, "--json").stdout)
    assert {row["selector"]: row["record"][:9] for row in shown}["b"] == "v=DKIM1; "


def test_a_file_is_signed_and_verified_by_dns(operator: Operator, tmp_path: Path) -> None:
    operator("generate", DOMAIN, "--now")
    message = tmp_path / "m.eml"
    message.write_bytes(b"From: Entidad <a@Entidad.test>\nSubject: x\n\nHola.\n")
    verdicts = orjson.loads(operator("test", str(message), "--json", status=1, dns=True).stdout)
    assert [one["algorithm"] for one in verdicts] == ["rsa-sha256", "ed25519-sha256"] and verdicts[0]["problems"]
    operator.publish()
    assert [one["problems"] for one in orjson.loads(operator("test", str(message), "--json", dns=True).stdout)] == [
        [],
        [],
    ]
    message.write_bytes(b"From: a@otra.test\n\n")
    assert "no key signs for otra.test" in operator("test", str(message), status=1, dns=True).stderr


def test_what_dns_says_wrongly(operator: Operator) -> None:
    operator("generate", DOMAIN, "--algorithm", "ed25519", "--selector", "e")
    name = (f"e._domainkey.{DOMAIN}", "TXT")
    operator.zone[name] = ['"v=DKIM1; k=ed25519; t=y; p=AAAA"']
    said = operator("test", DOMAIN, status=1, dns=True).stdout
    assert "p= is another key than e.pem" in said and "t=y says" in said
    operator.zone[name] = SERVFAIL
    assert "could not be looked up" in operator("test", DOMAIN, status=1, dns=True).stdout
    assert "could not be looked up" in operator("rotate", DOMAIN, status=1, dns=True).stderr
    assert "signs from now on" in operator("rotate", DOMAIN, "--unchecked").stdout


def test_refusals_say_what_to_do(operator: Operator, tmp_path: Path) -> None:
    assert "relayctl dkim generate" in operator("list", status=1).stderr
    assert f"no key of {DOMAIN}" in operator("show", DOMAIN, status=1).stderr
    operator("generate", DOMAIN, "--now", "--selector", "x", "--algorithm", "ed25519")
    assert "has no key that waits" in operator("rotate", DOMAIN, status=1).stderr
    assert (
        "is or was in use" in operator("generate", DOMAIN, "--selector", "x", "--algorithm", "ed25519", status=1).stderr
    )
    (operator.keys / DOMAIN / "x.pem").chmod(0o644)
    assert "chmod 600" in operator("list", status=1).stderr
    operator.config.write_text("")
    assert "signing.directory is not set" in operator("list", status=1).stderr
    assert "signing.return_path_key is not set" in operator("return-path-key", status=1).stderr


def test_return_path_key(operator: Operator) -> None:
    operator("return-path-key")
    before = ReturnPaths.load(operator.return_path_key)
    assert "--add" in operator("return-path-key", status=1).stderr
    assert "2 keys" in operator("return-path-key", "--add").stdout
    address = before.make("0" * 20, 3, DOMAIN)
    assert ReturnPaths.load(operator.return_path_key).read(address) is not None


def test_an_overlap_that_is_none(operator: Operator) -> None:
    operator("generate", DOMAIN)
    assert (
        "write a number of seconds" in operator("rotate", DOMAIN, "--overlap", "soon", "--unchecked", status=2).stderr
    )
    assert set(operator.states().values()) == {"ready"}
