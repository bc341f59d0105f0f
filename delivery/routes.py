"""The smarthost routes in force: by recipient domain, by name, and what they allow."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping, Sequence

from pydantic import SecretStr

from config.providers import ProviderRule
from config.route_files import trust
from config.routes import for_recipient
from config.settings import RouteSettings
from delivery.smarthost import Smarthost


class Routes:
    """Made at start and on reload. Authorities are read here: OSError."""

    def __init__(self, routes: Sequence[RouteSettings] = (), passwords: Mapping[str, SecretStr] | None = None) -> None:
        self._routes = tuple(routes)
        contexts: dict[str | None, ssl.SSLContext] = {}
        self._smarthosts: dict[str, Smarthost] = {}
        for route in routes:
            context = None
            if route.tls != "none":
                context = contexts.get(route.ca_file) or contexts.setdefault(route.ca_file, trust(route.ca_file))
            smarthost = Smarthost(route, (passwords or {}).get(route.name), context)
            self._smarthosts[smarthost.name] = smarthost

    def for_recipient(self, domain: str) -> Smarthost | None:
        found = for_recipient(self._routes, domain) if self._routes else None
        return self._smarthosts[f"route:{found.name}"] if found else None

    def named(self, name: str) -> Smarthost | None:
        """``name``: "route:…", a pool or a group."""
        return self._smarthosts.get(name)

    def names(self) -> Collection[str]:
        """ "route:…" of each."""
        return self._smarthosts.keys()

    def overrule(self, domain: str, name: str) -> bool:
        """Whether mail for the domain takes a route, and not ``name``."""
        found = self.for_recipient(domain)
        return found is not None and found.name != name

    def rule(self, name: str) -> ProviderRule | None:
        """What may be open and sent at once."""
        smarthost = self._smarthosts.get(name)
        if smarthost is None:
            return None
        route = smarthost.settings
        return ProviderRule(name, route.connections, route.messages_per_connection, tls="required", together=True)

    def changed(self, new: Routes) -> set[str]:
        """Names of routes that are new, gone or different there."""
        names = {*self._smarthosts, *new._smarthosts}
        return {name for name in names if _facts(self.named(name)) != _facts(new.named(name))}


def _facts(smarthost: Smarthost | None) -> object:
    return smarthost and (smarthost.settings, smarthost.password)
