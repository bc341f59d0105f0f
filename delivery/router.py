"""From a destination to the next hops worth trying, or the reason why there are none.

An undeliverable destination is a Route with a failure, not an exception. No next hop leads back into this machine:
loopback, unspecified, multicast and reserved addresses and our own listeners are refused (5.4.6), private ones unless
allowed (5.4.4). In a sandbox it is the other way round: loopback only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from config.routes import PREFIX
from delivery.mx import MOST_HOSTS, MxHost, MxHosts, RouteFailure, is_host_name, select_hosts
from delivery.provider import Rules, site_of
from delivery.resolver import AddressAnswer, Outcome, Resolver, name_of
from delivery.routes import Routes
from delivery.smarthost import Smarthost

MOST_ADDRESSES = 8  # of one host

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Host:
    """A next hop; ``addresses`` is never empty and in the order to try them."""

    name: str
    preference: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """``hosts`` in the order to try them, or ``failure``. ``stale``: DNS fails, this is what it said last.

    By a smarthost, site and group are "route:<name>", also where it failed. ``by_pool``: because of the mail's sender,
    so that other mail for the destination goes another way.
    """

    destination: str
    group: str = "default"
    site: str = ""
    hosts: tuple[Host, ...] = ()
    failure: RouteFailure | None = None
    stale: bool = False
    smarthost: Smarthost | None = None
    by_pool: bool = False

    @property
    def by_smarthost(self) -> bool:
        return self.site.startswith(PREFIX)


class Refusal(Enum):
    LOOP = "5.4.6"
    PRIVATE = "5.4.4"


def is_local(address: IPAddress) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class NextHopPolicy:
    """Which addresses may be next hops. ``own``: (address, port) of our own listeners, 0.0.0.0 and :: mean every
    address of this machine, which ``local`` knows; ``port``: of the next hops."""

    port: int = 25
    sandbox: bool = False
    allow_private: bool = False
    own: frozenset[tuple[str, int]] = frozenset()
    local: Callable[[IPAddress], bool] = is_local

    def refuses(self, address: str) -> Refusal | None:
        """Why not, or None. Raises ValueError if it is no address."""
        parsed = effective(address)
        if self.is_own(parsed) or _nowhere(parsed):
            return Refusal.LOOP
        if self.sandbox:
            return None if parsed.is_loopback else Refusal.PRIVATE
        if parsed.is_loopback:
            return Refusal.LOOP
        return None if parsed.is_global or self.allow_private else Refusal.PRIVATE

    def refuses_smarthost(self, address: str, port: int, *, given: bool) -> Refusal | None:
        """An operator chose it: private is allowed, and loopback when the address itself is ``given``."""
        parsed = effective(address)
        if replace(self, port=port).is_own(parsed) or _nowhere(parsed):
            return Refusal.LOOP
        if self.sandbox:
            return None if parsed.is_loopback else Refusal.PRIVATE
        return Refusal.LOOP if parsed.is_loopback and not given else None

    def is_own(self, parsed: IPAddress) -> bool:
        for own, port in self.own:
            mine = effective(own)
            if port == self.port and (mine == parsed or (mine.is_unspecified and self.local(parsed))):
                return True
        return False


def effective(address: str) -> IPAddress:
    """The address that is really connected to: an IPv4-mapped one is IPv4."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def _nowhere(address: IPAddress) -> bool:
    """No host of another: the kernel takes 0/8 and :: for itself, the others have no single owner."""
    if address.version == 4 and int(address) >> 24 == 0:
        return True
    # is_reserved covers 240/4 with the broadcast address; ::1 is "reserved" too, and has its own rule.
    return address.is_unspecified or address.is_multicast or (address.is_reserved and not address.is_loopback)


class Router:
    """``own_names``: under which we are an MX. ``ipv6``: whether a source with an IPv6 address exists. ``routes`` are
    replaced on reload."""

    def __init__(
        self,
        resolver: Resolver,
        rules: Rules,
        policy: NextHopPolicy,
        *,
        own_names: Collection[str],
        ipv6: bool,
        rng: random.Random | None = None,
        most_hosts: int = MOST_HOSTS,
        routes: Routes | None = None,
    ) -> None:
        self.routes = routes or Routes()
        self._resolver = resolver
        self._rules = rules
        self._policy = policy
        self._own_names = frozenset(name.lower().removesuffix(".") for name in own_names)
        self._ipv6 = ipv6
        self._rng = rng or random.Random()
        self._most_hosts = most_hosts

    async def route(self, destination: str, pool: str = "default") -> Route:
        """``destination``: a recipient domain, A-labels or U-labels. Never raises for what DNS says.

        ``pool`` "route:<name>": the route of the mail's sender. No MX is asked for then, and no other way is taken.
        """
        smarthost = self.routes.for_recipient(destination)
        if smarthost is not None:
            return await self._to_smarthost(Route(destination, smarthost.name, smarthost.name, smarthost=smarthost))
        if pool.startswith(PREFIX):
            route = Route(destination, pool, pool, smarthost=self.routes.named(pool), by_pool=True)
            return await self._to_smarthost(route)
        return await self._to_mx(destination)

    async def _to_smarthost(self, route: Route) -> Route:
        """Every failure is temporary: an operator will mend it, and no sender could."""
        if route.smarthost is None:
            return replace(route, failure=RouteFailure("4.3.5", f"{route.site} is not in the configuration"))
        settings = route.smarthost.settings
        given, said = _is_address(settings.host), ""
        if given:
            addresses: Sequence[str] = (settings.host,)
        else:
            answer = await self._resolver.addresses(settings.host)
            addresses, said = answer.addresses, answer.text
        usable = [
            address
            for address in addresses
            if not self._policy.refuses_smarthost(address, settings.port, given=given)
            and (self._ipv6 or effective(address).version == 4)
        ]
        if usable:
            return replace(route, hosts=(Host(settings.host, 0, self._in_order(usable)),))
        if not addresses:
            return replace(route, failure=RouteFailure("4.4.3", said or f"{settings.host} has no address"))
        text = f"{settings.host} leads to addresses that are not allowed for a smarthost or cannot be reached from here"
        return replace(route, failure=RouteFailure("4.4.4", text))

    async def _to_mx(self, destination: str) -> Route:
        if destination.startswith("["):
            return _failed(destination, "5.4.6", f"domain literal {destination} refused")
        name = name_of(destination)
        ascii_name = name.to_text(omit_final_dot=True) if name is not None else ""
        if not is_host_name(ascii_name):
            return _failed(destination, "5.1.2", f"{destination!r} is no domain name")
        answer = await self._resolver.mx(ascii_name)
        if answer.outcome is Outcome.TEMPORARY:
            return _failed(destination, "4.4.3", answer.text)
        if answer.outcome in (Outcome.NO_DOMAIN, Outcome.BAD_NAME):
            return _failed(destination, "5.1.2", answer.text)
        records = answer.records if answer.outcome is Outcome.FOUND else None
        selected = select_hosts(ascii_name, records, own=self._own_names, rng=self._rng, most=self._most_hosts)
        if isinstance(selected, RouteFailure):
            return Route(destination, failure=selected)
        return await self._with_addresses(destination, selected, answer.stale, implicit=records is None)

    async def _with_addresses(self, destination: str, selected: MxHosts, stale: bool, implicit: bool) -> Route:
        rule = self._rules.for_destination(destination, selected.names)
        answers = await asyncio.gather(*(self._resolver.addresses(host.name) for host in selected.tried))
        stale = stale or any(answer.stale for answer in answers)
        hosts, refusals = self._usable(selected.tried, answers)
        failure = None if hosts else _no_host(destination, answers, refusals, implicit)
        return Route(destination, rule.name, site_of(rule, selected.names), hosts, failure, stale)

    def _usable(
        self, tried: Sequence[MxHost], answers: Sequence[AddressAnswer]
    ) -> tuple[tuple[Host, ...], set[Refusal]]:
        """Hosts with the addresses we may connect to, and why others were refused."""
        hosts, refusals = [], set()
        loop_at: int | None = None  # an MX that is this machine by address is as bad as one by name
        for host, answer in zip(tried, answers, strict=True):
            if loop_at is not None and host.preference >= loop_at:
                break
            good = []
            for address in answer.addresses:
                refusal = self._policy.refuses(address)
                if refusal is not None:
                    refusals.add(refusal)
                elif self._ipv6 or effective(address).version == 4:
                    good.append(address)
                if self._policy.is_own(effective(address)):
                    loop_at = host.preference
            if good and (loop_at is None or host.preference < loop_at):
                hosts.append(Host(host.name, host.preference, self._in_order(good)))
        if loop_at is not None:
            hosts = [host for host in hosts if host.preference < loop_at]
        return tuple(hosts), refusals

    def _in_order(self, addresses: list[str]) -> tuple[str, ...]:
        """Shuffled, because the cache would send everybody to the first; IPv4 first, where receivers ask for less."""
        self._rng.shuffle(addresses)
        return tuple(sorted(addresses, key=lambda address: effective(address).version))[:MOST_ADDRESSES]


def _no_host(
    destination: str, answers: Sequence[AddressAnswer], refusals: set[Refusal], implicit: bool
) -> RouteFailure:
    for answer in answers:
        if answer.outcome is Outcome.TEMPORARY:
            return RouteFailure("4.4.3", answer.text)
    if refusals:
        worst = Refusal.LOOP if Refusal.LOOP in refusals else Refusal.PRIVATE
        what = "this machine or nowhere" if worst is Refusal.LOOP else "addresses that are not allowed as next hop"
        return RouteFailure(worst.value, f"the mail hosts of {destination} lead to {what}")
    if implicit and all(not answer.addresses for answer in answers):
        return RouteFailure("5.1.2", f"{destination} has neither MX nor address records")
    return RouteFailure("4.4.4", f"no mail host of {destination} has a usable address")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _failed(destination: str, status: str, text: str) -> Route:
    return Route(destination, failure=RouteFailure(status, text))
