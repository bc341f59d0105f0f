"""The ledger: exact concurrency, hidden limits, multisets, and a file that is right whoever is killed."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from sandbox.receipts import Receipts
from sandbox.server import Sandbox
from sandbox.slots import Slot, Slots, peer_has_closed
from tests.test_sandbox_mx import EOF, dialogue, with_sandbox


def test_concurrency_counts_until_221_or_eof(tmp_path: Path) -> None:
    """All hosts of a provider share the slots of a source; other sources and providers have their own."""

    async def scenario(sandbox: Sandbox) -> None:
        slots, key = sandbox.ledger.slots, ("google", "127.0.1.1")
        async with dialogue(sandbox, "mx1.gmail.test", "127.0.1.1") as first:
            await first.greet()
            async with dialogue(sandbox, "mx2.gmail.test", "127.0.1.1") as second:
                await second.greet()
                assert len(slots.open(key)) == 2
                async with dialogue(sandbox, "mx1.gmail.test", "127.0.1.2") as other:
                    await other.greet()
                assert (await second.say("QUIT"))[0].startswith("221")
                assert len(slots.open(key)) == 1  # 221 frees it, the socket may stay open
                async with dialogue(sandbox, "mx1.gmail.test", "127.0.1.1") as third:
                    await third.greet()
        assert slots.peaks == {key: 2, ("google", "127.0.1.2"): 1}
        await sandbox.stop()
        assert sandbox.ledger.receipts().peaks() == slots.peaks

    with_sandbox(tmp_path, scenario)


def test_a_connection_closed_before_the_next_is_opened_never_counts_twice(tmp_path: Path) -> None:
    """The peer closes without QUIT and connects anew at once; the sandbox may see the accept before the EOF."""

    async def scenario(sandbox: Sandbox) -> None:
        address = (sandbox.host_address("mx1.gmail.test"), sandbox.port)

        def churn() -> None:
            for _ in range(300):
                with socket.create_connection(address, source_address=("127.0.1.1", 0)) as client:
                    assert client.recv(100).startswith(b"220")

        await asyncio.to_thread(churn)
        assert sandbox.ledger.slots.peaks == {("google", "127.0.1.1"): 1}
        assert sandbox.ledger.connections["google", "127.0.1.1"] == 300

    with_sandbox(tmp_path, scenario)


@pytest.mark.parametrize("unread", [b"", b"QUIT\r\n"])
def test_an_eof_not_yet_read_frees_the_slot(unread: bytes) -> None:
    """The kernel knows of the FIN before the loop has read it, even behind unread octets; an open peer still counts."""
    slots, key = Slots(), ("google", "127.0.1.1")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect(number: int) -> tuple[socket.socket, socket.socket, int]:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            descriptor = accepted.fileno()
            return client, accepted, slots.take(Slot(key, number, lambda: peer_has_closed(descriptor)), limit=1)

        first, kept_first, seen = connect(1)
        assert seen == 1
        first.sendall(unread)
        first.close()
        second, kept_second, seen = connect(2)
        assert seen == 1 and slots.peaks[key] == 1 and slots.open(key) == [2]
        third, kept_third, seen = connect(3)
        assert seen == 2 and slots.peaks[key] == 2
        for opened in (kept_first, second, kept_second, third, kept_third):
            opened.close()


def test_many_at_once_are_counted_exactly(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async def one(entered: asyncio.Barrier) -> None:
            async with dialogue(sandbox, "mx1.many.test", "127.0.1.7") as client:
                await client.greet()
                async with entered:
                    pass
                await client.say("QUIT")

        for size in (3, 40, 12):
            barrier = asyncio.Barrier(size)
            await asyncio.gather(*(one(barrier) for _ in range(size)))
        assert sandbox.ledger.slots.peaks == {("many.test", "127.0.1.7"): 40}
        assert sandbox.ledger.slots.total == 0

    with_sandbox(tmp_path, scenario)


@pytest.mark.parametrize("refuse", [False, True])
def test_hidden_limits(tmp_path: Path, refuse: bool) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gmail.test") as client, dialogue(sandbox, "mx2.gmail.test") as beyond:
            await client.greet()
            greeting = await beyond.read()
            assert greeting.startswith("421" if refuse else "220")
            assert [(await client.send("a@gmail.test"))[:3] for _ in range(2)] == ["250", "250"]
            assert (await client.send("a@gmail.test")).startswith("421" if refuse else "250")
            if refuse:
                assert await client.read() == EOF
        connections, messages = sandbox.ledger.receipts().violations()
        assert (connections["limit"], connections["most"], connections["seen"]) == ("connections_per_source", 1, 2)
        assert (connections["site"], connections["source"], connections["open"]) == ("google", "127.0.0.1", [1, 2])
        assert (messages["limit"], messages["most"], messages["seen"]) == ("messages_per_connection", 2, 3)

    google = {"name": "google", "connections_per_source": 1, "messages_per_connection": 2, "refuse": refuse}
    with_sandbox(tmp_path, scenario, extra={"providers": [google]})


def test_multisets_and_sources(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        sent: Counter[str] = Counter()
        for source, count in (("127.0.1.1", 5), ("127.0.1.2", 3)):
            async with dialogue(sandbox, "mx1.gmail.test", source) as client:
                await client.greet()
                for number in range(count):
                    await client.send("a@gmail.test", f"<{number}@x>")
                    sent[f"<{number}@x>"] += 1
        receipts = sandbox.ledger.receipts()
        assert receipts.message_ids() == sent
        assert receipts.deliveries()["<0@x>", "a@gmail.test"] == 2
        assert receipts.by_source("google") == {"127.0.1.1": 5, "127.0.1.2": 3}
        assert not receipts.by_source("apple")
        assert sandbox.ledger.report()["accepted"] == {"gmail.test": {"127.0.1.1": 5, "127.0.1.2": 3}}

    with_sandbox(tmp_path, scenario)


def test_on_file_before_it_is_said(tmp_path: Path) -> None:
    """Once the 250 is read the line is in the file, without any flush."""

    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            for number in range(3):
                await client.send("a@gob.test", f"<{number}@x>")
                assert f"<{number}@x>" in Receipts(sandbox.ledger.path).message_ids()

    with_sandbox(tmp_path, scenario)


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"kind":"message","id":"<1@x>","to":["a@b"],"source":"s","answered":true}\n{"kind":"mess')
    assert Receipts(path).message_ids() == {"<1@x>": 1}


def test_restart_appends(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            await client.send("a@gob.test", "<1@x>")

    for _ in range(2):
        with_sandbox(tmp_path, scenario)
    assert Receipts(tmp_path / "ledger.jsonl").message_ids() == {"<1@x>": 2}
    assert os.stat(tmp_path / "ledger.jsonl").st_mode & 0o007 == 0
