"""Who may submit: the accounts of the configuration file and those kept in the queue, found by name, AUTH user or
client network. One index, built anew and swapped whole on every change of either."""

from __future__ import annotations

import asyncio
import bisect
import ipaddress
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from config.check import network_problem
from config.settings import AccountSettings, IPNetwork
from mailqueue.accounts import Stored

_PAUSE_SECONDS = 3.0

log = structlog.get_logger("accounts")


@dataclass(slots=True)
class _Index:
    names: dict[str, AccountSettings] = field(default_factory=dict)
    users: dict[str, AccountSettings] = field(default_factory=dict)
    holders: list[AccountSettings] = field(default_factory=list)
    networks: dict[tuple[int, int, int], AccountSettings] = field(default_factory=dict)  # version, prefix, bits
    prefixes: dict[int, list[int]] = field(default_factory=lambda: {4: [], 6: []})
    taken: dict[int, list[tuple[int, int, str]]] = field(default_factory=lambda: {4: [], 6: []})  # first, last, whose
    password_networks: dict[str, tuple[IPNetwork, ...]] = field(default_factory=dict)

    def add(self, account: AccountSettings) -> None:
        """ValueError, naming the account, for what is wrong with it or contradicts another; then nothing was added."""
        at = f"accounts.{account.name}"
        if account.name in self.names:
            raise ValueError(f"{at}.name: there is another account of this name")
        if account.login in self.users:
            raise ValueError(f"{at}.user: {account.login} is also the user of {self.users[account.login].name}")
        networks: list[IPNetwork] = []
        for text in account.networks:
            if wrong := network_problem(text):
                raise ValueError(f"{at}.networks: {wrong}")
            network = ipaddress.ip_network(text)
            if other := self._overlapping(network):
                raise ValueError(f"{at}.networks: {text} overlaps {other}")
            if any(one.version == network.version and one.overlaps(network) for one in networks):
                raise ValueError(f"{at}.networks: {text} overlaps another one of this account")
            networks.append(network)
        try:
            sources = tuple(ipaddress.ip_network(text) for text in account.password_networks)
        except ValueError as error:
            raise ValueError(f"{at}.password_networks: {error}") from None
        self.names[account.name] = account
        if account.login is not None:
            self.users[account.login] = account
            self.holders.append(account)
        if sources:
            self.password_networks[account.name] = sources
        for network in networks:
            first, last = int(network.network_address), int(network.broadcast_address)
            bisect.insort(self.taken[network.version], (first, last, f"{network} of {account.name}"))
            bits = first >> (network.max_prefixlen - network.prefixlen)
            self.networks[network.version, network.prefixlen, bits] = account
            if network.prefixlen not in self.prefixes[network.version]:
                self.prefixes[network.version].append(network.prefixlen)

    def _overlapping(self, network: IPNetwork) -> str:
        """Those that are taken are apart: only the neighbours can overlap. "" = none does."""
        taken = self.taken[network.version]
        first, last = int(network.network_address), int(network.broadcast_address)
        at = bisect.bisect_left(taken, (first,))
        for start, end, whose in taken[max(at - 1, 0) : at + 1]:
            if start <= last and first <= end:
                return whose
        return ""


class Accounts:
    """Index of accounts. Sessions ask for their account anew at each mail transaction."""

    def __init__(self, accounts: Iterable[AccountSettings] = ()) -> None:
        """Accounts of the file. Raises ValueError naming the account for networks too broad, public or overlapping, and
        for a name or user twice."""
        self._kept: tuple[AccountSettings, ...] = ()
        self.left_out: dict[str, str] = {}  # account of the queue that does not count → why
        self.swap(accounts)

    def swap(self, accounts: Iterable[AccountSettings]) -> None:
        """Other accounts of the file; on ValueError everything stays as it is."""
        filed = tuple(accounts)
        index = _Index()
        for account in filed:
            index.add(account)
        self._filed = filed
        self._take(index)

    def keep(self, accounts: Iterable[AccountSettings]) -> None:
        """Other accounts of the queue. One that contradicts the file or an earlier one does not count, and is logged."""
        self._kept = tuple(accounts)
        index = _Index()
        for account in self._filed:
            index.add(account)
        self._take(index)

    def _take(self, index: _Index) -> None:
        left_out: dict[str, str] = {}
        for account in self._kept:
            try:
                index.add(account)
            except ValueError as error:
                left_out[account.name] = str(error)
        for name, why in left_out.items():
            if self.left_out.get(name) != why:
                log.error("account left out", account=name, why=why)
        self.left_out = left_out
        self._index = index

    def by_name(self, name: str) -> AccountSettings | None:
        return self._index.names.get(name)

    def by_address(self, address: str) -> AccountSettings | None:
        """The account whose network holds this client address; None for a stranger."""
        index = self._index
        if not index.networks:
            return None
        parsed = ipaddress.ip_address(address)
        number, width, version = int(parsed), parsed.max_prefixlen, parsed.version
        for prefix in index.prefixes[version]:
            account = index.networks.get((version, prefix, number >> (width - prefix)))
            if account is not None:
                return account
        return None

    def by_user(self, user: str, address: str | None = None) -> AccountSettings | None:
        """The account of an AUTH user whose password counts, from this client address if one is given. A disabled
        account's does not: AUTH answers it as it answers a stranger."""
        account = self._index.users.get(user)
        if account is None or account.disabled:
            return None
        networks = self._index.password_networks.get(account.name)
        if networks and address is not None and not any(ipaddress.ip_address(address) in one for one in networks):
            return None
        return account

    def renewed(self, account: AccountSettings, address: str, now: float) -> AccountSettings | None:
        """The account as it is now (Unix s), for who authenticated as it before; one that is gone counts as disabled.
        None: its password does not count any more, or not from this client address."""
        found = self.by_name(account.name)
        if found is None:
            return account.model_copy(update={"disabled": True})
        if found is account or found.disabled:
            return found
        known = set(account.hashes(now))
        counts = found.login is not None and self.by_user(found.login, address) is found
        return found if counts and known.intersection(found.hashes(now)) else None

    @property
    def holders(self) -> Sequence[AccountSettings]:
        """Accounts with a password, for choosing what an unknown user costs."""
        return self._index.holders


async def follow(changes: Callable[[], AsyncIterator[Stored]], keep: Callable[[Stored], object]) -> None:
    """Hands every new state of the queue's accounts to ``keep``, for ever; a fault in one holds up none of the next."""
    while True:
        try:
            async for stored in changes():
                keep(stored)
        except Exception:
            log.exception("accounts were not taken over")
        await asyncio.sleep(_PAUSE_SECONDS)
