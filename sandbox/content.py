"""What a host reads of a message's octets."""

from __future__ import annotations

import re

_MESSAGE_ID = re.compile(rb"^message-id:\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def message_id(content: bytes) -> str:
    """Value of the first Message-ID field of the header section; "" when there is none."""
    end = content.find(b"\r\n\r\n")
    found = _MESSAGE_ID.search(content, 0, end if end >= 0 else len(content))
    return found[1].strip().decode("utf-8", "replace") if found else ""


def unstuffed(content: bytes) -> bytes:
    """Content without the dots that transparency added (RFC 5321 §4.5.2)."""
    text = content[1:] if content.startswith(b".") else content
    return text.replace(b"\r\n..", b"\r\n.")
