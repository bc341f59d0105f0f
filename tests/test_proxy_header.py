"""The PROXY protocol's header, by octets: what it names, and that nothing else passes for one."""

from __future__ import annotations

import random

import pytest

from relayd.listener.proxy import MOST_OCTETS, SIGNATURE, Header, Malformed, crc32c
from tests.listening import proxied


def read(octets: bytes) -> tuple[str | None, bytes]:
    """Fed as a socket would: never more than is lacking. (address, what was left)."""
    header = Header()
    while header.lacks:
        taken, octets = octets[: header.lacks], octets[header.lacks :]
        if not taken:
            raise EOFError
        header.feed(taken)
    return header.address, octets


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def test_it_names_the_client_and_takes_not_one_octet_more() -> None:
    assert read(proxied("10.1.2.3") + b"EHLO") == ("10.1.2.3", b"EHLO")
    assert read(proxied("2001:db8::1") + b"\x16\x03") == ("2001:db8::1", b"\x16\x03")
    assert read(proxied("10.1.2.3", extensions=tlv(2, b"mx.test") + tlv(4, bytes(9)))) == ("10.1.2.3", b"")
    assert read(proxied("10.1.2.3", extensions=tlv(2, b"x"), checksum=True)) == ("10.1.2.3", b"")


def test_a_balancer_that_names_nobody() -> None:
    assert read(proxied(None) + b"x") == (None, b"x")
    assert read(SIGNATURE + b"\x20\x11\0\x0c" + bytes(12)) == (None, b"")  # LOCAL: the addresses do not count
    assert read(SIGNATURE + b"\x21\0\0\x05hello") == (None, b"")  # UNSPEC: nor does what follows


def test_byte_by_byte() -> None:
    header = Header()
    for octet in proxied("10.1.2.3", extensions=tlv(1, b"h2"), checksum=True):
        assert header.lacks
        header.feed(bytes((octet,)))
    assert (header.lacks, header.address) == (0, "10.1.2.3")


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"EHLO x\r\n", "no PROXY"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "no PROXY"),
        (b"\x16\x03\x01", "no PROXY"),
        (SIGNATURE[:5] + b"x", "no PROXY"),
        (SIGNATURE + b"\x11\x11\0\x0c" + bytes(12), "version"),
        (SIGNATURE + b"\x22\x11\0\x0c" + bytes(12), "version"),
        (SIGNATURE + b"\x21\x12\0\x0c" + bytes(12), "family"),  # UDP
        (SIGNATURE + b"\x21\x31\0\xd8" + bytes(216), "family"),  # unix socket
        (SIGNATURE + b"\x21\x11\0\x0b" + bytes(11), "shorter"),
        (SIGNATURE + b"\x21\x21\0\x0c" + bytes(12), "shorter"),
        (SIGNATURE + b"\x21\x11" + (MOST_OCTETS - 15).to_bytes(2, "big"), "octets"),
        (SIGNATURE + b"\x21\x11\xff\xff", "octets"),
        (proxied("10.1.2.3", extensions=b"\x02\0\x09x"), "cut off"),
        (proxied("10.1.2.3", extensions=b"\x02"), "cut off"),
        (proxied("10.1.2.3", extensions=tlv(3, b"abcd")), "does not match"),
        (proxied("10.1.2.3", extensions=tlv(3, b"abc")), "wrong length"),
    ],
)  # fmt: skip
def test_nothing_else_passes(octets: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        read(octets)


def test_every_damage_under_a_checksum_shows() -> None:
    whole = proxied("10.1.2.3", extensions=tlv(2, b"mx.test"), checksum=True)
    dice = random.Random(1)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << dice.randrange(8)
        try:
            address, _ = read(bytes(damaged))
        except (Malformed, EOFError):
            continue
        # What turns PROXY into LOCAL or hides the checksum's type names nobody, or is not checked by the protocol itself.
        assert address is None or at == whole.rindex(b"\x03\0\x04"), at


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
