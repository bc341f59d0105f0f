"""Finding the end of mail data in bulk. Pure: a buffer goes in, content comes out.

Only ``<CRLF>.<CRLF>`` ends data (RFC 5321 §4.1.1.4); the CRLF that ends the DATA command counts as the first one.
The search is one ``find`` per buffer instead of one read per line, which is what makes DATA cheap.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"
_HELD_BACK = len(_END) - 1  # octets that may be the beginning of the end


class ContentScanner:
    """Takes content out of a growing buffer. Over the limit it goes on reading, but keeps nothing."""

    def __init__(self, limit: int) -> None:
        """`limit`: octets of content after dot-unstuffing."""
        self._limit = limit
        # Stuffing adds at most one octet to three (a line of one dot), so beyond this it cannot fit any more.
        self._most_stuffed = limit + limit // 3 + 3
        self._kept = bytearray()
        self.content = b""  # valid once feed() said True: dots unstuffed (§4.5.2), ends in CRLF unless empty
        self._begun = False
        self._dropped = False
        self.received = 0  # octets on the wire, for those who watch progress
        self.too_big = False

    @property
    def held(self) -> int:
        """Octets kept so far."""
        return len(self._kept) or len(self.content)

    def drop(self) -> None:
        """Keep nothing from now on, read on to the end."""
        self._dropped = True
        self._kept = bytearray()
        self.content = b""

    def feed(self, buffer: bytearray) -> bool:
        """Consume from the front of `buffer`; True when the end was found, what follows it stays in the buffer."""
        if not self._begun:
            if buffer.startswith(b".\r\n"):
                del buffer[:3]
                return True
            if len(buffer) < 3:
                return False  # may still become a lone dot
            self._begun = True
        end = buffer.find(_END)
        if end >= 0:
            self._finish(buffer, end + 2)
            del buffer[: end + len(_END)]
            return True
        if len(buffer) > _HELD_BACK:
            size = len(buffer) - _HELD_BACK
            if self._fits(size):
                with memoryview(buffer) as view:
                    self._kept += view[:size]
            del buffer[:size]
        return False

    def _fits(self, size: int) -> bool:
        self.received += size
        if self.received > self._most_stuffed and not self.too_big:
            self.too_big = True
            self._kept = bytearray()
        return not (self.too_big or self._dropped)

    def _finish(self, buffer: bytearray, size: int) -> None:
        if not self._fits(size):
            return
        with memoryview(buffer) as view:
            if self._kept:
                self._kept += view[:size]
                stuffed = bytes(self._kept)
                self._kept = bytearray()
            else:
                stuffed = bytes(view[:size])
        if stuffed.startswith(b"."):
            stuffed = stuffed[1:]
        content = stuffed.replace(b"\r\n.", b"\r\n") if b"\r\n." in stuffed else stuffed
        self.too_big = len(content) > self._limit
        self.content = b"" if self.too_big else content
