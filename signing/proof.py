"""A key proved: dkimpy, which shares no code with our signer, verifies what it signed against the key's own record."""

from __future__ import annotations

from collections.abc import Callable

from signing import record
from signing.dkim import Key, Signer

Lookup = Callable[[str], str | None]  # name of a record, without a dot at its end → its text


def prove(key: Key) -> None:
    """ValueError when a probe message signed with the key does not verify."""
    content = (
        f"From: Probe <probe@{key.domain}>\r\nTo: probe@{key.domain}\r\nSubject: A  probe\r\n"
        f"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <probe@{key.domain}>\r\n"
        "List-Unsubscribe: <https://example.org/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        "\r\nOne line \t of a body. \r\n\r\n"
    ).encode("ascii")
    began = 0.0 if key.since == float("inf") else key.since
    probe = Key(key.domain, key.selector, key.private, since=began)
    signed = Signer([probe]).sign(content, key.domain, began) + content
    why = verify(signed, {key.name: record.text(key)}.get)
    if why:
        raise ValueError(f"what {key.name} signs does not verify: {why}")


def verify(content: bytes, lookup: Lookup, number: int = 0) -> str:
    """dkimpy's verdict on one DKIM-Signature field, 0 = the topmost: "" when it verifies, else why not."""
    import dkim  # noqa: PLC0415  (0.2 s, most of it dnspython; only keys and tests pay for it)

    def text(name: bytes, timeout: float = 5) -> bytes | None:
        found = lookup(name.decode("ascii").removesuffix("."))
        return found.encode("ascii") if found is not None else None

    try:
        verified = dkim.DKIM(content, minkey=1024).verify(idx=number, dnsfunc=text)
    except dkim.DKIMException as error:
        return str(error) or type(error).__name__
    return "" if verified else "signature or body hash differs"
