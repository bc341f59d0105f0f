"""Rules of the settings that need more than one value: pure, every problem at once, plus warnings.

:func:`problems` are reasons to refuse a configuration, :func:`warnings` are said and accepted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from config import routes
from config.addresses import IPNetwork, network_inside, on_this_host
from config.schema import Problem
from config.settings import AccountSettings, ListenerSettings, Settings

Placed = tuple[str, AccountSettings]  # where it stands ("accounts[0]"), and the account
NO_SENDERS = '"{}" may send as anybody; list its addresses or domains, or write ["*"] if that is meant'
LONGEST_PREFIX = {4: 16, 6: 48}  # shortest prefix length that one account may claim


def problems(settings: Settings) -> list[Problem]:
    return [
        *account_problems(settings, [(f"accounts[{i}]", account) for i, account in enumerate(settings.accounts)]),
        *_ways_in(settings),
        *_pools(settings),
        *_listeners(settings),
        *routes.problems(settings),
    ]


def account_problems(settings: Settings, accounts: Sequence[Placed]) -> list[Problem]:
    """What is wrong with accounts, each alone and all together: those of the file, and those of the queue behind them.
    Of two that contradict each other the later one is named."""
    return [*_networks(accounts), *_identities(accounts), *_grants(settings, accounts), *_keys(settings, accounts)]


def warnings(settings: Settings) -> list[Problem]:
    """What is allowed but hardly meant."""
    found, delivery = [], settings.delivery
    if delivery.port != 25 and not delivery.sandbox:
        found.append(Problem("delivery.port", f"every next hop is tried at port {delivery.port} instead of 25"))
    if not delivery.sandbox and "." not in delivery.hostname:
        found.append(Problem("delivery.hostname", f"{delivery.hostname} in EHLO is refused by most mailbox providers"))
    if settings.queue.durability == "relaxed":
        found.append(Problem("queue.durability", "relaxed: a power cut may lose up to a second of accepted mail"))
    if settings.queue.disk_mark_mb and not settings.queue.directory and not on_this_host(settings.queue.url):
        found.append(Problem("queue.disk_mark_mb", "the server is on another host: its disk is not watched from here"))
    for index, listener in enumerate(settings.relayd.listeners):
        if listener.allow_public:
            found.append(Problem(f"relayd.listeners[{index}].allow_public", "the outside may reach this listener"))
    for index, account in enumerate(settings.accounts):
        if not account.senders:
            found.append(Problem(f"accounts[{index}].senders", NO_SENDERS.format(account.name)))
        if nowhere := no_way_back(settings, account):
            found.append(Problem(f"accounts[{index}].return_path", nowhere))
    found += routes.warnings(settings)
    return found


def no_way_back(settings: Settings, account: AccountSettings) -> str:
    """What to say when bounces of an account's mail come to nobody, unless on another host; "" = they are taken."""
    domain, taken = account.return_path, {domain.lower() for domain in settings.inbound.domains}
    if domain is None or domain.lower() in taken:
        return ""
    return f"{domain} is none of inbound.domains: no bounce to it is taken here"


def network_problem(text: str) -> str:
    """What is wrong with one client network of an account; "" = nothing."""
    if wrong := _no_syntax(text):
        return wrong
    network = ipaddress.ip_network(text)
    shortest = LONGEST_PREFIX[network.version]
    if network.prefixlen < shortest:
        return f'"{text}" is too broad; allowed: IPv4 /16 or longer, IPv6 /48 or longer'
    if not network_inside(network):
        return f'"{text}" is a public network; allowed: private, loopback, link-local or shared ones'
    return ""


def _no_syntax(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
        exact = str(network.network_address) == str(ipaddress.ip_interface(text).ip)
    except ValueError:
        return f'"{text}" is no network; write it like 10.20.0.0/16 or fd00:1:2::/48'
    return "" if exact else f'"{text}" has bits set behind its prefix; did you mean {network}?'


def _networks(accounts: Iterable[Placed]) -> Iterator[Problem]:
    taken = _Taken()
    for where, account in accounts:
        for index, text in enumerate(account.password_networks):
            if wrong := _no_syntax(text):
                yield Problem(f"{where}.password_networks[{index}]", wrong)
        for index, text in enumerate(account.networks):
            key = f"{where}.networks[{index}]"
            if wrong := network_problem(text):
                yield Problem(key, wrong)
                continue
            for other, network in taken.overlapping(ipaddress.ip_network(text), key):
                yield Problem(key, f"{text} overlaps {network} of {other}; a client address belongs to one account")


class _Taken:
    """Client networks so far. Of two that overlap one holds the other: a look-up for each prefix length finds it."""

    def __init__(self) -> None:
        self._all: list[tuple[str, IPNetwork]] = []
        self._same: dict[IPNetwork, list[int]] = {}
        self._held: dict[IPNetwork, list[int]] = {}  # network → those that it holds, itself not counted

    def overlapping(self, network: IPNetwork, key: str) -> list[tuple[str, IPNetwork]]:
        """(key, network) of earlier ones that overlap this one, which is taken from now on."""
        shortest = LONGEST_PREFIX[network.version]
        above = [network.supernet(new_prefix=length) for length in range(shortest, network.prefixlen)]
        found = [*self._same.get(network, ()), *self._held.get(network, ())]
        for one in above:
            found += self._same.get(one, ())
            self._held.setdefault(one, []).append(len(self._all))
        self._same.setdefault(network, []).append(len(self._all))
        self._all.append((key, network))
        return [self._all[number] for number in sorted(found)]


def _identities(accounts: Sequence[Placed]) -> Iterator[Problem]:
    yield from _repeated((f"{where}.name", account.name) for where, account in accounts)
    yield from _repeated(
        (f"{where}.{'user' if account.user else 'name'}", account.login, "AUTH name") for where, account in accounts
    )
    for where, account in accounts:
        if account.user and not account.password_hash:
            yield Problem(f"{where}.password_hash", "missing; an account with a user needs one")
        elif not account.networks and not account.password_hash:
            yield Problem(where, f'nobody can use "{account.name}"; it needs networks, or password_hash')


def _grants(settings: Settings, accounts: Iterable[Placed]) -> Iterator[Problem]:
    pools = [pool.name for pool in settings.delivery.pools]
    for where, account in accounts:
        granted = [("pool", account.pool), *((f"pools[{i}]", name) for i, name in enumerate(account.pools))]
        for key, name in granted:
            if pools and name not in pools:
                yield Problem(f"{where}.{key}", f'"{name}" is no pool; allowed: {", ".join(pools)}')


def _keys(settings: Settings, accounts: Iterable[Placed]) -> Iterator[Problem]:
    for where, account in accounts:
        if account.return_path and not settings.signing.return_path_key:
            yield Problem(f"{where}.return_path", "signed return paths need signing.return_path_key")
        if account.unsigned == "refuse" and not settings.signing.directory:
            yield Problem(f"{where}.unsigned", '"refuse" without signing.directory would refuse all its mail')


def _ways_in(settings: Settings) -> Iterator[Problem]:
    if any(one.kind == "submission" and one.tls != "none" for one in settings.relayd.listeners):
        return
    for i, account in enumerate(settings.accounts):
        if account.password_hash:
            yield Problem(
                f"accounts[{i}].password_hash",
                'AUTH is offered under TLS only, and no submission listener has tls = "starttls" or "implicit"',
            )


def _pools(settings: Settings) -> Iterator[Problem]:
    pools = settings.delivery.pools
    yield from _repeated((f"delivery.pools[{i}].name", pool.name) for i, pool in enumerate(pools))
    for i, pool in enumerate(pools):
        yield from _repeated(
            (f"delivery.pools[{i}].sources[{j}].address", address)
            for j, source in enumerate(pool.sources)
            for address in source.addresses
        )


def _listeners(settings: Settings) -> Iterator[Problem]:
    listeners = settings.relayd.listeners
    yield from _repeated((f"relayd.listeners[{i}].name", listener.name) for i, listener in enumerate(listeners))
    yield from _repeated((f"relayd.listeners[{i}].port", _place(listener)) for i, listener in enumerate(listeners))
    for i, listener in enumerate(listeners):
        for j, text in enumerate(listener.proxy_from):
            if wrong := network_problem(text):
                yield Problem(f"relayd.listeners[{i}].proxy_from[{j}]", wrong)
    if any(listener.kind == "inbound" for listener in listeners):
        yield from _inbound(settings)


def _place(listener: ListenerSettings) -> str | None:
    """What only one listener can have; port 0 is any free one."""
    if not listener.port:
        return None
    on = f" on {listener.interface}" if listener.interface else ""
    return f"{listener.address} port {listener.port}{on}"


def _inbound(settings: Settings) -> Iterator[Problem]:
    inbound = settings.inbound
    if not inbound.domains and not inbound.mailboxes:
        yield Problem("inbound.domains", "missing; a listener of kind inbound takes mail for domains or mailboxes only")
    if inbound.domains and not settings.signing.return_path_key:
        yield Problem(
            "signing.return_path_key", "missing; without it no return path of inbound.domains can be verified"
        )


def _repeated(values: Iterable[tuple[str, str | None] | tuple[str, str | None, str]]) -> Iterator[Problem]:
    """A problem for each value that an earlier key has already; None is no value."""
    first: dict[str, str] = {}
    for key, value, *noun in values:
        if value is None:
            continue
        if value in first:
            yield Problem(key, f'{"".join(f"{n} " for n in noun)}"{value}" is already that of {first[value]}')
        else:
            first[value] = key
