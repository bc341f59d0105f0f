"""The end of data: found in bulk, by nothing but <CRLF>.<CRLF>, whatever the chunks."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd import trace
from relayd.listener.content import ContentScanner
from tests.listening import HEADER, listening, run, settings

ALPHABET = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\0", b"MAIL FROM:<x@y>"]), max_size=40)
FALSE_ENDS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r\n.\0\r\n", b"\n.\r", b"\r.\n", b"\r\n\0.\r\n",
    b"\r\n. \r\n", b"\r\r.\r\n",
]  # fmt: skip


def stuff(content: bytes) -> bytes:
    """What a client that follows RFC 5321 §4.5.2 puts on the wire, the end included."""
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


def scan(wire: bytes, cuts: list[int], limit: int = 10**6) -> tuple[ContentScanner, bytes]:
    """Feed `wire` cut at these places; the scanner and what it left behind the end."""
    scanner, buffer, done = ContentScanner(limit), bytearray(), False
    edges = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        buffer += wire[start:end]
        done = done or scanner.feed(buffer)
    assert done
    return scanner, bytes(buffer)


@given(parts=ALPHABET, cuts=st.lists(st.integers(0, 500), max_size=8), tail=st.binary(max_size=12))
def test_any_cutting_gives_the_same_content(parts: list[bytes], cuts: list[int], tail: bytes) -> None:
    content = b"".join(parts)
    content += b"" if content.endswith(b"\r\n") or not content else b"\r\n"
    scanner, rest = scan(stuff(content) + tail, cuts)
    assert scanner.content == content
    assert rest == tail


@given(parts=ALPHABET)
def test_byte_by_byte(parts: list[bytes]) -> None:
    content = b"".join(parts) + b"\r\n"
    wire = stuff(content)
    scanner, rest = scan(wire + b"QUIT\r\n", list(range(len(wire) + 6)))
    assert (scanner.content, rest) == (content, b"QUIT\r\n")


@pytest.mark.parametrize("false_end", FALSE_ENDS)
@pytest.mark.parametrize("before", [b"", b"x"])
def test_nothing_else_ends_data(false_end: bytes, before: bytes) -> None:
    scanner, buffer = ContentScanner(1000), bytearray()
    for byte in before + false_end + b"MAIL FROM:<evil@x.example>":
        buffer.append(byte)
        assert not scanner.feed(buffer)


@given(parts=ALPHABET)
def test_normalised_content_has_no_lone_cr_or_lf(parts: list[bytes]) -> None:
    final = trace.normalise(b"".join(parts))
    assert final.count(b"\r") == final.count(b"\n") == final.count(b"\r\n")
    assert trace.normalise(final) == final
    assert b"".join(parts).replace(b"\r", b"").replace(b"\n", b"") == final.replace(b"\r\n", b"")


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_the_limit_counts_unstuffed_octets(step: int) -> None:
    exact = (b".\r\n" * 400)[:1198] + b"\r\n"
    for content, fits in ((exact, True), (exact[:-2] + b"x\r\n", False)):
        wire = stuff(content)
        scanner, _ = scan(wire, list(range(0, len(wire), step)), limit=1200)
        assert scanner.too_big is not fits
        assert scanner.content == (content if fits else b"")


def test_over_the_limit_nothing_is_kept() -> None:
    scanner, buffer = ContentScanner(1000), bytearray()
    for _ in range(1000):
        buffer += b"y" * 1000
        assert not scanner.feed(buffer)
        assert len(scanner._kept) <= 1337 and len(buffer) <= 4
    buffer += b"\r\n.\r\n"
    assert scanner.feed(buffer) and scanner.too_big and not buffer


@pytest.mark.parametrize("false_end", FALSE_ENDS)
def test_smuggling_over_a_socket_is_one_message_with_clean_lines(false_end: bytes) -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            smuggled = (
                b"first" + false_end + b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<v@y.example>\r\nDATA\r\nsecond\r\n"
            )
            assert (await client.transaction(smuggled)).startswith("250 2.0.0 queued")
            content = house.queue.content
            assert content.replace(b"\r\n", b"").count(b"\r") == content.replace(b"\r\n", b"").count(b"\n") == 0
            assert content.count(b"second") == 1
            assert await client.ask("NOOP") == "250 2.0.0 ok"

    run(scenario())


def test_too_much_content_is_read_to_its_end_and_refused() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(max_message_bytes=10_000)) as house:
            client = await house.connect()
            await client.hello()
            assert (
                await client.transaction(b"x" * 76 + b"\r\n" + b"y" * 300_000 + b"\r\n") == "552 5.3.4 message too big"
            )
            assert (await client.transaction(b"z" * (9_998 - len(HEADER)) + b"\r\n")).startswith("250 ")
            (event,) = house.queue.events
            assert (event.kind, event.reason, event.recipient) == ("rejected", "size", "b@c.example")
            assert house.metric("smtp_server_rejections", reason="size") == 1
            assert house.metric("smtpsrv_read_data_duration_count") == 2

    run(scenario())


def test_a_big_message_passes_whole() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            content = b"Subject: big\r\n\r\n" + (b"." * 70 + b"\r\n") * 60_000
            assert (await client.transaction(stuff(content)[:-3])).startswith("250 ")
            assert house.queue.content == content

    run(scenario())


def test_content_that_stops_coming_ends_the_session() -> None:
    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=0.2)) as house:
            client = await house.connect()
            await client.hello()
            for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
                await client.ask(command)
            await client.send(b"some ")
            assert await client.rest() == "421 4.4.2 content took too long\r\n"

    run(scenario())


def test_content_that_drips_ends_at_the_total_limit() -> None:
    """Every octet is progress for the idle limit; the limit on the whole holds all the same."""

    async def scenario() -> None:
        async with listening(settings_=settings(idle_seconds=0.4, data_seconds=1.0)) as house:
            client = await house.connect()
            await client.hello()
            for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
                await client.ask(command)
            began = asyncio.get_running_loop().time()
            answer = asyncio.ensure_future(client.farewell())
            while not answer.done():
                await client.send(b"x")
                await asyncio.wait([answer], timeout=0.1)
            assert answer.result() == "421 4.4.2 content took too long"
            assert 0.9 < asyncio.get_running_loop().time() - began < 2

    run(scenario())
