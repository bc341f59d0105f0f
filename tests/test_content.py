"""How messages are stored: any bytes come back, damage is said, a dictionary is used where it pays and kept no longer."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailqueue import content, inspect
from mailqueue.content import RAW, ZSTD, ZSTD_DICTIONARY, Decoder, Encoder, header, shrink, unpack_envelope
from mailqueue.message import Message, new_id
from mailqueue.worker import Settlement
from tests.queue_kit import claim_all, events, is_empty, message, now_ms, opened, working

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def read(stored: content.Stored, message_id: str = "id", decoder: Decoder | None = None) -> Message:
    """As a reader does it that has only what lies in the queue."""
    decoder = decoder or Decoder()
    lacking = decoder.lacks(stored.value)
    if lacking is not None:
        assert lacking == stored.dictionary
        decoder.add(lacking, shrink(stored.dictionary_bytes))
    return decoder.decode(message_id, stored.value)


def page(number: int, template: int = 0) -> bytes:
    """One of many personalised mails: 6 KB of a template that zstd alone can't shrink much, and a name."""
    body = random.Random(template).randbytes(3000).hex()
    return (
        f"Subject: aviso\r\nX-Number: {number}\r\n\r\nEstimada {random.Random(number).random()}:\r\n{body}\r\n".encode()
    )


def encoded(encoder: Encoder, body: bytes, **changes: Any) -> tuple[Message, content.Stored]:
    sent = message(content=body, **changes)
    return sent, encoder.encode(sent)


@given(
    st.binary(max_size=4096),
    st.lists(TEXT, min_size=1, max_size=5),
    TEXT,
    st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT, max_size=4),
    st.booleans(),
)
def test_whatever_is_put_comes_back(
    body: bytes, recipients: list[str], reverse_path: str, metadata: dict[str, Any], smtputf8: bool
) -> None:
    sent = message(
        *recipients, content=body, reverse_path=reverse_path, metadata=metadata, smtputf8=smtputf8, unknown="once:60"
    )
    stored = Encoder().encode(sent)
    assert read(stored, sent.envelope.id) == sent
    assert unpack_envelope(sent.envelope.id, stored.value) == sent.envelope


@given(
    st.lists(
        st.sampled_from([page(1), page(2), b"x" * 5000, b"", os.urandom(2000)]) | st.binary(max_size=3000), max_size=12
    )
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_sequence_of_one_campaign_comes_back(bodies: list[bytes]) -> None:
    """One encoder, whatever it makes of dictionaries; one reader that learns them as it goes."""
    encoder, decoder = Encoder(), Decoder()
    for body in bodies:
        sent, stored = encoded(encoder, body, campaign="enero")
        assert read(stored, sent.envelope.id, decoder) == sent


def test_the_codec_fits_the_content() -> None:
    encoder = Encoder()
    assert header(encoded(encoder, b"")[1].value)[0] == RAW
    assert header(encoded(encoder, os.urandom(900))[1].value)[0] == RAW
    assert header(encoded(encoder, b"a" * 900)[1].value)[0] == ZSTD
    assert header(encoded(Encoder(dictionaries=False), page(1))[1].value) == (ZSTD, content.NO_DICTIONARY)


def test_a_dictionary_is_adopted_when_it_pays() -> None:
    encoder = Encoder()
    first, *rest = (encoded(encoder, page(n), campaign="enero") for n in range(10))
    assert first[1].dictionary == b"", "the first has nothing to lean on"
    assert {header(stored.value)[0] for _, stored in rest} == {ZSTD_DICTIONARY}
    assert max(len(stored.value) for _, stored in rest) < len(first[1].value) / 5
    assert all(read(stored).content == sent.content for sent, stored in rest)


def test_no_dictionary_where_mails_differ() -> None:
    encoder = Encoder()
    for n in range(40):
        _, stored = encoded(encoder, page(n, template=n), campaign="enero")
        assert stored.dictionary == b""


def test_campaigns_and_accounts_do_not_share() -> None:
    encoder = Encoder()
    for n, (account, campaign) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "")]):
        _, stored = encoded(encoder, page(n), account=account, campaign=campaign)
        assert stored.dictionary == b""
    _, stored = encoded(encoder, page(9), account="a", campaign="y")
    assert stored.dictionary != b""


def test_candidates_and_readers_are_bounded() -> None:
    encoder, decoder = Encoder(most=2), Decoder(most=2)
    for n in range(9):
        for copy in range(2):
            sent, stored = encoded(encoder, page(copy, n), campaign=str(n))
            assert read(stored, sent.envelope.id, decoder) == sent
    assert len(encoder._candidates) == 2
    assert len(decoder._by_id) == 2


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=300)
def test_damage_is_said_never_delivered(seed: int, data: st.DataObject) -> None:
    """One byte changed or the end cut off: ValueError, or an envelope that differs; never other content, and no other
    exception. (What can't be compressed carries no checksum and is left out here.)"""
    rng = random.Random(seed)
    encoder = Encoder()
    encoded(encoder, page(0))
    sent, stored = encoded(encoder, page(1), metadata={"n": 1})
    value = bytearray(stored.value)
    if data.draw(st.booleans()):
        at = rng.randrange(len(value))
        value[at] ^= rng.randrange(1, 256)
    else:
        del value[rng.randrange(len(value)) :]
    decoder = Decoder()
    decoder.add(stored.dictionary, shrink(stored.dictionary_bytes))
    try:
        lacking = decoder.lacks(bytes(value))
        found = decoder.decode("id", bytes(value)) if lacking is None else None
    except ValueError:
        return
    assert found is None or found.content == sent.content


@pytest.mark.parametrize(
    "value",
    [b"", b"\x01", b"\x02" + bytes(13), b"\x01\x09" + bytes(12), b"\x01\x00" + bytes(8) + b"\x00\x00\x00\x02{}"]
    + [b"\x01\x00" + bytes(8) + len(row).to_bytes(4, "big") + row for row in (b"[]", b"[1]", b"nonsense", b"[[[[")],
)
def test_what_is_no_message_is_a_value_error(value: bytes) -> None:
    with pytest.raises(ValueError):
        Decoder().decode("id", value)


def test_a_size_from_a_damaged_frame_is_not_allocated() -> None:
    """A zstd frame that says it holds 64 EB."""
    value = Encoder().encode(message(content=b"")).value
    with pytest.raises(ValueError):
        Decoder().decode("id", b"\x01\x01" + value[2:] + b"\x28\xb5\x2f\xfd\xe0" + b"\xfe" * 8 + b"\x01\x00\x00")


def test_another_dictionary_under_the_id_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="damaged"):
        Decoder().add(b"12345678", shrink(b"other"))
    with pytest.raises(ValueError):
        Decoder().add(b"12345678", b"no zstd frame")


# ── in the queue ───────────────────────────────────────────────────────────────────────────────────────────────────


def final(item: Any) -> Settlement:
    return Settlement(item, "final")


async def dictionaries(queue: Any) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """(references by id, seconds to live of d:<id>, -1 = for ever)."""
    shard = queue.shards[0]
    counts = await shard.command("HGETALL", shard.prefix + "dr")
    names = await shard.command("KEYS", shard.prefix + "d:*")
    ttl = {name.split(b"d:", 1)[1]: await shard.command("TTL", name) for name in names}
    return {k: int(v) for k, v in zip(counts[::2], counts[1::2], strict=True)}, ttl


def test_a_dictionary_lives_as_long_as_its_messages(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            sent = [message(f"u{n}@x.test", content=page(n), campaign="enero") for n in range(6)]
            for one in sent:
                await queue.put(one)
            counts, ttl = await dictionaries(queue)
            assert list(counts.values()) == [5], "the first message stands alone"
            assert list(ttl.values()) == [-1]
            async with opened(shared_redis.url) as elsewhere, working(elsewhere) as reader:
                items = await claim_all(reader)
                assert {item.message.envelope.id: item.message for item in items} == {m.envelope.id: m for m in sent}
                for item in items[:5]:
                    await reader.settle(final(item))
                assert (await dictionaries(queue))[0] != {}
                await reader.settle(final(items[5]))
            counts, ttl = await dictionaries(queue)
            assert counts == {}
            assert 3500 < next(iter(ttl.values())) <= 3600, "an idle one lives an hour more"
            await queue.put(message(content=page(7), campaign="enero"))
            counts, ttl = await dictionaries(queue)
            assert (list(counts.values()), list(ttl.values())) == ([1], [-1])
            assert await claim_all(worker) != []

    asyncio.run(scenario())


def test_a_dictionary_that_vanished_is_sent_again(shared_redis: Any) -> None:
    """The server forgot it an hour after its last message; the writer still believes it is there."""

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for n in range(3):
                await queue.put(message(content=page(n), campaign="enero"))
            for item in await claim_all(worker):
                await worker.settle(final(item))
            (name,) = await queue.shards[0].command("KEYS", "{q0}:d:*")
            await queue.shards[0].command("DEL", name)
            again = [message(f"u{n}@x.test", content=page(n), campaign="enero") for n in range(10, 20)]
            verdicts = await asyncio.gather(*(queue.put(one) for one in again))
            assert {verdict.kind for verdict in verdicts} == {"queued"}
            async with opened(shared_redis.url) as elsewhere, working(elsewhere) as reader:
                got = {item.message.envelope.id: item.message for item in await claim_all(reader)}
            assert got == {one.envelope.id: one for one in again}
            assert [event.kind for event in await events(queue)].count("received") == 13

    asyncio.run(scenario())


def test_a_duplicate_leaves_no_dictionary_behind(shared_redis: Any) -> None:
    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            await queue.put(message("a@x.test", content=page(1), campaign="enero"), "lote")
            verdict = await queue.put(message("a@x.test", content=page(2), campaign="enero"), "lote")
            assert verdict.kind == "duplicate"
            assert await dictionaries(queue) == ({}, {})

    asyncio.run(scenario())


def test_a_message_that_waits_for_its_dsn_keeps_its_dictionary(shared_redis: Any) -> None:
    from tests.test_reaper import reaper

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue, working(queue) as worker:
            for n in range(2):
                await queue.put(message("a@x.test", content=page(n), campaign="enero"))
            for item in await claim_all(worker):
                await worker.settle(Settlement(item, "final", record=b"1", record_due=now_ms() + 60_000))
            assert list((await dictionaries(queue))[0].values()) == [1]
            notices = await reaper(queue).notices()
            assert sorted(notice.message.content for notice in notices if notice.message) == [page(0), page(1)]
            for notice in notices:
                assert await reaper(queue).notified(notice, [])
            assert (await dictionaries(queue))[0] == {}
            assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["message", "envelope", "gone", "dictionary"])
def test_a_damaged_message_is_held_and_the_others_go_on(shared_redis: Any, what: str) -> None:
    from tests.test_reaper import reaper

    async def scenario() -> None:
        async with opened(shared_redis.url) as queue:
            first = message("sana@x.test", content=page(0), campaign="enero")
            bad = message("mala@x.test", content=page(1), campaign="enero", expires_at=now_ms() - 1)
            for one in (first, bad):
                await queue.put(one)
            shard, name = queue.shards[0], "{q0}:m:" + bad.envelope.id
            if what == "message":
                await shard.command("APPEND", name, "xxxxxxxx")
            elif what == "envelope":
                await shard.command("SETRANGE", name, 10, b"\0\0\0\1[")
            elif what == "gone":
                await shard.command("DEL", name)
            else:
                (dictionary,) = await shard.command("KEYS", "{q0}:d:*")
                await shard.command("SET", dictionary, "xxxx")
            if what in ("message", "envelope"):
                await shard.command("ZADD", "{q0}:x", now_ms() + 9999, bad.envelope.id)
            async with working(queue) as worker:
                (item,) = await claim_all(worker)
                assert item.message == first
                await worker.settle(final(item))
            facts = await inspect.summary(queue.shards)
            assert (facts.held, facts.open, facts.in_flight) == (1, 1, 0)
            (held,) = [event for event in await events(queue) if event.kind == "held"]
            assert (held.id, held.reason) == (bad.envelope.id, "stored message is damaged")
            await shard.command("ZADD", "{q0}:x", 1, bad.envelope.id)
            await reaper(queue).look()  # maintenance goes on, whatever it finds

    asyncio.run(scenario())


def test_ids_of_dictionaries_are_their_content() -> None:
    one, two = Encoder(), Encoder()
    for encoder in (one, two):
        encoded(encoder, page(0))
    assert encoded(one, page(1))[1].dictionary == encoded(two, page(2))[1].dictionary
    assert new_id() != new_id()
