"""Which hosts take mail for a destination, in which order (RFC 5321 §5.1, RFC 7505). Pure: names in, names out."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from delivery.reply import Reply

MOST_HOSTS = 10  # tried per destination: a longer list only keeps attempts from ever ending

# Letters, digits, hyphens; underscores stand in many zones. The last label has a letter: else it is a dotted quad.
_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*(?=[0-9_-]*[a-z])[a-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class RouteFailure:
    """Why a destination cannot be reached now, or at all. ``status``: its first digit says which (RFC 3463)."""

    status: str
    text: str
    code: int = 0  # reply code that fits; 0 = the general one of the status's class

    @property
    def permanent(self) -> bool:
        return self.status.startswith("5")

    @property
    def reply(self) -> Reply:
        """The failure as the reply a next hop would have given."""
        return Reply(self.code or (550 if self.permanent else 451), self.status, self.text, ())


@dataclass(frozen=True, slots=True)
class MxHost:
    preference: int
    name: str  # lower case, no final dot


@dataclass(frozen=True, slots=True)
class MxHosts:
    """``tried``: in the order to try them, capped; ``names``: all usable ones, sorted: what identifies the site."""

    tried: tuple[MxHost, ...]
    names: tuple[str, ...] = field(default=())


def is_host_name(name: str) -> bool:
    """A domain name in ASCII that could have addresses: no IP address, no empty label."""
    return _NAME.fullmatch(name) is not None


def select_hosts(
    destination: str,
    records: Sequence[tuple[int, str]] | None,
    *,
    own: Collection[str],
    rng: random.Random,
    most: int = MOST_HOSTS,
) -> MxHosts | RouteFailure:
    """Order the MX ``records`` ((preference, host name); None = the domain exists without any) of ``destination``.

    ``own``: the names under which this relay is an MX. Hosts of one preference are shuffled with ``rng``.
    """
    if records is None:
        records = [(0, destination)]  # implicit MX
    names = [(preference, name.lower().removesuffix(".")) for preference, name in records]
    if names and all(name == "" for _, name in names):
        return RouteFailure("5.1.10", f"{destination} accepts no mail (null MX)", 556)
    usable: dict[str, int] = {}
    for preference, name in sorted(names):
        if is_host_name(name):
            usable.setdefault(name, preference)
    if not usable:
        return RouteFailure("4.4.4", f"no MX record of {destination} names a host")
    ours = [preference for name, preference in usable.items() if name in own]
    if ours:
        # Who is an MX himself may hand on to better ones only, or two relays would play ball for ever.
        usable = {name: preference for name, preference in usable.items() if preference < min(ours)}
    if not usable:
        return RouteFailure("5.4.6", f"mail for {destination} loops back to this relay: it is its best MX itself")
    hosts: list[MxHost] = []
    for preference, group in groupby(sorted(usable.items(), key=_by_preference), key=_by_preference):
        equal = [MxHost(preference, name) for name, _ in group]
        rng.shuffle(equal)
        hosts += equal
    return MxHosts(tuple(hosts[:most]), tuple(sorted(usable)))


def _by_preference(item: tuple[str, int]) -> int:
    return item[1]
