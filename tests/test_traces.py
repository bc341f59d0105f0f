"""Dialogues that are overheard: who hears what, and what nobody ever hears."""

from __future__ import annotations

import asyncio
import base64
import ssl
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.route_files import trust
from config.settings import TimeoutSettings
from delivery.overhear import attend
from delivery.session import Session
from delivery.smarthost import SmarthostSession
from delivery.transaction import Transaction
from mailqueue.traces import MOST_WAITING, Line, Tap, Wanted, tapped
from relayd import replies
from relayd.listener.overhear import shown
from tests.conftest import Certificate
from tests.listening import PASSWORD, Client, House, listening, run, settings
from tests.queue_kit import eventually, opened
from tests.smtp_peer import peer
from tests.test_smarthost import KNOWN, smarthost


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"EHLO app.test\r\n", "EHLO app.test"),
        (b"mail from:<a@b.test> SIZE=10\r\n", "MAIL from:<a@b.test> SIZE=10"),
        (b"RCPT TO:<\xc3\xb1@b.test>\r\n", "RCPT TO:<ñ@b.test>"),
        (b"AUTH PLAIN AGFwcABzZWNyZXQ=\r\n", "AUTH PLAIN ******"),
        (b"auth  login\r\n", "AUTH LOGIN"),
        (b"AUTH LOGIN c2VjcmV0\r\n", "AUTH LOGIN ******"),
        (b"AUTH c2VjcmV0\r\n", "AUTH ******"),
        (b"AUTH PLAINc2VjcmV0\r\n", "AUTH ******"),
        (b"AUTH\r\n", "AUTH"),
        (b"c2VjcmV0\r\n", "(no command, 8 octets)"),
        (b"MAIL secret\r\n", "MAIL (argument of 11 octets)"),
        (b"NOOP secret\r\n", "NOOP (argument of 6 octets)"),
        (b"EHLO my secret\r\n", "EHLO (argument of 14 octets)"),
        (b"BDAT 100 LAST\r\n", "BDAT 100 LAST"),
        (b"BDAT x\r\n", "BDAT (argument of 6 octets)"),
        (b"QUIT\r\n", "QUIT"),
        (b"", "(no command, 0 octets)"),
    ],
)
def test_what_is_shown_of_a_command(line: bytes, text: str) -> None:
    assert shown(line)[1] == text


@given(
    st.sampled_from(
        [b"AUTH PLAIN ", b"AUTH LOGIN ", b"auth ", b"AUTH  XOAUTH2 ", b"NOOP ", b"X", b"", b"VRFY ", b"MAIL "]
    ),
    st.binary(min_size=6, max_size=30),
)
def test_no_secret_is_ever_shown(before: bytes, secret: bytes) -> None:
    coded = base64.b64encode(b"\0user\0" + secret)
    assert coded.decode() not in shown(before + coded + b"\r\n")[1]


def line(number: int) -> Line:
    return Line(number, "s", "C", "mail", str(number), "192.0.2.1")


def test_a_tap_is_bounded_and_says_what_it_dropped() -> None:
    tap = Tap()
    tap.turn([Wanted("t", "account", "a"), Wanted("u", "client", "192.0.2.1")])
    assert tap.on and tap.listeners("account", ("a", "b")) == ["t"] and tap.listeners("domain", ("a",)) == []
    for number in range(MOST_WAITING + 5):
        tap.say(["t"], line(number))
    tap.say(["u"], line(0))
    drained = tap.drain()
    assert len(drained["t"].lines) == MOST_WAITING and (drained["t"].dropped, drained["u"].dropped) == (5, 1)
    assert tap.drain() == {}
    tap.turn([])
    assert not tap.on


def heard(tap: Tap, token: str) -> list[tuple[str, str, str]]:
    batch = tap.drain().get(token)
    return [(each.who, each.phase, each.text) for each in batch.lines] if batch else []


async def submit(house: House, client: Client) -> None:
    await client.hello()
    await client.upgrade()
    await client.ask("AUTH LOGIN")
    await client.ask(base64.b64encode(b"user").decode())
    assert (await client.ask(base64.b64encode(PASSWORD.encode()).decode())).startswith("235")
    for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
        await client.ask(command)
    await client.send("From: a@b.example\r\nSubject: confidential\r\n\r\nhi\r\n.\r\n")
    assert (await client.reply()).startswith("250")
    await client.ask("QUIT")


def test_a_submission_is_heard_by_account_from_its_beginning(certificate: Certificate) -> None:
    async def scenario() -> None:
        tls = settings(tls=(str(certificate.certificate), str(certificate.key)), network=False)
        async with listening(settings_=tls) as house:
            tap = house.relayd._tap
            client = await house.connect()
            await submit(house, client)
            await client.close()
            await house.emptied()
            assert tap.drain() == {}, "nobody listened"
            tap.turn(
                [Wanted("u", "account", "user"), Wanted("o", "account", "other"), Wanted("c", "client", "127.0.0.1")]
            )
            client = await house.connect()
            await submit(house, client)
            await client.close()
            await house.emptied()
            drained = tap.drain()
            assert "o" not in drained
            by_account = [(each.who, each.text) for each in drained["u"].lines]
            assert by_account == [(each.who, each.text) for each in drained["c"].lines]
            said = [f"{who} {text}" for who, text in by_account]
            text = "\n".join(said)
            assert said[0] == "* connected from 127.0.0.1" and said[1].startswith("S 220 ")
            assert "C AUTH LOGIN\nS 334 VXNlcm5hbWU6\nC ******\nS 334 UGFzc3dvcmQ6\nC ******\nS 235 " in text
            assert "* TLSv1" in text and "C MAIL FROM:<a@b.example>\nS 250 2.1.0 ok\n" in text
            assert "octets of content)\nS 250 2.0.0 queued as" in text and said[-1] == "* connection ended"
            for secret in (PASSWORD, base64.b64encode(PASSWORD.encode()).decode(), "confidential"):
                assert secret not in text

    run(scenario())


def test_who_is_turned_away_at_the_door_is_heard_by_client() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_connections_per_address=1)) as house:
            tap = house.relayd.doors.tap
            tap.turn([Wanted("c", "client", "127.0.0.1")])
            first, second = await house.connect(), await house.connect()
            assert (await first.reply()).startswith("220")
            assert await second.reply() == str(replies.TOO_MANY_FROM_ADDRESS)
            assert ("S", "connect", str(replies.TOO_MANY_FROM_ADDRESS)) in heard(tap, "c")

    run(scenario())


def test_a_delivery_is_heard_by_domain() -> None:
    async def scenario() -> None:
        tap = Tap()
        tap.turn([Wanted("d", "domain", "d.test")])
        async with peer() as next_hop:
            session = await Session.open(
                "mx.test", "127.0.0.1", next_hop.port, source=None, hostname="relay.test", timeouts=TimeoutSettings()
            )
            try:
                for domain in ("other.test", "d.test"):
                    attend(session, tap, domain)
                    content = b"Subject: confidential\r\n\r\nhi\r\n"
                    result = await session.send(Transaction("a@b.test", (f"c@{domain}",), content))
                    assert result.recipients[0].delivered
            finally:
                await session.quit()
        said = heard(tap, "d")
        text = "\n".join(f"{who} {phase} {text}" for who, phase, text in said)
        assert "other.test" not in text and "confidential" not in text
        assert "C mail MAIL FROM:<a@b.test>" in text and "C rcpt RCPT TO:<c@d.test>" in text
        assert "S data 354" in text and "C content (29 octets of content)\nC end-of-data .\nS end-of-data 250" in text

    asyncio.run(scenario())


def test_a_smarthost_s_password_is_not_heard(certificate: Certificate) -> None:
    heard_: list[str] = []
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate.certificate, certificate.key)

    async def scenario() -> None:
        async with peer(KNOWN, serving) as server:
            session = await SmarthostSession.open(
                smarthost(server.port, trust(str(certificate.certificate))),
                "127.0.0.1",
                source=None,
                hostname="relay.test",
                timeouts=TimeoutSettings(),
                ear=lambda who, phase, text: heard_.append(f"{who} {phase} {text}"),
            )
            try:
                result = await session.send(
                    Transaction("a@b.test", ("c@d.test",), b"Subject: confidential\r\n\r\nhi\r\n")
                )
                assert result.recipients[0].delivered
            finally:
                await session.quit()
                await session.wait_closed()

    asyncio.run(scenario())
    text = "\n".join(heard_)
    assert "C auth AUTH PLAIN ******\nS auth 235 2.7.0 welcome" in text and "C starttls STARTTLS" in text
    assert "C mail MAIL FROM:<a@b.test>" in text and "(29 octets of content)\nC end-of-data ." in text
    for secret in ("clave", base64.b64encode(b"\0relay\0clave").decode(), "confidential"):
        assert secret not in text


def test_lines_go_from_process_to_listener_and_a_lost_listener_is_forgotten(
    shared_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailqueue.traces.LEASE_SECONDS", 0.6)
    monkeypatch.setattr("mailqueue.traces.RENEW_EVERY_SECONDS", 0.2)
    monkeypatch.setattr("mailqueue.traces.LOOK_EVERY_SECONDS", 0.1)

    async def scenario() -> None:
        tap = Tap()

        async def on() -> bool:
            return tap.on

        async def off() -> bool:
            return not tap.on

        async with opened(shared_redis.url) as queue, tapped(queue.shards[0], tap, "relayd"):
            found: list[Line] = []

            async def follow() -> None:
                async with aclosing(queue.trace("account", "a", 30)) as batches:  # type: ignore[type-var]
                    async for batch in batches:
                        found.extend(batch.lines)

            listener = asyncio.create_task(follow())
            await eventually(on)
            await asyncio.sleep(1)  # past its lease: it must have been renewed
            assert tap.on
            tap.say(tap.listeners("account", ("a",)), line(7))

            async def arrived() -> bool:
                return bool(found)

            await eventually(arrived)
            assert (found[0].at, found[0].text, found[0].process.partition("@")[0]) == (7, "7", "relayd")
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            await eventually(off)

            shard = queue.shards[0]
            await shard.command("HSET", shard.prefix + "traces", "gone", "1 account a")
            await asyncio.sleep(0.5)
            assert not tap.on, "its time is over"

    asyncio.run(scenario())
