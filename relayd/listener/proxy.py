"""The PROXY protocol, version 2 (HAProxy's proxy-protocol.txt §2.2): who a balancer says is connected. Pure.

Octets go in as they come; :attr:`Header.lacks` says how many may be read before the header is whole, so that what
follows it (a TLS handshake perhaps) stays in the socket. Version 1 is text that a client could have sent: never read.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")  # signature, version and command, family and protocol, length of the rest
MOST_OCTETS = 536  # of the whole header: what a balancer may send in one segment (§2)
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_ADDRESS_OCTETS = {_TCP4: (4, 12), _TCP6: (16, 36)}  # of an address, of both with their ports
_CRC32C = 0x03  # type of the TLV


class Malformed(Exception):
    """Not a header that we take; the text says what is wrong, for the log."""


class Unsaid(Malformed):
    """Not one octet came."""


class Header:
    """One connection's header under way."""

    def __init__(self) -> None:
        self._octets = bytearray()
        self.lacks = _FIXED.size  # 0 = whole
        self.address: str | None = None  # the client's; None = the balancer speaks for itself or does not know

    @property
    def untouched(self) -> bool:
        return not self._octets

    def feed(self, octets: bytes) -> None:
        """At most ``lacks`` octets. Raises Malformed as soon as it shows."""
        assert len(octets) <= self.lacks
        self._octets += octets
        begun = min(len(self._octets), len(SIGNATURE))
        if self._octets[:begun] != SIGNATURE[:begun]:
            raise Malformed("no PROXY protocol version 2 header")
        self.lacks -= len(octets)
        if self.lacks:
            return
        if len(self._octets) == _FIXED.size:
            self.lacks = self._rest()
        if not self.lacks:
            self._read()

    def _rest(self) -> int:
        _, command, family, length = _FIXED.unpack_from(self._octets)
        if command not in (_LOCAL, _PROXY):
            raise Malformed(f"version and command 0x{command:02x}")
        if _FIXED.size + length > MOST_OCTETS:
            raise Malformed(f"header of {_FIXED.size + length} octets")
        if command == _PROXY and family not in (_UNSPECIFIED, _TCP4, _TCP6):
            raise Malformed(f"address family and protocol 0x{family:02x}")
        return int(length)

    def _read(self) -> None:
        _, command, family, length = _FIXED.unpack_from(self._octets)
        size, both = _ADDRESS_OCTETS.get(family, (0, 0))
        if length < both:
            raise Malformed("shorter than its addresses")
        if command == _PROXY and size:
            source = bytes(self._octets[_FIXED.size : _FIXED.size + size])
            self.address = str(ipaddress.ip_address(source))
        if family in (_TCP4, _TCP6):  # of others it is not known how long their addresses are
            self._check_sum(_FIXED.size + both)

    def _check_sum(self, at: int) -> None:
        for kind, begin, length in self._extensions(at):
            if kind != _CRC32C:
                continue
            if length != 4:
                raise Malformed("checksum of a wrong length")
            said = int.from_bytes(self._octets[begin : begin + 4], "big")
            blank = bytes(self._octets[:begin]) + bytes(4) + bytes(self._octets[begin + 4 :])
            if crc32c(blank) != said:
                raise Malformed("checksum does not match")

    def _extensions(self, at: int) -> Iterator[tuple[int, int, int]]:
        """(type, where its value begins, length) of each TLV."""
        end = len(self._octets)
        while at < end:
            if end - at < 3:
                raise Malformed("an extension is cut off")
            kind, length = self._octets[at], int.from_bytes(self._octets[at + 1 : at + 3], "big")
            at += 3 + length
            if at > end:
                raise Malformed("an extension is cut off")
            yield kind, at - length, length


def crc32c(octets: bytes) -> int:
    """RFC 4960 appendix B (Castagnoli). Bit by bit: at most 536 octets, once a connection, where a balancer wants it."""
    value = 0xFFFFFFFF
    for octet in octets:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
