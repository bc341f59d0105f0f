"""Mail that comes back: who gets it, what is kept, and the process that can do nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import smtplib
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner, Result

from config.settings import QueueSettings
from mailqueue import inbound, keys
from mailqueue.errors import QueueDown
from mailqueue.events import Event
from mailqueue.inbound import Addressee, InboundStore, Returned
from mailqueue.message import new_id
from relayctl.main import app
from relayd.inbound import Inbound
from signing.return_path import ReturnPaths, add_key
from tests.conftest import REPOSITORY, RedisServer
from tests.listening import RecordingStore, inbound_settings, run, taking_returns

ID = new_id()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "return-path.key"
    add_key(path, "first")
    return path


def test_a_return_path_of_ours_is_taken(key: Path) -> None:
    async def scenario() -> None:
        store = RecordingStore()
        path = ReturnPaths.load(key).make(ID, 7, "bounce.test")
        async with taking_returns(inbound_settings(key), store) as house:
            client = await house.connect()
            await client.hello()
            assert await client.ask("MAIL FROM:<>") == "250 2.1.0 ok"
            for to in (path, path.upper()):
                assert await client.ask(f"RCPT TO:<{to}>") == "250 2.1.5 ok"
            await client.ask("DATA")
            reply = await client.ask("Subject: no\r\n\r\n..\r\n.")
            (mail,) = store.mails
            assert reply == f"250 2.0.0 taken as {mail.id}"
            assert mail.addressees == (Addressee(path, ID, 7), Addressee(path.upper(), ID, 7))
            assert (mail.reverse_path, mail.client) == ("", "127.0.0.1")
            assert mail.content.startswith(b"Received: from client.example ([127.0.0.1])")
            assert mail.content.endswith(b"Subject: no\r\n\r\n.\r\n")
            assert [(event.kind, event.id, event.index) for event in mail.events()] == [("returned", ID, 7)] * 2

    run(scenario())


@pytest.mark.parametrize("to", ["abuse@relay.test", "ABUSE@Relay.Test", "Postmaster"])
def test_a_mailbox_is_taken_and_proves_nothing(key: Path, to: str) -> None:
    async def scenario() -> None:
        store = RecordingStore()
        async with taking_returns(inbound_settings(key), store) as house:
            client = await house.connect()
            await client.hello()
            assert (await client.transaction(to=to)).startswith("250 2.0.0 taken as ")
            (event,) = store.mails[0].events()
            assert (event.kind, event.id, event.index) == ("unverified", "", None)

    run(scenario())


@pytest.mark.parametrize(
    ("to", "reply"),
    [
        ("a@elsewhere.test", "550 5.7.1 relaying denied"),
        ("a@relay.test", "550 5.1.1 no such mailbox here"),
        ("a@bounce.test", "550 5.1.1 no such mailbox here"),
        ("a@sub.bounce.test", "550 5.7.1 relaying denied"),
        ("nobody", "550 5.1.1 no such mailbox here"),
        ("a@b@bounce.test", "553 5.1.3 malformed recipient address"),
    ],
)
def test_all_others_are_refused(key: Path, to: str, reply: str) -> None:
    async def scenario() -> None:
        async with taking_returns(inbound_settings(key), RecordingStore()) as house:
            client = await house.connect()
            await client.hello()
            await client.ask("MAIL FROM:<>")
            assert await client.ask(f"RCPT TO:<{to}>") == reply
            assert (await client.ask("DATA")).startswith("503 ")

    run(scenario())


def test_what_is_offered(key: Path) -> None:
    async def scenario() -> None:
        async with taking_returns(inbound_settings(key, max_message_bytes=2048), RecordingStore()) as house:
            client = await house.connect()
            await client.reply()
            words = set((await client.ask("EHLO x")).replace("250-", "250 ").split("\n250 ")[1:])
            assert words >= {"PIPELINING", "8BITMIME", "SIZE 2048", "ENHANCEDSTATUSCODES"}
            assert not {word.split()[0] for word in words} & {"AUTH", "STARTTLS", "CHUNKING", "DSN"}
            assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("500 ")
            assert (await client.ask("MAIL FROM:<> SIZE=2049")).startswith("552 5.3.4")

    run(scenario())


def test_chunks_are_not_offered_and_are_no_commands_all_the_same(key: Path) -> None:
    async def scenario() -> None:
        async with taking_returns(inbound_settings(key), RecordingStore()) as house:
            client = await house.connect()
            await client.hello()
            await client.send(b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
            assert await client.reply() == "503 5.5.1 MAIL first"
            assert await client.reply() == "250 2.0.0 ok"

    run(scenario())


def test_codes_when_it_cannot_be_kept(key: Path) -> None:
    async def scenario() -> None:
        store = RecordingStore()
        async with taking_returns(inbound_settings(key, max_message_bytes=2048), store) as house:
            client = await house.connect()
            await client.hello()
            store.verdict = ""
            assert (await client.transaction(to="abuse@relay.test")).startswith("452 4.3.1 queue full")
            store.failure = QueueDown("gone")
            assert (await client.transaction(to="abuse@relay.test")).startswith("451 4.3.0")
            store.failure = asyncio.CancelledError()
            assert (await client.transaction(to="abuse@relay.test")).startswith("451 4.3.0")
            big = "x" * 70 + "\r\n"
            assert (await client.transaction(big * 40, to="abuse@relay.test")).startswith("552 5.3.4")
            store.accepting = False
            assert (await client.ask("MAIL FROM:<>")).startswith("452 4.3.1")
            assert store.mails == []

    run(scenario())


def test_a_reload_takes_new_keys_and_a_bad_one_keeps_the_old(key: Path) -> None:
    async def scenario() -> None:
        old = ReturnPaths.load(key).make(ID, 0, "bounce.test")
        async with taking_returns(inbound_settings(key), RecordingStore()) as house:
            assert isinstance(house.relayd, Inbound)
            add_key(key, "second")
            house.relayd.reload(inbound_settings(key))
            new = ReturnPaths.load(key).make(ID, 0, "bounce.test")
            assert new != old
            key.write_text("no key\n")  # noqa: ASYNC240
            with pytest.raises(ValueError, match="return-path.key"):
                house.relayd.check(inbound_settings(key))
            client = await house.connect()
            await client.hello()
            await client.ask("MAIL FROM:<>")
            assert [(await client.ask(f"RCPT TO:<{path}>"))[:3] for path in (old, new)] == ["250", "250"]

    run(scenario())


def test_who_was_accepted_stays_accepted_whatever_is_reloaded(key: Path) -> None:
    """A 250 for mail that is then kept for nobody would be the loss of it."""

    async def scenario() -> None:
        store = RecordingStore()
        path = ReturnPaths.load(key).make(ID, 7, "bounce.test")
        async with taking_returns(inbound_settings(key), store) as house:
            assert isinstance(house.relayd, Inbound)
            client = await house.connect()
            await client.hello()
            await client.ask("MAIL FROM:<>")
            for to in (path, "abuse@relay.test", path):
                assert await client.ask(f"RCPT TO:<{to}>") == "250 2.1.5 ok"
            house.relayd.reload(inbound_settings(key, domains=["other.test"], mailboxes=[]))
            await client.ask("DATA")
            assert (await client.ask("x\r\n.")).startswith("250 ")
            (mail,) = store.mails
            assert mail.addressees == (Addressee(path, ID, 7), Addressee("abuse@relay.test"))

    run(scenario())


def test_international_addresses(key: Path) -> None:
    async def scenario() -> None:
        store = RecordingStore()
        path = ReturnPaths.load(key).make(ID, 7, "xn--bcher-kva.test")
        own = inbound_settings(key, domains=["xn--bcher-kva.test"])
        async with taking_returns(own, store) as house:
            client = await house.connect()
            await client.hello()
            assert "SMTPUTF8" in await client.ask("EHLO x")
            assert await client.ask("MAIL FROM:<büro@ñandú.test>".encode().decode("latin-1")) != "250 2.1.0 ok"
            await client.send("MAIL FROM:<büro@ñandú.test> SMTPUTF8\r\n".encode())
            assert await client.reply() == "250 2.1.0 ok"
            said = [f"{path.partition('@')[0]}@bücher.test", "büro@bücher.test", "büro@ñandú.test", f"{'ｂ'}{path[1:]}"]
            replies = []
            for to in said:
                await client.send(f"RCPT TO:<{to}>\r\n".encode())
                replies.append((await client.reply())[:9])
            assert replies == ["250 2.1.5", "550 5.1.1", "550 5.7.1", "550 5.1.1"]
            await client.ask("DATA")
            assert (await client.ask("x\r\n.")).startswith("250 ")
            (mail,) = store.mails
            assert mail.reverse_path == "büro@ñandú.test"
            assert mail.addressees == (Addressee(said[0], ID, 7),)
            assert b"with UTF8SMTP id" in mail.content

    run(scenario())


# -- the store ------------------------------------------------------------------------------------------------------


def mail(number: int = 0, content: bytes = b"Subject: x\r\n\r\n" + b"text\r\n" * 100) -> Returned:
    return Returned(
        new_id(),
        1_700_000_000_000 + number,
        "",
        (Addressee("a@b.test", ID, 3), Addressee("c@d.test")),
        "127.0.0.1",
        content,
    )


def test_mail_and_its_events_are_kept_together(any_redis_server: RedisServer) -> None:
    async def scenario() -> None:
        store = await InboundStore.open(QueueSettings(url=any_redis_server.url), 100)
        shard = store.shard
        kept = mail(content=bytes(range(256)) * 100)
        entry = await store.keep(kept)
        found = await inbound.find(shard, entry)
        assert found is not None
        assert found == Returned(kept.id, kept.at, "", kept.addressees, kept.client, kept.content, entry)
        events = [Event.from_json(fields[1]) for _, fields in await shard.command("XRANGE", keys.events(0), "-", "+")]
        assert events == kept.events()
        await store.close()

    run(scenario())
    any_redis_server.kill()
    any_redis_server.start()

    async def afterwards() -> None:
        store = await InboundStore.open(QueueSettings(url=any_redis_server.url), 100)
        assert [one.content async for one in inbound.newest(store.shard, 9)] == [bytes(range(256)) * 100]
        await store.close()

    run(afterwards())


def test_only_so_many_are_kept_and_the_newest_come_first(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        store = await InboundStore.open(QueueSettings(url=shared_redis.url), 150)
        for number in range(450):
            assert await store.keep(mail(number))
        found = [one.at - 1_700_000_000_000 async for one in inbound.newest(store.shard, 1000)]
        assert found == list(range(449, 449 - len(found), -1))
        assert 150 <= len(found) < 300  # whole nodes of the stream go
        assert len([one async for one in inbound.newest(store.shard, 120)]) == 120
        assert await inbound.find(store.shard, "1-1") is None
        await store.close()

    run(scenario())


def test_the_memory_mark_is_respected(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        store = await InboundStore.open(QueueSettings(url=shared_redis.url, memory_mark=0.0000001), 150)
        assert await store.keep(mail()) == ""
        assert not store.accepting
        assert [one async for one in inbound.newest(store.shard, 9)] == []
        await store.close()

    run(scenario())


def test_a_server_that_does_not_answer_is_down(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        store = await InboundStore.open(QueueSettings(url=redis_server.url, put_deadline_seconds=1), 150)
        redis_server.pause()
        try:
            with pytest.raises(QueueDown):
                await store.keep(mail())
        finally:
            redis_server.resume()
        await store.close()

    run(scenario())


def test_the_process_holds_nothing_that_could_send(key: Path) -> None:
    made = Inbound(inbound_settings(key), RecordingStore(), CollectorRegistry())
    assert not any(hasattr(held, "put") for held in (made, made._handler, made._handler._store, InboundStore))
    imported = subprocess.run(
        [sys.executable, "-c", "import relayd.inbound, sys; print(*sys.modules, sep='\\n')"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"mailqueue.queue", "mailqueue.writer", "signing.dkim", "signing.keys"} & set(imported)


# -- the process ----------------------------------------------------------------------------------------------------

FILE = """\
[queue]
url = "{url}"
[relayd]
hostname = "relay.test"
[[relayd.listeners]]
name = "mx"
kind = "inbound"
address = "127.0.0.1"
port = 0
tls = "none"
[[relayd.listeners]]
name = "vpn"
address = "127.0.0.1"
port = 0
tls = "none"
[signing]
return_path_key = "{key}"
[inbound]
domains = ["bounce.test"]
mailboxes = ["abuse@relay.test"]
[metrics]
inbound = ""
"""


def test_the_process_takes_mail_and_relayctl_shows_it(redis_server: RedisServer, key: Path, tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    path.write_text(FILE.format(url=redis_server.url, key=key))
    process = subprocess.Popen(
        [sys.executable, "-m", "relayd.inbound", "--config", str(path)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        heard: list[dict[str, Any]] = []
        for line in process.stderr:
            heard.append(json.loads(line))
            if heard[-1]["event"] == "listening":
                break
        assert heard[-1]["listener"] == "mx"
        to = ReturnPaths.load(key).make(ID, 2, "bounce.test")
        smtp = smtplib.SMTP("127.0.0.1", heard[-1]["port"])
        assert smtp.sendmail("", [to], "Subject: failed\r\n\r\nhi\r\n") == {}
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            smtp.sendmail("", ["a@elsewhere.test"], "x")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        smtp.close()
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()

    def relayctl(*words: str) -> Result:
        return CliRunner().invoke(app, ["inbound", *words, "--config", str(path)])

    (shown,) = relayctl("list", "--json").stdout_bytes.splitlines()
    row: dict[str, Any] = orjson.loads(shown)
    assert row["addressees"] == [{"recipient": to, "id": ID, "index": 2}]
    assert to.encode() in relayctl("list").stdout_bytes
    assert relayctl("show", row["entry"]).stdout_bytes.endswith(b"Subject: failed\r\n\r\nhi\r\n")
    assert relayctl("show", "1-1").exit_code == 1
    assert relayctl("show", "x").exit_code == 2
