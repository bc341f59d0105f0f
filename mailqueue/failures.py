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
from mailqueue.batch import Batch
from mailqueue.scripts import Argument, Shard

KNOWN_SECONDS = 7 * 86_400.0

Question = tuple[str, str, str]  # verb, address, user


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
    """All methods raise QueueDown. Calls that come while one is under way share the next round trip."""

    def __init__(self, shard: Shard, limits: FailureLimits) -> None:
        self._shard = shard
        self.limits = limits
        self._batch: Batch[Question, Standing] = Batch(self._run, most=64, give_up=lambda _questions: True)

    async def ask(self, address: str, user: str) -> Standing:
        return await self._batch.add(("ask", address, user))

    async def failed(self, address: str, user: str) -> Standing:
        return await self._batch.add(("fail", address, user))

    async def succeeded(self, address: str, user: str) -> Standing:
        return await self._batch.add(("good", address, user))

    async def clear(self, address: str = "", user: str = "") -> Standing:
        """An operator's word: what either has failed is forgotten."""
        return await self._batch.add(("clear", address, user))

    async def _run(self, _number: int, questions: list[Question]) -> list[Standing | Exception]:
        limits = self.limits
        words: list[Argument] = [int(limits.window_seconds * 1000), limits.by_address, limits.by_user]
        words.append(int(KNOWN_SECONDS * 1000))
        for verb, address, user in questions:
            words += [verb, client_network(address), user_hash(user)]
        answer = await self._shard.run("auth", words)
        return [Standing(by_address / 1000, by_user / 1000, bool(known)) for by_address, by_user, known in answer]


def client_network(address: str) -> str:
    """What failures of a client count under; "" stays ""."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


def user_hash(user: str) -> str:
    return hashlib.sha256(user.encode("utf-8", "surrogateescape")).hexdigest()[:24] if user else ""
