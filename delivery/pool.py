"""Pure choices of a site: how many sessions are worth having, and which sources may open one."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from config.addresses import expand
from config.settings import DeliverySettings

CHAIN = 4  # transactions handed to a session at once: it works on while the next claim is under way


@dataclass(frozen=True, slots=True)
class Source:
    """One of our addresses; "" = whatever the kernel chooses."""

    address: str
    hostname: str
    weight: int = 1

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.address).version if self.address else 0


def pools_of(settings: DeliverySettings) -> dict[str, tuple[Source, ...]]:
    """Sources by pool, ranges spelled out. Without any pool there is one named "default" with the kernel's choice."""
    found = {
        pool.name: tuple(
            Source(address, source.hostname or settings.hostname, source.weight)
            for source in pool.sources
            for address in expand(source.address)
        )
        for pool in settings.pools
    }
    return {name: sources for name, sources in found.items() if sources} or {
        "default": (Source("", settings.hostname),)
    }


def sessions_worth_having(demand: int, most: int) -> int:
    """For ``demand`` transactions that wait: 1 → 1, 10 → 4, 100 → 16, 1,000 → 64, 10,000 → 252.

    Few for few, so that a handful of mails does not knock from every source at once; many for many, because a
    next hop answers a session in its own time and only more sessions make it faster.
    """
    return min(most, math.ceil(demand**0.6)) if demand > 0 else 0


def usable(
    sources: Sequence[Source],
    versions: Collection[int],
    resting: Collection[str],
    stopped: Collection[str],
) -> list[Source]:
    """Sources that may open a session now: an address of a family that the next hops have, not turned off (weight 0),
    not resting, not stopped."""
    return [
        source
        for source in sources
        if source.weight > 0
        and (not source.address or source.version in versions)
        and source.address not in resting
        and source.address not in stopped
    ]
