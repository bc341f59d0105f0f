"""Lines over 998 octets (RFC 5321 §4.5.3.1.6) are broken as Postfix's smtp client breaks them: CRLF and a space after
998 octets, and after every 997 more. In a header the space makes a continuation of what follows; in a body it stays.

Done before signing, so that what is signed is what travels. Pure; expects CRLF line ends.
"""

from __future__ import annotations

LIMIT = 998  # smtp_line_length_limit of Postfix counts the same: without CRLF


def long_line(content: bytes, start: int = 0) -> int:
    """Offset of the first line over LIMIT at or behind `start`, itself the beginning of a line; -1 = none.

    Jumps from the last line end within reach to the next one: about one look per 1000 octets.
    """
    size = len(content)
    while size - start > LIMIT:
        end = content.rfind(b"\n", start, start + LIMIT + 2)
        if end < 0:
            return start
        start = end + 1
    return -1


def broken(content: bytes) -> bytes:
    """Content whose lines have at most LIMIT octets."""
    at = long_line(content)
    if at < 0:
        return content
    kept, position = [], 0
    while at >= 0:
        kept.append(content[position:at])
        end = content.find(b"\r\n", at)
        end = len(content) if end < 0 else end
        kept.append(content[at : at + LIMIT])
        for start in range(at + LIMIT, end, LIMIT - 1):
            kept += (b"\r\n ", content[start : min(start + LIMIT - 1, end)])
        position = end
        at = long_line(content, end + 2)
    kept.append(content[position:])
    return b"".join(kept)
