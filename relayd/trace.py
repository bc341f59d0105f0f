"""CRLF line ends and our Received field. Pure bytes."""

from __future__ import annotations

import ipaddress
import re
import time

from relayd.policy import Client

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNSAFE = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_HELO_LIMIT = 255


def normalise(content: bytes) -> bytes:
    """Every CR, LF and CRLF becomes CRLF, and the last line has one: no next hop, however lax, sees a line end that we
    did not see.

    Done after dot-unstuffing, which knows CRLF only, and before the client of the next hop stuffs again: a
    ``LF.LF`` inside is a line of content by then and travels as ``..`` (RFC 5321 §2.3.8, CVE-2024-27305).
    """
    rest = content.replace(b"\r\n", b"")  # a third of the time that counting the three takes
    if b"\r" in rest or b"\n" in rest:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return content if content.endswith(b"\r\n") or not content else content + b"\r\n"


def date(now: float) -> str:
    """RFC 5322 §3.3 date-time in UTC; `now` in Unix seconds. Independent of the locale."""
    t = time.gmtime(now)
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_DAYS[t.tm_wday]}, {t.tm_mday} {_MONTHS[t.tm_mon - 1]} {t.tm_year} {clock} +0000"


def address_literal(address: str) -> str:
    """``[192.0.2.1]`` or ``[IPv6:2001:db8::1]`` (RFC 5321 §4.1.3)."""
    return f"[IPv6:{address}]" if ipaddress.ip_address(address).version == 6 else f"[{address}]"


def received(client: Client, hostname: str, message_id: str, now: float) -> bytes:
    """Our trace field (RFC 5321 §4.4). What the client called itself is cut to harmless characters.

    ``hide_client``: the from clause, which the grammar wants, names the relay itself.
    """
    if client.account is not None and client.account.hide_client:
        origin = hostname
    else:
        origin = f"{_UNSAFE.sub('?', client.helo[:_HELO_LIMIT])} ({address_literal(client.address)})"
    return (
        f"Received: from {origin}\r\n\tby {hostname} with {client.protocol} id {message_id};\r\n\t{date(now)}\r\n"
    ).encode("ascii")
