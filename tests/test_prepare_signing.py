"""relayd with keys: what it takes is signed, what it cannot sign is told, and a key that does not serve changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from config.settings import Settings
from relayd.prepare import Keys, Preparation
from relayd.server import terms
from signing import keys, proof, record
from signing.dkim import Signer
from tests.listening import RecordingQueue, listening, run, settings


def with_keys(directory: Path, **account: object) -> Settings:
    made = settings()
    accounts = [one.model_copy(update=account) for one in made.accounts]
    signing = made.signing.model_copy(update={"directory": str(directory)})
    return made.model_copy(update={"signing": signing, "accounts": tuple(accounts)})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for algorithm in ("rsa-2048", "ed25519"):
        keys.generate(tmp_path, "b.example", algorithm, now=time.time() - 60)
    assert len(keys.rotate(tmp_path, "b.example", now=time.time() - 1, overlap=60)) == 2
    return tmp_path


def test_what_is_put_verifies(directory: Path) -> None:
    records = {key.name: record.text(key) for key in keys.load(str(directory)).keys}

    async def scenario() -> None:
        async with listening(settings_=with_keys(directory)) as house:
            client = await house.connect()
            await client.hello()
            assert (await client.transaction("Subject: x\r\n\r\n" + "y" * 3000 + "\r\n")).startswith("250 ")
            (message,) = house.queue.messages
            assert house.queue.warnings == [()]
            assert message.content.count(b"\r\nDKIM-Signature: ") == 2
            for number in range(2):
                assert proof.verify(message.content, records.get, number) == ""

    run(scenario())


def test_unsigned_is_flagged_counted_and_said_in_the_event(directory: Path) -> None:
    async def scenario() -> None:
        async with listening(settings_=with_keys(directory)) as house:
            client = await house.connect()
            await client.hello()
            assert (await client.transaction("From: a@other.example\r\n\r\n")).startswith("250 2.0.0 queued as ")
            assert house.queue.warnings == [("unsigned",)]
            assert house.metric("total_messages_flagged", warning="unsigned") == 1

    run(scenario())


def test_unsigned_is_refused_where_the_account_says_so(directory: Path) -> None:
    async def scenario() -> None:
        async with listening(settings_=with_keys(directory, unsigned="refuse")) as house:
            client = await house.connect()
            await client.hello()
            said = await client.transaction("From: a@other.example\r\n\r\n")
            assert said == "550 5.7.20 no DKIM key for the domain of the From address"
            (event,) = house.queue.events
            assert (event.kind, event.status, event.reason) == ("rejected", "5.7.20", "unsigned")

    run(scenario())


def test_keys_are_read_again_on_reload_and_a_bad_one_keeps_the_old(directory: Path) -> None:
    async def scenario() -> None:
        made = with_keys(directory)
        async with listening(settings_=made) as house:
            client = await house.connect()
            await client.hello()
            bad = directory / "c.example" / "s1.pem"
            bad.parent.mkdir()
            bad.write_bytes(b"no key")
            bad.chmod(0o600)
            with pytest.raises(ValueError, match=r"s1\.pem"):
                house.relayd.check(made)
            await client.transaction()
            bad.unlink()
            keys.generate(directory, "c.example", "ed25519", now=time.time() - 60)
            keys.rotate(directory, "c.example", now=time.time() - 1, overlap=60)
            house.relayd.check(made)
            house.relayd.reload(made)
            await client.transaction("From: a@c.example\r\n\r\n")
            assert house.queue.warnings == [(), ()]

    run(scenario())


def test_a_signer_that_fails_is_our_fault(directory: Path) -> None:
    class Failing(Signer):
        def sign(self, content: bytes, from_domain: str, now: float) -> bytes:
            raise RuntimeError("secret detail")

    async def scenario() -> None:
        made = with_keys(directory)
        async with listening(RecordingQueue(), made) as house:
            client = await house.connect()
            await client.hello()
            before = house.relayd._handler.preparation
            failing = Keys(Failing(keys.load(str(directory)).keys))
            house.relayd._handler.preparation = Preparation(terms(made), failing, house.queue.new_id)
            assert await client.transaction() == "451 4.3.0 temporary failure, try again"
            house.relayd._handler.preparation = before
            assert (await client.transaction()).startswith("250 ")
            assert len(house.queue.messages) == 1

    run(scenario())
