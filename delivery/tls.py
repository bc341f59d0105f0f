"""TLS towards next hops: how much of it, one shared context, and the memory of hosts whose TLS is broken."""

from __future__ import annotations

import ssl
from collections import OrderedDict
from enum import StrEnum


class TlsMode(StrEnum):
    NONE = "none"
    OPPORTUNISTIC = "opportunistic"  # when offered; in clear when it is not, or is broken (RFC 7435)
    REQUIRED = "required"  # never in clear; the certificate is not verified, so this stops listeners, not impostors


def opportunistic_context() -> ssl.SSLContext:
    """Make one per process and share it: a context costs 0.1 ms without a CA bundle, 20 ms with.

    Certificates of MX hosts are not verified: who falls back to clear gains nothing by refusing a self-signed one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    return context


class BrokenTls:
    """Hosts whose handshake failed lately: go there in clear at once. Bounded; the oldest memory goes first."""

    def __init__(self, keep_seconds: float = 3600.0, most: int = 10_000) -> None:
        self._keep = keep_seconds
        self._most = most
        self._until: OrderedDict[str, float] = OrderedDict()

    def remember(self, host: str, now: float) -> None:
        self._until.pop(host, None)
        self._until[host] = now + self._keep
        if len(self._until) > self._most:
            self._until.popitem(last=False)

    def mode(self, host: str, wanted: TlsMode, now: float) -> TlsMode:
        """What to ask of ``host``; REQUIRED is never weakened."""
        until = self._until.get(host)
        if until is None:
            return wanted
        if until <= now:
            del self._until[host]
            return wanted
        return TlsMode.NONE if wanted is TlsMode.OPPORTUNISTIC else wanted

    def __len__(self) -> int:
        return len(self._until)
