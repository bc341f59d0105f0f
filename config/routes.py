"""Which smarthost route mail takes, and what makes a route wrong. Pure.

A recipient domain beats the sender's domain, which beats the account; a domain itself beats ``*.`` of one above it;
inside a kind the first route of the file counts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from config.addresses import ascii_domain, is_inside
from config.schema import Problem
from config.settings import RouteSettings, Settings

PREFIX = "route:"  # before a route's name: its site, its group and the pool of its mail


def for_recipient(routes: Sequence[RouteSettings], domain: str) -> RouteSettings | None:
    """The route of a recipient domain, in A-labels or U-labels."""
    if not routes:
        return None
    return _by_domain([(route, route.recipient_domains) for route in routes], domain)


def for_sender(routes: Sequence[RouteSettings], account_name: str, from_domain: str) -> RouteSettings | None:
    """The route of a message whose author's domain is ``from_domain`` ("" = unknown), else of its account."""
    if not routes:
        return None
    found = _by_domain([(route, route.sender_domains) for route in routes], from_domain)
    return found or next((route for route in routes if account_name in route.accounts), None)


def site_of(route: RouteSettings) -> str:
    return PREFIX + route.name


def _by_domain(listed: Sequence[tuple[RouteSettings, tuple[str, ...]]], domain: str) -> RouteSettings | None:
    name = _plain(domain)
    exact = (route for route, patterns in listed if name in patterns)
    below = (route for route, patterns in listed if any(p[0] == "*" and name.endswith(p[1:]) for p in patterns))
    return (next(exact, None) or next(below, None)) if name else None


def _plain(domain: str) -> str:
    """As domains are compared; what is none stays as it is."""
    name = domain.removesuffix(".")
    try:
        return ascii_domain(name)
    except ValueError:
        return name.lower()


# ── what is wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def problems(settings: Settings) -> Iterator[Problem]:
    names: dict[str, int] = {}
    pools = [pool.name for pool in settings.delivery.pools]
    for index, route in enumerate(settings.routes):
        at = f"routes[{index}]"
        first = names.setdefault(route.name, index)
        if first != index:
            yield Problem(f"{at}.name", f'"{route.name}" is already that of routes[{first}].name')
        if pools and route.pool not in pools:
            yield Problem(f"{at}.pool", f'"{route.pool}" is no pool; allowed: {", ".join(pools)}')
        yield from _matching(at, route)
        yield from _secrecy(at, route)


def warnings(settings: Settings) -> Iterator[Problem]:
    known = {account.name for account in settings.accounts}
    for index, route in enumerate(settings.routes):
        for number, name in enumerate(route.accounts):
            if name not in known:
                text = f'"{name}" is no account of this file; it counts when `relayctl account` has made it'
                yield Problem(f"routes[{index}].accounts[{number}]", text)


def _matching(at: str, route: RouteSettings) -> Iterator[Problem]:
    if not (route.recipient_domains or route.sender_domains or route.accounts):
        yield Problem(at, f'no mail takes "{route.name}"; it needs recipient_domains, sender_domains or accounts')


def _secrecy(at: str, route: RouteSettings) -> Iterator[Problem]:
    if bool(route.user) != bool(route.password_file):
        missing = "password_file" if route.user else "user"
        yield Problem(f"{at}.{missing}", "missing; user and password_file go together")
    if route.tls != "none":
        return
    if route.user or route.password_file:
        yield Problem(f"{at}.tls", '"none" would show the password to the network; write starttls or implicit')
    elif not _is_inside(route.host):
        yield Problem(f"{at}.tls", '"none" only to a private or loopback address, written as such in host')
    if route.ca_file:
        yield Problem(f"{at}.ca_file", 'of no use with tls = "none"')


def _is_inside(host: str) -> bool:
    try:
        return is_inside(ipaddress.ip_address(host))
    except ValueError:
        return False
