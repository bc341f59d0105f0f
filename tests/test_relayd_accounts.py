"""The index of file and queue, and what a change of an account does to sessions that are open."""

from __future__ import annotations

import asyncio
import smtplib
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from structlog.testing import capture_logs

from config.accounts import AccountSettings
from mailqueue.accounts import Record, Stored
from relayd.accounts import Accounts, follow
from relayd.auth import Authenticator
from tests.conftest import Certificate
from tests.listening import HASH, PASSWORD, Forgiving, House, b64, listening, run, settings
from tests.queue_kit import opened
from tests.test_relayd_main import FILE, relayd


def account(name: str, *networks: str, **changes: Any) -> AccountSettings:
    return AccountSettings.model_validate({"name": name, "networks": networks, **changes})


def test_the_file_wins_and_whoever_contradicts_it_is_left_out() -> None:
    accounts = Accounts([account("tax", "10.1.0.0/16"), account("civil", user="c", password_hash=HASH)])
    kept = [
        account("tax", "10.9.0.0/24"),
        account("other", user="c", password_hash=HASH),
        account("inside", "10.1.7.0/24"),
        account("around", "fd00:1::/48", "10.1.0.0/17"),
        account("public", "8.8.8.0/24"),
        account("fine", "10.2.0.0/24", "fd00::/64"),
        account("late", "10.2.0.128/25"),
    ]
    with capture_logs() as logs:
        accounts.keep(kept)
    assert [line["account"] for line in logs] == ["tax", "other", "inside", "around", "public", "late"]
    assert {line["log_level"] for line in logs} == {"error"}
    assert accounts.left_out["tax"] == "accounts.tax.name: there is another account of this name"
    assert accounts.left_out["around"] == "accounts.around.networks: 10.1.0.0/17 overlaps 10.1.0.0/16 of tax"
    assert accounts.by_name("tax") is not kept[0] and accounts.by_address("fd00:1::1") is None
    assert accounts.by_address("10.2.0.200") is accounts.by_name("fine") is kept[5]
    with capture_logs() as logs:
        accounts.swap([account("civil", user="c", password_hash=HASH)])  # what stood in the way is gone
    assert [line["account"] for line in logs] == ["around"]  # for another reason now
    assert set(accounts.left_out) == {"other", "around", "public", "late"}
    assert accounts.by_address("10.1.7.1") is kept[2]
    with pytest.raises(ValueError, match="overlaps"):
        accounts.swap([account("a", "10.1.0.0/16"), account("b", "10.1.1.0/24")])
    assert accounts.by_address("10.1.7.1") is kept[2]


def test_many_accounts_are_indexed_in_no_time() -> None:
    many = [account(f"a{n}", f"10.{n // 250}.{n % 250}.0/24") for n in range(5000)]
    accounts = Accounts(many)
    assert accounts.by_address("10.3.7.9") is many[757]


def test_where_a_password_counts() -> None:
    here = account("here", password_hash=HASH, password_networks=["192.168.7.0/24", "fd00:7::/64"])
    accounts = Accounts([here, account("off", "10.3.0.0/24", password_hash=HASH, disabled=True)])
    assert accounts.by_user("here", "192.168.7.9") is here and accounts.by_user("here", "fd00:7::1") is here
    assert accounts.by_user("here", "192.168.8.9") is None and accounts.by_user("here", "::1") is None
    assert accounts.by_user("here") is here
    assert accounts.by_user("off") is None and accounts.by_address("10.3.0.1") is accounts.by_name("off")


def stored(version: int, *accounts: AccountSettings) -> Stored:
    return Stored(version, tuple(Record(one, version, 0, "ana") for one in accounts))


async def signed_in(house: House) -> Any:
    client = await house.connect()
    await client.hello()
    await client.upgrade()
    assert (
        await client.ask(f"AUTH PLAIN {b64(f'{chr(0)}kept{chr(0)}{PASSWORD}')}")
        == "235 2.7.0 authentication successful"
    )
    return client


def test_open_sessions_see_changes_at_their_next_mail(certificate: Certificate) -> None:
    async def scenario() -> None:
        tls = str(certificate.certificate), str(certificate.key)
        kept = account("kept", password_hash=HASH, senders=["agency.pe"])
        async with listening(settings_=settings(tls=tls, network=False)) as house:
            house.relayd.keep(stored(1, kept))
            client = await signed_in(house)
            mail = "MAIL FROM:<a@b.example>"
            assert await client.ask(mail) == "550 5.7.1 sender not allowed for account kept"
            house.relayd.keep(stored(2, kept.model_copy(update={"senders": ("*",), "class_": "emergency"})))
            assert (await client.transaction("From: a@b.example\r\n\r\nhi\r\n")).startswith("250 ")
            assert house.queue.messages[0].envelope.class_ == "emergency"
            assert (await client.ask(mail)).startswith("250 ")
            house.relayd.keep(stored(3, kept.model_copy(update={"disabled": True})))
            assert (await client.ask("RCPT TO:<b@c.example>")).startswith("250 ")  # this transaction goes on
            assert (await client.ask("RSET")).startswith("250 ")
            assert await client.ask(mail) == "550 5.7.1 account disabled"
            house.relayd.keep(stored(4))
            assert await client.ask(mail) == "550 5.7.1 account disabled"
            house.relayd.keep(stored(5, kept))
            assert (await client.ask("MAIL FROM:<a@agency.pe>")).startswith("250 ")

    run(scenario())


OTHER = PasswordHasher(1, 8, 1).hash("another password")


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [
        ({"password_hash": OTHER}, False),
        ({"password_hash": None}, False),
        ({"password_networks": ["10.0.0.0/24"]}, False),
        ({"password_networks": ["127.0.0.0/24"]}, True),
        ({"password_hash": OTHER, "previous_hash": HASH, "previous_until": "2099-01-01T00:00:00Z"}, True),
        ({"password_hash": OTHER, "previous_hash": HASH, "previous_until": "2001-01-01T00:00:00Z"}, False),
    ],
)
def test_a_session_lives_as_long_as_its_password(certificate: Certificate, changes: Any, goes_on: bool) -> None:
    async def scenario() -> None:
        tls = str(certificate.certificate), str(certificate.key)
        async with listening(settings_=settings(tls=tls, network=False)) as house:
            house.relayd.keep(stored(1, account("kept", password_hash=HASH)))
            client = await signed_in(house)
            assert (await client.transaction()).startswith("250 ")
            house.relayd.keep(stored(2, account("kept", **{"password_hash": HASH, **changes})))
            reply = await client.ask("MAIL FROM:<a@b.example>")
            if goes_on:
                assert reply == "250 2.1.0 ok"
            else:
                assert reply == "421 4.7.0 the password does not count any more, connect again"
                assert await client.reply() == ""

    run(scenario())


@pytest.mark.parametrize("changes", [{"disabled": True}, {"password_networks": ["10.0.0.0/24"]}])
def test_a_password_that_does_not_count_is_a_wrong_password(certificate: Certificate, changes: Any) -> None:
    async def scenario() -> None:
        tls = str(certificate.certificate), str(certificate.key)
        async with listening(settings_=settings(tls=tls, network=False)) as house:
            house.relayd.keep(stored(1, account("kept", password_hash=HASH, **changes)))
            client = await house.connect()
            await client.hello()
            await client.upgrade()
            reply = await client.ask(f"AUTH PLAIN {b64(f'{chr(0)}kept{chr(0)}{PASSWORD}')}")
            assert reply == "535 5.7.8 authentication credentials invalid"

    run(scenario())


def test_a_client_network_may_come_and_go() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(network=False)) as house:
            client = await house.connect()
            await client.hello()
            assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 authentication required"
            house.relayd.keep(stored(1, account("net", "127.0.0.0/24")))
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("250 ")
            await client.ask("RSET")
            house.relayd.keep(stored(2, account("net", "127.0.0.0/24", disabled=True)))
            assert await client.ask("MAIL FROM:<a@b.example>") == "550 5.7.1 account disabled"
            house.relayd.keep(stored(3))
            assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 authentication required"

    run(scenario())


def test_one_state_that_is_not_taken_over_holds_up_none_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("relayd.accounts._PAUSE_SECONDS", 0.0)
        seen: list[int] = []
        done = asyncio.Event()

        async def changes() -> Any:
            for version in range(3):
                yield stored(version)
            await asyncio.sleep(30)

        def keep(state: Stored) -> None:
            seen.append(state.version)
            if len(seen) == 2:
                raise RuntimeError("no")
            if len(seen) == 5:
                done.set()

        following = asyncio.create_task(follow(changes, keep))
        async with asyncio.timeout(5):
            await done.wait()
        following.cancel()
        assert seen == [0, 1, 0, 1, 2]

    with capture_logs():
        run(scenario())


def test_the_process_takes_accounts_over_while_it_runs(redis_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "tambo.toml"
    text = FILE.format(url=redis_server.url, size=100_000).replace('name = "app"\nnetworks = ["127.0.0.0/16"]', "")
    path.write_text(text.replace("[[accounts]]\n", ""))

    async def change(*accounts: AccountSettings) -> None:
        async with opened(redis_server.url) as queue:
            store = queue.accounts()
            for record in (await store.read()).records:
                await store.remove(record, "ana")
            for one in accounts:
                await store.add(one, "ana")

    def mail(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port) as smtp:
            smtp.sendmail("a@b.example", ["c@d.example"], "From: a@b.example\r\n\r\nhi\r\n")

    asyncio.run(change(account("before", "127.0.0.0/24", senders=["b.example"])))
    with relayd(path) as (_, told):
        port = told("listening")["port"]
        mail(port)
        redis_server.kill()
        redis_server.start()
        asyncio.run(change())
        while told("accounts taken over")["count"]:
            pass
        with pytest.raises(smtplib.SMTPSenderRefused, match="authentication required"):
            mail(port)


def test_a_password_in_rotation_counts_and_costs_what_a_stranger_may_cost() -> None:
    async def scenario() -> None:
        other = PasswordHasher(1, 8, 1).hash("another password")
        until = "2100-01-01T00:00:00Z"
        kept = account("kept", password_hash=other, previous_hash=HASH, previous_until=until)
        over = account("over", password_hash=other, previous_hash=HASH, previous_until="2020-01-01T00:00:00Z")
        accounts = Accounts([kept])
        authenticator = Authenticator(accounts, Forgiving())
        tried: list[str] = []
        matches = authenticator._matches
        authenticator._matches = lambda stored, password: (tried.append(stored), matches(stored, password))[1]  # type: ignore[method-assign,func-returns-value]
        for password in (PASSWORD, "another password"):
            assert await authenticator.verify("kept", password.encode(), "127.0.0.1") is kept
        assert await authenticator.verify("kept", b"wrong", "127.0.0.1") is None
        assert await authenticator.verify("nobody", b"wrong", "127.0.0.1") is None
        assert len(tried) == 8
        accounts.swap([over])
        assert await authenticator.verify("over", PASSWORD.encode(), "127.0.0.1") is None
        assert await authenticator.verify("over", b"another password", "127.0.0.1") is over
        authenticator.close()

    run(scenario())
