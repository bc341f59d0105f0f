"""The DSN parameters' values as they came, read again: xtext (RFC 3461 §4) and typed addresses (§4.2, RFC 6533 §3). Pure."""

from __future__ import annotations

import re

_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")


def decoded(text: str) -> str:
    """``jo+2Bx`` → ``jo+x``; what is no hexchar stays as it is. May hold any character up to U+00FF, line ends too."""
    return _HEXCHAR.sub(lambda found: chr(int(found[1], 16)), text)


def typed(orcpt: str) -> str:
    """An ORCPT as field body: ``rfc822;jo+2Bx@example.org`` → ``rfc822; jo+x@example.org``; "" when it has no type.

    Type ``utf-8`` is no xtext: it has a 7-bit form of its own, which is made where it came in UTF-8.
    """
    kind, _, address = orcpt.partition(";")
    if not kind or not address:
        return ""
    if kind.lower() == "utf-8":
        return f"{kind}; " + "".join(c if c.isascii() else f"\\x{{{ord(c):02X}}}" for c in address)
    return f"{kind}; {decoded(address)}"
