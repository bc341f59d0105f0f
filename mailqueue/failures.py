"""Failed authentications, as all relayd processes of one queue know them: counted by client network and by user.

Users are kept as hashes only: people type passwords into the wrong field. An IPv6 client counts by its /64, for that is
what one host has.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Self

from config.settings import RelaydSettings
from mailqueue.scripts import Argument, Shard

KNOWN_SECONDS = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Seconds for which the address and the user are refused, 0 = they are not; ``known``: the user has succeeded from
    this address within a week."""

    address: float
    user: float
    known: bool


@dataclass(frozen=True, slots=True)
class FailureLimits:
    """So many failures within ``window_seconds``, then as long a refusal."""

    by_address: int = 10
    by_user: int = 20
    window_seconds: float = 600.0

    @classmethod
    def of(cls, settings: RelaydSettings) -> Self:
        return cls(settings.auth_failures_per_address, settings.auth_failures_per_user, settings.auth_window_seconds)


class Failures:
    """All methods raise QueueDown."""

    def __init__(self, shard: Shard, limits: FailureLimits) -> None:
        self._shard = shard
        self.limits = limits

    async def ask(self, address: str, user: str) -> Standing:
        return await self._run("ask", address, user)

    async def failed(self, address: str, user: str) -> Standing:
        """A lost answer counts twice when it is asked again: callers do not."""
        return await self._run("fail", address, user)

    async def succeeded(self, address: str, user: str) -> Standing:
        return await self._run("good", address, user)

    async def clear(self, address: str = "", user: str = "") -> Standing:
        """An operator's word: what either has failed is forgotten."""
        return await self._run("clear", address, user)

    async def _run(self, verb: str, address: str, user: str) -> Standing:
        limits = self.limits
        window, known = int(limits.window_seconds * 1000), int(KNOWN_SECONDS * 1000)
        words: list[Argument] = [verb, client_network(address), user_hash(user)]
        words += [window, limits.by_address, limits.by_user, known]
        by_address, by_user, pair = await self._shard.run("auth", words)
        return Standing(by_address / 1000, by_user / 1000, bool(pair))


def client_network(address: str) -> str:
    """What failures of a client count under; "" stays ""."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


def user_hash(user: str) -> str:
    return hashlib.sha256(user.encode("utf-8", "surrogateescape")).hexdigest()[:24] if user else ""
