"""What a DSN gives back of the original: its header, or after a failure and RET=FULL all of it (RFC 3461 §6.2). Pure."""

from __future__ import annotations

import binascii

HEADER_LIMIT = 16_384  # bytes of the original's header that are returned
FULL_LIMIT = 1_048_576  # of the whole original; a larger one is returned as its header
LINE_LIMIT = 998  # RFC 5322 §2.1.1, without CRLF
CRLF = b"\r\n"


def returned_part(content: bytes, full: bool) -> bytes:
    """The third part of the report; 8-bit only if the body of ``content`` is and goes back whole."""
    return _whole(content) if full and fits(content) else _header(content)


def fits(content: bytes) -> bool:
    """Whether it may go back whole."""
    return len(content) <= FULL_LIMIT


def _whole(content: bytes) -> bytes:
    """RFC 2046 §5.2.1 allows message/rfc822 no encoding; message/global (RFC 6532 §3.7) may have any."""
    end = content.find(b"\r\n\r\n")
    header = content[:end] if end >= 0 else content
    if not (header.isascii() and _has_good_lines(content)):
        return entity("message/global", "quoted-printable", quoted_printable(content))
    return entity("message/rfc822", "7bit" if content.isascii() else "8bit", content)


def _header(content: bytes) -> bytes:
    header = original_header(content)
    if header.isascii() and _has_good_lines(header):
        return entity("text/rfc822-headers", "7bit", header)
    return entity("text/rfc822-headers", "quoted-printable", quoted_printable(header))


def original_header(content: bytes, limit: int = HEADER_LIMIT) -> bytes:
    """The header of a message, whole fields only, at most ``limit`` bytes; CRLF line ends."""
    end = content.find(b"\r\n\r\n")
    if content.startswith(CRLF):
        return b""
    header = content[: end + 2] if end >= 0 else content
    if len(header) <= limit:
        return header if header.endswith(CRLF) or not header else header + CRLF
    cut = header.rfind(CRLF, 0, limit - 1)
    while cut > 0 and header[cut + 2 : cut + 3] in b" \t":  # the next line continues the field
        cut = header.rfind(CRLF, 0, cut)
    return header[: cut + 2] if cut > 0 else b""


def _has_good_lines(data: bytes) -> bool:
    """Fit for 7bit or 8bit (RFC 2045 §2.7, 2.8): no NUL, CR and LF only together, no line too long."""
    if b"\0" in data:
        return False
    lines = data.split(CRLF)
    return all(len(line) <= LINE_LIMIT and b"\r" not in line and b"\n" not in line for line in lines)


def quoted_printable(data: bytes) -> bytes:
    """RFC 2045 §6.7, CRLF in and out; a bare CR or LF is encoded, for it is no line end."""
    lines = (binascii.b2a_qp(line, istext=False).replace(b"\n", CRLF) for line in data.split(CRLF))
    return CRLF.join(lines)


def entity(content_type: str, encoding: str, body: bytes) -> bytes:
    head = f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return head.encode("ascii") + body
