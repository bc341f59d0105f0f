"""Who guesses passwords: counted over all processes, refused in time, without harm to who does not guess."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import structlog
from typer.testing import CliRunner

from config import logs
from config.settings import AccountSettings, QueueSettings
from mailqueue.errors import QueueDown
from mailqueue.failures import FailureLimits, Failures, Standing, client_network
from mailqueue.queue import Queue
from relayctl.main import app
from relayd.accounts import Accounts
from relayd.auth import CACHE_SECONDS, GLIMPSES, AuthBusy, Authenticator, AuthRefused
from relayd.listener.auth import MAX_REFUSALS
from relayd.turns import KNOWN_PER_ADDRESS, Shared, TooManyWaiting, Turns
from tests.conftest import REPOSITORY, Certificate, RedisServer
from tests.listening import HASH, PASSWORD, Client, Forgiving, RecordingQueue, b64, listening, run, settings
from tests.queue_kit import eventually

LIMITS = FailureLimits(by_address=3, by_user=5, window_seconds=60)
GOOD, BAD, WORSE = "10.1.0.1", "10.2.0.1", "10.2.0.2"


@asynccontextmanager
async def books(server: RedisServer, count: int = 1, limits: FailureLimits = LIMITS) -> AsyncIterator[list[Failures]]:
    """As many as there are processes, each over connections of its own."""
    queues = [await Queue.open(QueueSettings(url=server.url), "test", patience=5) for _ in range(count)]
    try:
        yield [Failures(queue.shards[0], limits) for queue in queues]
    finally:
        for queue in queues:
            await queue.close()


def authenticator(book: Failures | Forgiving) -> Authenticator:
    accounts = [AccountSettings.model_validate({"name": name, "password_hash": HASH}) for name in ("user", "other")]
    return Authenticator(Accounts(accounts), book)


async def attempt(door: Authenticator, address: str, user: str = "user", password: str = "wrong") -> str:
    try:
        found = await door.verify(user, password.encode(), address)
    except AuthRefused:
        return "refused"
    except AuthBusy:
        return "busy"
    return "in" if found else "out"


@pytest.mark.parametrize(
    ("address", "network"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"), ("", "")],
)
def test_what_a_client_counts_under(address: str, network: str) -> None:
    assert client_network(address) == network


def test_an_address_is_refused_by_all_processes_after_its_failures(any_redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with books(any_redis_server, 2) as (one, two):
            first, second = authenticator(one), authenticator(two)
            users = ("user", "nobody", "other")
            assert [await attempt(first, BAD, user) for user in users] == ["out"] * 3
            assert [await attempt(first, BAD), await attempt(second, BAD, "other")] == ["refused", "refused"]
            assert await attempt(second, BAD, password=PASSWORD) == "refused"
            assert await attempt(second, GOOD, password=PASSWORD) == "in"
            assert (await one.ask(BAD, "user")).address == pytest.approx(60, abs=5)
            await one.clear(address=BAD)
            assert (await two.ask(BAD, "user")).address == 0

    run(scenario())


def test_a_user_is_refused_to_strangers_and_not_to_who_got_in_before(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with books(shared_redis, 2) as (one, two):
            first, second = authenticator(one), authenticator(two)
            assert await attempt(first, GOOD, password=PASSWORD) == "in"
            for number in range(5):
                assert await attempt(first, f"10.3.0.{number}") == "out"
            assert await attempt(first, "10.3.1.1", password=PASSWORD) == "refused"
            assert await attempt(second, "10.3.1.2", password=PASSWORD) == "refused"
            assert await attempt(first, "10.3.1.1", "other") == "out"
            assert await attempt(second, GOOD, password=PASSWORD) == "in"  # known to the others, not to this process

    run(scenario())


def test_a_password_in_use_is_not_asked_about_even_from_a_refused_address(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with books(shared_redis) as (book,):
            door = authenticator(book)
            door._clock = lambda: 0.5
            assert await attempt(door, BAD, password=PASSWORD) == "in"
            assert [await attempt(door, BAD) for _ in range(4)] == ["out"] * 3 + ["refused"]
            assert await attempt(door, BAD, password=PASSWORD) == "in"
            assert not door.shuns(BAD)
            heard = [await attempt(door, BAD, password=word) for word in ["guess"] * GLIMPSES + [PASSWORD]]
            assert heard == ["refused"] * (GLIMPSES + 1)  # who looks so often is no client of ours
            assert await attempt(door, WORSE, password=PASSWORD) == "in"

    run(scenario())


def test_a_password_in_use_keeps_its_address_welcome(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with books(shared_redis) as (book,):
            door, now = authenticator(book), [0.0]
            door._clock = lambda: now[0]
            for _ in range(4):
                assert await attempt(door, BAD, password=PASSWORD) == "in"
                now[0] += CACHE_SECONDS / 2
            assert [await attempt(door, BAD, user="nobody") for _ in range(4)] == ["out"] * 3 + ["refused"]
            assert not door.shuns(BAD)

    run(scenario())


def test_many_connections_at_once_with_one_password_cost_one_verification(shared_redis: RedisServer) -> None:
    """How the pool of an application server comes back after a restart of ours."""

    async def scenario() -> None:
        async with books(shared_redis) as (book,):
            door, calls = authenticator(book), []
            matches = door._matches
            door._matches = lambda stored, password: (calls.append(stored), matches(stored, password))[1]  # type: ignore[method-assign,func-returns-value]
            pool = [asyncio.create_task(attempt(door, GOOD, password=PASSWORD)) for _ in range(30)]
            await asyncio.sleep(0.05)
            pool[0].cancel()  # a client that goes takes nobody with it
            heard = await asyncio.gather(*pool, return_exceptions=True)
            assert heard[1:] == ["in"] * 29
            assert len(calls) == 1
            assert await asyncio.gather(*(attempt(door, BAD) for _ in range(5))) == ["out"] * 5
            assert await attempt(door, BAD) == "refused"  # each has counted

    run(scenario())


def test_many_accounts_of_one_application_server_come_back_at_once(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        names = [f"entity{n}" for n in range(KNOWN_PER_ADDRESS)]
        accounts = [AccountSettings.model_validate({"name": name, "password_hash": HASH}) for name in names]
        async with books(shared_redis) as (book,):
            before = Authenticator(Accounts(accounts), book)
            for name in names:
                assert await attempt(before, GOOD, name, PASSWORD) == "in"
            after = Authenticator(Accounts(accounts), book)
            heard = await asyncio.gather(*(attempt(after, GOOD, name, PASSWORD) for name in names))
            assert heard == ["in"] * len(names)

    run(scenario())


def test_what_is_shared_ends_with_the_last_who_waits() -> None:
    async def scenario() -> None:
        shared, begun, ended = Shared(), [], []

        async def work() -> int:
            begun.append(1)
            try:
                await asyncio.sleep(0.01)
                return 7
            finally:
                ended.append(1)

        waiting = [asyncio.create_task(shared.ask(b"k", work)) for _ in range(2)]
        await asyncio.sleep(0)
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        assert await shared.ask(b"k", work) == 7  # not what is being ended
        assert (len(begun), len(ended)) == (2, 2)

    run(scenario())


def test_existing_and_unknown_users_hear_the_same(shared_redis: RedisServer) -> None:
    """At every step of a guesser's way, from one address and from many."""

    async def scenario() -> None:
        async with books(shared_redis) as (book,):
            heard = {}
            for user, net in (("user", "10.4.0"), ("nobody", "10.5.0")):
                door = authenticator(book)
                alone = [await attempt(door, f"{net}.1", user) for _ in range(4)]
                spread = [await attempt(door, f"{net}.{2 + number}", user) for number in range(4)]
                heard[user] = (alone, spread)
            assert heard["user"] == heard["nobody"]
            assert heard["user"] == (["out"] * 3 + ["refused"], ["out", "out", "refused", "refused"])

    run(scenario())


def test_refusals_end(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        now = [0.0]
        async with books(shared_redis, limits=FailureLimits(1, 9, 0.05)) as (book,):
            door = authenticator(book)
            door._clock = lambda: now[0]
            assert [await attempt(door, BAD), await attempt(door, BAD)] == ["out", "refused"]
            now[0] += 0.06

            async def over() -> bool:
                return (await book.ask(BAD, "user")).address == 0

            await eventually(over)
            assert await attempt(door, BAD) == "out"

    run(scenario())


def test_without_the_queue_server_nobody_is_judged(shared_redis: RedisServer) -> None:
    class Down(Forgiving):
        async def ask(self, address: str, user: str) -> None:  # type: ignore[override]
            raise QueueDown("away")

    async def scenario() -> None:
        door = authenticator(Down())
        assert await attempt(door, GOOD, password=PASSWORD) == "busy"

    run(scenario())


def test_turns_go_to_the_known_first() -> None:
    async def scenario() -> None:
        turns, order = Turns(strangers=3, known=2, per_address=9), []
        release = asyncio.Event()

        async def take(name: str, known: bool) -> None:
            async with turns.turn(name, known):
                order.append(name)
                await release.wait()

        tasks = [asyncio.create_task(take("first", False))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(take(f"stranger {n}", False)) for n in range(3)]
        tasks += [asyncio.create_task(take(f"known {n}", True)) for n in range(2)]
        await asyncio.sleep(0)
        for name, known in (("one more", False), ("one more", True)):
            with pytest.raises(TooManyWaiting):
                await take(name, known)
        tasks[1].cancel()  # while waiting
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["first", "known 0", "known 1", "stranger 1", "stranger 2"]
        await asyncio.wait_for(take("after all", False), 1)

    run(scenario())


def test_a_turn_that_is_given_and_cancelled_at_once_goes_to_the_next() -> None:
    async def scenario() -> None:
        turns, seen = Turns(), []

        async def take(name: str) -> None:
            async with turns.turn(name, False):
                seen.append(name)

        async with turns.turn("holder", False):
            waiting = [asyncio.create_task(take(name)) for name in ("a", "b")]
            await asyncio.sleep(0)
        waiting[0].cancel()  # its future is set, it has not run yet
        await asyncio.gather(*waiting, return_exceptions=True)
        assert seen == ["b"]
        await asyncio.wait_for(take("c"), 1)

    run(scenario())


def test_what_a_guesser_hears_on_the_wire(shared_redis: RedisServer, certificate: Certificate) -> None:
    files = (str(certificate.certificate), str(certificate.key))
    wrong, right = (f"AUTH PLAIN {b64(f'{chr(0)}user{chr(0)}{word}')}" for word in ("wrong", PASSWORD))

    async def secured(client: Client) -> Client:
        await client.hello()
        await client.upgrade()
        return client

    async def scenario() -> None:
        async with (
            books(shared_redis, limits=FailureLimits(2, 99, 60)) as (book,),
            listening(RecordingQueue(), settings(tls=files, network=False), book) as house,
        ):
            patient = await secured(await house.connect("127.0.9.9"))
            client = await secured(await house.connect("127.0.8.8"))
            assert [(await client.ask(wrong))[:9] for _ in range(2)] == ["535 5.7.8"] * 2
            told = [await client.ask(right) for _ in range(MAX_REFUSALS)]
            assert told == ["454 4.7.0 too many failed authentications, try again later"] * MAX_REFUSALS
            assert await client.rest() == "421 4.7.0 too many failed authentications\r\n"
            shunned = await house.connect("127.0.8.8")
            assert await shunned.rest() == "421 4.7.0 too many failed authentications\r\n"
            assert (await patient.ask(right)).startswith("235 2.7.0")
            assert house.metric("smtp_server_rejections", reason="auth_refused") == MAX_REFUSALS

    run(scenario())


def test_a_network_account_is_let_in_though_somebody_guesses_beside_it(
    shared_redis: RedisServer, certificate: Certificate
) -> None:
    files = (str(certificate.certificate), str(certificate.key))

    async def scenario() -> None:
        async with (
            books(shared_redis, limits=FailureLimits(1, 99, 60)) as (book,),
            listening(RecordingQueue(), settings(tls=files), book) as house,
        ):
            client = await house.connect()
            await client.hello()
            await client.upgrade()
            assert (await client.ask(f"AUTH PLAIN {b64(f'{chr(0)}user{chr(0)}no')}"))[:3] == "535"
            beside = await house.connect()
            await beside.hello()
            assert (await beside.transaction()).startswith("250 ")

    run(scenario())


def test_the_fail2ban_filter_reads_our_lines_and_no_clients_words(certificate: Certificate) -> None:
    text = (REPOSITORY / "config" / "fail2ban" / "tambo.conf").read_text()
    (pattern,) = re.findall(r"^failregex = (.+)$", text, re.M)
    failregex = re.compile(pattern.replace("<HOST>", r"(?P<host>[\d.:a-f]+)"))
    files = (str(certificate.certificate), str(certificate.key))
    user = 'x","client":"192.0.2.66","event":"authentication failed'

    async def scenario() -> None:
        async with listening(RecordingQueue(), settings(tls=files, network=False)) as house:
            client = await house.connect()
            await client.hello()
            await client.upgrade()
            assert (await client.ask(f"AUTH PLAIN {b64(f'{chr(0)}{user}{chr(0)}no')}"))[:3] == "535"

    with structlog.testing.capture_logs() as captured:
        run(scenario())
    lines = [logs._to_bytes(None, "", line).decode() for line in captured]
    told = [line for line in lines if '"event":"authentication failed"' in line]
    assert len(told) == 1 and orjson.loads(told[0])["user"] == user
    assert [found["host"] for line in lines if (found := failregex.search(line))] == ["127.0.0.1"]


def test_an_operator_sees_and_ends_a_refusal(shared_redis: RedisServer, tmp_path: Path) -> None:
    configuration = tmp_path / "tambo.toml"
    configuration.write_text(f'[queue]\nurl = "{shared_redis.url}"\n[relayd]\nauth_failures_per_address = 2\n')

    async def fail() -> None:
        async with books(shared_redis, limits=FailureLimits(2, 20, 600)) as (book,):
            for _ in range(2):
                await book.failed(BAD, "user")

    def relayctl(*words: str) -> str:
        done = CliRunner().invoke(app, ["auth", *words, "--config", str(configuration)])
        return f"{done.exit_code} {done.stdout}"

    run(fail())
    told = relayctl("standing", "--address", BAD, "--user", "user")
    assert re.fullmatch(
        rf"0 {BAD}: refused for (600|599) s\nuser: not refused\nuser has not succeeded from {BAD} within a week\n", told
    )
    assert orjson.loads(relayctl("clear", "--address", BAD, "--json")[2:])["address_seconds"] == 0
    assert relayctl("standing", "--address", BAD) == f"0 {BAD}: not refused\n"
    assert relayctl("clear").startswith("2 ")
    assert relayctl("clear", "--address", "here").startswith("2 ")


def test_a_crowded_door_asks_about_who_comes_for_the_first_time_only() -> None:
    class Asked(Forgiving):
        asked = 0

        async def ask(self, address: str, user: str) -> Standing:
            self.asked += 1
            return Standing(0, 0, known=address == GOOD)

    class Crowd(Turns):
        """Says when somebody begins to wait."""

        def __init__(self) -> None:
            super().__init__(strangers=1)
            self.waits = asyncio.Event()

        async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
            if self._busy:
                self.waits.set()
            await super()._wait(queue)

    async def scenario() -> None:
        book, crowd = Asked(), Crowd()
        accounts = [AccountSettings.model_validate({"name": "user", "password_hash": HASH})]
        door = Authenticator(Accounts(accounts), book, turns=crowd)
        async with crowd.turn("10.9.0.1", False):
            waiting = asyncio.create_task(attempt(door, "10.9.0.2"))
            await crowd.waits.wait()
            asked = book.asked
            with pytest.raises(AuthBusy):
                await door.verify("user", b"wrong", WORSE, first=False)
            assert book.asked == asked
            knocking = asyncio.create_task(attempt(door, GOOD, password=PASSWORD))
            crowd.waits.clear()
            await crowd.waits.wait()
        assert await knocking == "in" and await waiting == "out"

    run(scenario())
