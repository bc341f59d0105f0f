"""AUTH under TLS: mechanisms, cost, cache, bounds; STARTTLS and what may not follow it."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import threading
from collections.abc import Callable

import pytest
import structlog
from argon2 import PasswordHasher

from config.settings import AccountSettings
from relayd.accounts import Accounts
from relayd.auth import CACHE_SECONDS, AuthBusy, Authenticator
from relayd.turns import PER_ADDRESS, STRANGERS
from tests.conftest import Certificate
from tests.listening import HASH, PASSWORD, Forgiving, House, RecordingQueue, b64, listening, run, settings

CLIENT = "127.0.0.1"
PLAIN = b64(f"\0user\0{PASSWORD}")


def tls(certificate: Certificate, **relayd: object) -> House:
    files = (str(certificate.certificate), str(certificate.key))
    return listening(RecordingQueue(), settings(tls=files, network=False, **relayd))  # type: ignore[return-value]


def in_thread(certificate: Certificate, conversation: Callable[[smtplib.SMTP], None]) -> House | None:
    """smtplib's view, its context trusting our certificate."""
    kept: list[House] = []

    def client(port: int) -> None:
        context = ssl.create_default_context(cafile=str(certificate.certificate))
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example") as smtp:
            smtp.starttls(context=context)
            conversation(smtp)

    async def scenario() -> None:
        async with tls(certificate) as house:  # type: ignore[attr-defined]
            await asyncio.to_thread(client, house.port)
            kept.append(house)

    run(scenario())
    return kept[0]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("initial", [True, False])
def test_smtplib_sends_under_tls(certificate: Certificate, mechanism: str, initial: bool) -> None:
    def conversation(smtp: smtplib.SMTP) -> None:
        smtp.ehlo()
        smtp.user, smtp.password = "user", PASSWORD  # type: ignore[attr-defined]
        code, text = smtp.auth(mechanism, getattr(smtp, f"auth_{mechanism.lower()}"), initial_response_ok=initial)
        assert (code, text) == (235, b"2.7.0 authentication successful")
        smtp.sendmail("a@b.example", ["c@d.example", "e@f.example"], "From: a@b.example\nSubject: x\n\nhi\n.\n")

    house = in_thread(certificate, conversation)
    assert house is not None
    (message,) = house.queue.messages
    assert (message.envelope.account, message.envelope.class_) == ("user", "transactional")
    assert b" with ESMTPSA id " in message.content
    assert message.content.endswith(b"\r\n\r\nhi\r\n.\r\n")


def test_a_big_message_under_tls(certificate: Certificate) -> None:
    body = ("y" * 76 + "\r\n") * 20_000

    def conversation(smtp: smtplib.SMTP) -> None:
        smtp.login("user", PASSWORD)
        for _ in range(2):
            smtp.sendmail("a@b.example", ["c@d.example"], "From: a@b.example\r\n\r\n" + body)

    house = in_thread(certificate, conversation)
    assert house is not None
    assert [m.content.endswith(body.encode()) for m in house.queue.messages] == [True, True]


def test_before_tls_nothing_about_auth(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with tls(certificate) as house:  # type: ignore[attr-defined]
            client = await house.connect()
            await client.reply()
            keywords = (await client.ask("EHLO client.example")).splitlines()
            assert keywords[-1] == "250 STARTTLS"
            assert not any("AUTH" in word for word in keywords)
            assert (await client.ask(f"AUTH PLAIN {PLAIN}")).startswith("538 5.7.11 ")
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("530 5.7.0 ")

    run(scenario())


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ([f"AUTH PLAIN {PLAIN}"], ["235 2.7.0"]),
        ([f"auth plain {PLAIN}"], ["235 2.7.0"]),
        (["AUTH PLAIN", PLAIN], ["334 ", "235 2.7.0"]),
        ([f"AUTH PLAIN {b64(f'user{chr(0)}user{chr(0)}{PASSWORD}')}"], ["235 2.7.0"]),
        ([f"AUTH PLAIN {b64(f'root{chr(0)}user{chr(0)}{PASSWORD}')}"], ["535 5.7.8"]),
        (["AUTH LOGIN", b64("user"), b64(PASSWORD)], ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 2.7.0"]),
        ([f"AUTH Login {b64('user')}", b64(PASSWORD)], ["334 UGFzc3dvcmQ6", "235 2.7.0"]),
        ([f"AUTH PLAIN {b64(chr(0) + 'user' + chr(0) + 'wrong')}"], ["535 5.7.8"]),
        ([f"AUTH PLAIN {b64(chr(0) + 'nobody' + chr(0) + PASSWORD)}"], ["535 5.7.8"]),
        ([f"AUTH PLAIN {b64(b'%c%c%c' % (0, 0xFF, 0) + b'x')}"], ["535 5.7.8"]),
        (["AUTH PLAIN", "*"], ["334 ", "501 5.7.0"]),
        (["AUTH LOGIN", b64("user"), "*"], ["334 ", "334 ", "501 5.7.0"]),
        (["AUTH PLAIN !!"], ["501 5.5.2"]),
        (["AUTH PLAIN ="], ["501 5.5.2"]),
        (["AUTH PLAIN", "\xe9"], ["334 ", "501 5.5.2"]),
        (["AUTH PLAIN", "x" * 12_300], ["334 ", "500 5.5.6"]),
        (["AUTH CRAM-MD5"], ["504 5.5.4"]),
        (["AUTH"], ["501 5.5.4"]),
        ([f"AUTH PLAIN {PLAIN}", f"AUTH PLAIN {PLAIN}"], ["235 2.7.0", "503 5.5.1"]),
        (["STARTTLS"], ["503 5.5.1"]),
    ],
)
def test_exchanges(certificate: Certificate, said: list[str], answers: list[str]) -> None:
    async def scenario() -> None:
        async with tls(certificate) as house:  # type: ignore[attr-defined]
            client = await house.connect()
            await client.hello()
            await client.upgrade()
            for line, answer in zip(said, answers, strict=True):
                assert (await client.ask(line)).startswith(answer)
            assert await client.ask("NOOP") == "250 2.0.0 ok"

    run(scenario())


def test_three_failures_end_the_session_and_are_told_without_the_password(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with tls(certificate) as house:  # type: ignore[attr-defined]
            client = await house.connect()
            await client.hello()
            await client.upgrade()
            with structlog.testing.capture_logs() as lines:
                for _ in range(3):
                    answer = await client.ask(f"AUTH PLAIN {b64(chr(0) + 'user' + chr(0) + 'hunter2')}")
                    assert answer == "535 5.7.8 authentication credentials invalid"
                assert await client.rest() == "421 4.7.0 too many failed authentications\r\n"
            told = [line for line in lines if line["event"] == "authentication failed"]
            assert len(told) == 3
            assert (told[0]["client"], told[0]["user"]) == ("127.0.0.1", "user")
            assert "hunter2" not in str(lines) and b64("hunter2") not in str(lines)

    run(scenario())


def test_plaintext_behind_starttls_ends_the_session(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with tls(certificate) as house:  # type: ignore[attr-defined]
            for injected in (b"RSET\r\n", b"x" * 5000, b"EHLO evil.example\r\nMAIL FROM:<a@b.example>\r\n"):
                client = await house.connect()
                await client.hello()
                await client.send(b"STARTTLS\r\n" + injected)
                assert (await client.rest()).startswith("421 4.7.0 nothing may be sent behind STARTTLS")

    run(scenario())


def test_a_failed_handshake_leaves_nothing_behind(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with tls(certificate) as house:  # type: ignore[attr-defined]
            client = await house.connect()
            await client.hello()
            assert (await client.ask("STARTTLS")).startswith("220 2.0.0")
            await client.send(b"EHLO this is no handshake\r\n" * 10)
            await client.reader.read()
            await house.emptied()
            assert house.metric("connection_count") == 0

    run(scenario())


def test_tls_forgets_what_was_said_before(certificate: Certificate) -> None:
    async def scenario() -> None:
        files = (str(certificate.certificate), str(certificate.key))
        async with listening(settings_=settings(tls=files)) as house:
            client = await house.connect()
            await client.hello()
            await client.ask("MAIL FROM:<a@b.example>")
            assert (await client.ask("STARTTLS")).startswith("503 5.5.1")
            await client.ask("RSET")
            await client.upgrade()
            assert (await client.transaction()).startswith("250 ")
            assert b" with ESMTPS id " in house.queue.messages[0].content

    run(scenario())


def account(**values: object) -> AccountSettings:
    return AccountSettings.model_validate({"name": "user", "password_hash": HASH, **values})


def test_only_successes_are_cached_and_a_new_hash_is_a_miss() -> None:
    async def scenario() -> None:
        now = [0.0]
        accounts = Accounts([account()])
        authenticator = Authenticator(accounts, Forgiving(), clock=lambda: now[0])
        calls: list[str] = []
        matches = authenticator._matches
        authenticator._matches = lambda stored, password: (calls.append(stored), matches(stored, password))[1]  # type: ignore[method-assign,func-returns-value]
        for _ in range(3):
            assert await authenticator.verify("user", PASSWORD.encode(), CLIENT) is not None
        assert len(calls) == 1
        for _ in range(2):
            assert await authenticator.verify("user", b"wrong", CLIENT) is None
        assert len(calls) == 3
        now[0] += CACHE_SECONDS
        assert await authenticator.verify("user", PASSWORD.encode(), CLIENT) is not None
        assert len(calls) == 4
        accounts.swap([account(password_hash=PasswordHasher(1, 8, 1).hash("another"))])
        assert await authenticator.verify("user", PASSWORD.encode(), CLIENT) is None
        assert len(calls) == 5
        authenticator.close()

    run(scenario())


def test_an_unknown_user_costs_a_verification_of_the_same_parameters() -> None:
    async def scenario() -> None:
        authenticator = Authenticator(Accounts([account()]), Forgiving())
        calls: list[str] = []
        authenticator._matches = lambda stored, password: bool(calls.append(stored))  # type: ignore[method-assign,func-returns-value]
        assert await authenticator.verify("nobody", b"x", CLIENT) is None
        assert calls[0].rsplit("$", 2)[0] == HASH.rsplit("$", 2)[0]
        assert len(calls[0]) == len(HASH)
        del authenticator._matches
        assert authenticator._matches(calls[0], b"x") is False
        authenticator.close()

    run(scenario())


def test_the_queue_before_argon2_is_bounded_and_nobody_fills_it_alone() -> None:
    async def scenario() -> None:
        authenticator, release = Authenticator(Accounts([account()]), Forgiving()), threading.Event()
        authenticator._matches = lambda stored, password: not release.wait(10)  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(authenticator.verify("user", b"%d" % n, CLIENT)) for n in range(PER_ADDRESS)]
        await asyncio.sleep(0.01)
        with pytest.raises(AuthBusy):
            await authenticator.verify("user", b"one more", CLIENT)
        others = STRANGERS + 1 - PER_ADDRESS  # one is with argon2 already
        waiting += [asyncio.ensure_future(authenticator.verify("user", b"x", f"10.0.0.{n}")) for n in range(others)]
        await asyncio.sleep(0.01)
        with pytest.raises(AuthBusy):
            await authenticator.verify("user", b"one more", "10.0.1.1")
        release.set()
        assert await asyncio.gather(*waiting) == [None] * len(waiting)
        del authenticator._matches
        assert await authenticator.verify("user", PASSWORD.encode(), CLIENT) is not None
        authenticator.close()

    run(scenario())


def test_accounts_by_network() -> None:
    accounts = Accounts(
        [
            AccountSettings(name="tax", networks=("10.21.0.0/16", "fd00:21::/48")),
            AccountSettings(name="civil", networks=("10.22.8.0/24", "100.64.1.1/32")),
        ]
    )
    found = {
        a: accounts.by_address(a) for a in ("10.21.255.1", "10.22.8.9", "10.22.9.9", "100.64.1.1", "fd00:21::5", "::1")
    }
    assert {a: one.name if one else None for a, one in found.items()} == {
        "10.21.255.1": "tax", "10.22.8.9": "civil", "10.22.9.9": None, "100.64.1.1": "civil", "fd00:21::5": "tax", "::1": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("networks", "why"),
    [
        (("10.0.0.0/8",), "too broad"),
        (("203.0.0.0/16",), "public"),
        (("8.8.8.8/32",), "public"),
        (("10.1.0.0/16", "10.1.2.0/24"), "overlaps"),
        (("10.1.0.1/16",), "bits set"),
    ],
)
def test_networks_that_may_not_go_without_a_password(networks: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Accounts([AccountSettings(name="a", networks=networks)])
