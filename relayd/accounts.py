"""Who may submit: accounts found by client network or by AUTH user. One index, swapped whole on reload."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from config.settings import AccountSettings, IPNetwork, is_inside

_WIDEST = {4: 16, 6: 48}  # an account holds one office or data centre, not a region


def _network(account: AccountSettings, text: str) -> IPNetwork:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"accounts.{account.name}.networks: {error}") from None
    if network.prefixlen < _WIDEST[network.version]:
        raise ValueError(f"accounts.{account.name}.networks: {text} is wider than /{_WIDEST[network.version]}")
    if not (is_inside(network.network_address) and is_inside(network.broadcast_address)):
        raise ValueError(
            f"accounts.{account.name}.networks: {text} is public; only private networks go without password"
        )
    return network


@dataclass(slots=True)
class _Index:
    users: dict[str, AccountSettings] = field(default_factory=dict)
    networks: dict[tuple[int, int, int], AccountSettings] = field(default_factory=dict)  # version, prefix, bits
    prefixes: dict[int, list[int]] = field(default_factory=lambda: {4: [], 6: []})


def _build(accounts: Iterable[AccountSettings]) -> _Index:
    index = _Index()
    taken: list[tuple[IPNetwork, str]] = []
    for account in accounts:
        if account.password_hash is not None:
            user = account.user or account.name
            if user in index.users:
                raise ValueError(f"accounts.{account.name}.user: {user} is also the user of {index.users[user].name}")
            index.users[user] = account
        for text in account.networks:
            network = _network(account, text)
            for other, owner in taken:
                if other.version == network.version and other.overlaps(network):
                    raise ValueError(f"accounts.{account.name}.networks: {text} overlaps {other} of {owner}")
            taken.append((network, account.name))
            bits = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            index.networks[network.version, network.prefixlen, bits] = account
            if network.prefixlen not in index.prefixes[network.version]:
                index.prefixes[network.version].append(network.prefixlen)
    return index


class Accounts:
    """Index of accounts. Sessions keep the account they were given; the next look-up sees the new index."""

    def __init__(self, accounts: Iterable[AccountSettings] = ()) -> None:
        """Raises ValueError naming the account for networks too wide, public or overlapping, and for a user twice."""
        self._index = _build(accounts)

    def swap(self, accounts: Iterable[AccountSettings]) -> None:
        """Replace everything; on ValueError the old index stays."""
        self._index = _build(accounts)

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

    def by_user(self, user: str) -> AccountSettings | None:
        return self._index.users.get(user)

    @property
    def password_hashes(self) -> list[str]:
        """Stored argon2id hashes, for choosing what an unknown user costs."""
        return [a.password_hash.get_secret_value() for a in self._index.users.values() if a.password_hash is not None]
