"""``relayctl intake``: new mail stays out, what is under way goes on, and a restart does not forget."""

from __future__ import annotations

import asyncio
import smtplib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from mailqueue import intake
from relayctl.audit import audited
from relayctl.main import app
from relayd import replies
from tests.conftest import RedisServer
from tests.listening import listening, run
from tests.queue_kit import events, eventually, opened
from tests.test_ready import free_port, until
from tests.test_relayd_main import FILE, relayd

Relayctl = Callable[..., Any]


@pytest.fixture
def relayctl(shared_redis: Any, tmp_path: Path) -> Relayctl:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{shared_redis.url}"\n')
    return lambda *words: CliRunner().invoke(app, ["intake", *words, "--config", str(path)])


def audits(url: str) -> list[tuple[str, str, Any, Any]]:
    async def scenario() -> list[tuple[str, str, Any, Any]]:
        async with opened(url) as queue:
            return [(e.verb, e.reason, e.before, e.after) for e in await events(queue) if e.kind == "audit"]

    return asyncio.run(scenario())


def test_the_verbs(shared_redis: Any, relayctl: Relayctl) -> None:
    assert relayctl("start").exit_code == 1
    assert orjson.loads(relayctl("status", "--json").stdout) == {"stopped": False, "relayd": []}
    assert relayctl("stop", "--reason", " ").exit_code == 2
    assert relayctl("stop", "--reason", "x", "--for", "soon").exit_code == 2
    assert relayctl("stop").exit_code == 2

    said = orjson.loads(relayctl("stop", "--reason", "new  disk", "--for", "1h", "--json").stdout)
    assert (said["stopped"], said["reason"], said["until"] - said["since"]) == (True, "new disk", 3_600_000)
    again = relayctl("stop", "--reason", "still", "--json").stdout
    assert orjson.loads(again) == {"stopped": True, "reason": "still", "since": said["since"], "until": 0, "relayd": []}
    assert "until started by hand: still" in relayctl("status").stdout
    assert relayctl("start", "--reason", "done").exit_code == 0
    assert relayctl("status").stdout == "new mail is taken\n"

    first, second, third = audits(shared_redis.url)
    assert first == ("intake stop", "new disk", None, {"reason": "new disk", "seconds": 3600.0})
    assert second[1:3] == ("still", {"reason": "new disk", "since": said["since"], "until": said["until"]})
    assert third[:2] == ("intake start", "done") and third[2]["reason"] == "still"


def test_a_stop_ends_by_itself(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            await intake.stop(shard, "a moment", 0.2, audited("intake stop", "intake", "a moment"))
            await queue.watch()
            assert queue.stopped == "a moment"

            async def over() -> bool:
                return not queue.stopped

            await eventually(over, 5)
            assert await shard.command("HEXISTS", shard.prefix + "meta", "intake") == 0

    asyncio.run(scenario())


def test_new_connections_and_new_transactions_are_refused() -> None:
    async def scenario() -> None:
        async with listening() as house:
            busy, idle = await house.connect(), await house.connect()
            await busy.reply()
            await idle.reply()
            for command in ("EHLO c.test", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"):
                assert (await busy.ask(command)).startswith("250")
            await idle.ask("EHLO c.test")

            house.queue.stopped = "new disk"
            assert house.registry.get_sample_value("tambo_intake_stopped") == 1
            assert await idle.ask("MAIL FROM:<a@b.example>") == str(replies.INTAKE_STOPPED)
            assert await idle.rest() == ""
            late = await house.connect()
            assert await late.reply() == str(replies.INTAKE_STOPPED)
            assert await late.rest() == ""
            await late.close()

            assert (await busy.ask("DATA")).startswith("354")
            await busy.send("From: a@b.example\r\n\r\nhi\r\n.\r\n")
            assert (await busy.reply()).startswith("250 2.0.0 queued")
            assert await busy.ask("MAIL FROM:<a@b.example>") == str(replies.INTAKE_STOPPED)
            assert len(house.queue.messages) == 1

            house.queue.stopped = ""
            after = await house.connect()
            assert (await after.reply()).startswith("220")
            await after.close()

    run(scenario())


def test_a_restarted_relayd_refuses_from_its_first_connection(redis_server: RedisServer, tmp_path: Path) -> None:
    path, port = tmp_path / "tambo.toml", free_port()
    text = FILE.format(url=redis_server.url, size=100_000).replace('relayd = ""', f'relayd = "127.0.0.1:{port}"')
    path.write_text(text)

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, ["intake", *words, "--config", str(path)])

    assert call("stop", "--reason", "new disk").exit_code == 0
    redis_server.kill()
    redis_server.start()
    with relayd(path) as (process, told):
        assert isinstance(process, subprocess.Popen)
        smtp_port = told("listening")["port"]
        with pytest.raises(smtplib.SMTPConnectError, match=r"421.*4\.3\.2"):
            smtplib.SMTP("127.0.0.1", smtp_port)
        assert "intake is stopped: new disk" in until(port, False, 10)
        assert call("start").exit_code == 0
        until(port, True, 10)
        with smtplib.SMTP("127.0.0.1", smtp_port) as smtp:
            assert smtp.sendmail("a@b.example", ["c@d.example"], "From: a@b.example\r\n\r\nhi\r\n") == {}
        (said,) = orjson.loads(call("stop", "--reason", "again", "--json").stdout)["relayd"]
        assert said["trouble"] == "intake is stopped: again"
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            smtplib.SMTP("127.0.0.1", smtp_port)
