"""The audit trail: whoever changes something by hand stands in the stream, with why, before and after, and no secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from mailqueue.errors import QueueDown
from mailqueue.events import Event
from relayctl.audit import actor, audited, record
from relayctl.main import app
from tests.queue_kit import events, opened

Trail = Callable[..., list[Event]]
SECRETS = ("$argon2", "s3cret-of-ana", "BEGIN PRIVATE KEY")


@pytest.fixture
def trail(shared_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trail:
    """Runs a verb and gives the audit events that it wrote."""
    monkeypatch.setenv("SUDO_USER", "ana")
    path = tmp_path / "tambo.toml"
    path.write_text(
        f'[queue]\nurl = "{shared_redis.url}"\n[signing]\ndirectory = "{tmp_path}/keys"\n'
        f'return_path_key = "{tmp_path}/return-path.key"\n'
    )
    seen: list[Event] = []

    async def read() -> list[Event]:
        async with opened(shared_redis.url) as queue:
            return [event for event in await events(queue) if event.kind == "audit"]

    def run(*words: str, stdin: str = "", code: int = 0) -> list[Event]:
        ran = CliRunner().invoke(app, [*words, "--config", str(path)], input=stdin)
        assert ran.exit_code == code, ran.output
        found = asyncio.run(read())
        new, seen[:] = found[len(seen) :], found
        assert not any(secret in str(event.to_json()) for event in new for secret in SECRETS)
        assert all(event.actor == actor() and event.actor.startswith("ana@") for event in new)
        return new

    return run


def facts(event: Event) -> tuple[Any, ...]:
    return event.verb, event.subject, event.reason, event.before, event.after


def test_accounts(trail: Trail) -> None:
    (added,) = trail("account", "add", "rrhh", "--senders", "a@x.test", "--password-stdin", stdin="s3cret-of-ana\n")
    assert facts(added)[:4] == ("account add", "account:rrhh", "", None)
    assert added.after["senders"] == ["a@x.test"] and added.after["password_hash"] not in (None, "–")
    (changed,) = trail("account", "set", "rrhh", "weight=3", "--reason", "asked  by letter")
    assert facts(changed) == ("account set", "account:rrhh", "asked by letter", {"weight": 1}, {"weight": 3})
    assert trail("account", "set", "rrhh", "weight=3") == [], "nothing was changed"
    assert trail("account", "set", "rrhh", "weigth=3", code=1) == []
    (rotated,) = trail("account", "rotate", "rrhh", "--password-stdin", stdin="s3cret-of-ana-2\n")
    assert rotated.after["password_hash"] == "another" and rotated.verb == "account rotate"
    (disabled,) = trail("account", "disable", "rrhh", "--reason", "compromised")
    assert facts(disabled)[2:] == ("compromised", {"disabled": False}, {"disabled": True})
    assert trail("account", "enable", "rrhh")[0].verb == "account enable"
    (removed,) = trail("account", "remove", "rrhh", "--yes", "--reason", "closed")
    assert removed.before["weight"] == 3 and removed.after is None and removed.reason == "closed"


def test_an_import_is_one_event_an_account(trail: Trail, tmp_path: Path) -> None:
    file = tmp_path / "accounts.json"
    rows = [{"name": name, "networks": [f"10.{n}.0.0/16"], "senders": ["*"]} for n, name in enumerate("ab")]
    file.write_bytes(orjson.dumps(rows))
    assert trail("account", "import", str(file), "--dry-run") == []
    one, two = trail("account", "import", str(file), "--reason", "from the old relay")
    after = {"networks": ["10.0.0.0/16"], "senders": ["*"]}
    assert facts(one) == ("account import", "account:a", "from the old relay", None, after)
    assert two.subject == "account:b"


def test_quota(trail: Trail) -> None:
    for name in ("one", "two"):
        trail("account", "add", name, "--networks", f"10.{len(name)}.{ord(name[0])}.0/24", "--quota", "bag")
    trail("account", "set", "two", "parent=one")
    (credited,) = trail("account", "credit", "one", "500", "--reason", "invoice 7")
    assert facts(credited) == ("account credit", "account:one", "invoice 7", {"left": 0}, {"left": 500})
    assert credited.count == 500
    (moved,) = trail("account", "transfer", "one", "two", "200", "--reason", "they need it")
    assert (moved.before, moved.after) == ({"one": 500, "two": 0}, {"one": 300, "two": 200})
    assert trail("account", "debit", "one", "301", "--reason", "too much", code=1) == []
    (given,) = trail("account", "replenish", "one", "5", "--incident", "outage 3")
    assert given.after == {"left": 305, "incident": "outage 3"}
    (tested,) = trail("account", "test", "on", "one", "--reason", "trial")
    assert facts(tested) == ("account test on", "account:one", "trial", {"test": False}, {"test": True})


def test_suspensions_and_failures(trail: Trail) -> None:
    (stopped,) = trail("queue", "suspend", "account:one", "--reason", "called us")
    assert facts(stopped)[1:] == ("account:one", "called us", None, {"until": 0, "reason": "called us"})
    (again,) = trail("queue", "suspend", "account:one", "--for", "1h", "--reason", "an hour")
    assert again.before == {"until": 0, "reason": "called us"} and again.after["until"] > again.at
    assert trail("queue", "resume", "account:one", "--reason", "settled")[0].before == again.after
    assert trail("queue", "resume", "account:one", "--reason", "settled", code=1) == []
    assert trail("queue", "suspend", "destination:x.test", "--reason", "wait")[0].before is None
    assert trail("queue", "resume", "destination:x.test", "--reason", "go")[0].before == {"until": 0, "reason": "wait"}
    (cleared,) = trail("auth", "clear", "--address", "192.0.2.1", "--user", "s3cret-of-ana", "--reason", "their VPN")
    assert cleared.subject.startswith("address:192.0.2.1 user:") and cleared.before["address_seconds"] == 0


def test_keys(trail: Trail) -> None:
    (made,) = trail("dkim", "generate", "x.test", "--algorithm", "ed25519", "--selector", "a", "--reason", "first")
    assert facts(made) == ("dkim generate", "domain:x.test", "first", None, {"a": "ready"})
    (begun,) = trail("dkim", "rotate", "x.test", "--unchecked")
    assert (begun.before, begun.after) == ({"a": "ready"}, {"a": "signing"})
    (key,) = trail("dkim", "return-path-key")
    assert (key.before, key.after) == ({"keys": 0}, {"keys": 1})


def test_keys_can_be_made_before_there_is_a_queue(tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "unix://{tmp_path}/none"\n[signing]\ndirectory = "{tmp_path}/keys"\n')
    words = ["dkim", "generate", "x.test", "--algorithm", "ed25519", "--config", str(path)]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0 and "x.test" in ran.stdout
    assert "it went to syslog: no queue server at" in ran.stderr


def test_a_trail_that_cannot_be_written_says_so(make_redis_server: Any) -> None:
    async def scenario() -> None:
        server = make_redis_server()
        async with opened(server.url) as queue:
            server.kill()
            with pytest.raises(QueueDown):
                await record(queue, audited("queue hold", "message:x", "why"))
            server.start()
            await record(queue, audited("queue hold", "message:y", "why", count=2))
            server.kill()
        server.start()
        async with opened(server.url) as queue:
            assert [event.subject for event in await events(queue)] == ["message:y"], "it was on disk"

    asyncio.run(scenario())
