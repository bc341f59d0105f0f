"""MX roll-up: which mailbox provider stands behind a set of MX hosts, and what a site is called. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from config.providers import ProviderRule

_MOST = 200  # characters of a site's name; it becomes part of keys


class Rules(Protocol):
    """What the router needs of :class:`config.providers.Providers`."""

    def for_destination(self, domain: str, hosts: Sequence[str]) -> ProviderRule:
        """The rule of the provider to whom *all* hosts belong (a domain of mixed hosting is nobody's), else of the
        domain, else the default one."""


def site_of(rule: ProviderRule, hosts: Sequence[str]) -> str:
    """What shares MX hosts shares a site: a provider that rolls up is one, else the sorted host set is.

    Long sets end in a digest of the whole.
    """
    if rule.roll_up:
        return rule.name
    site = ",".join(sorted(hosts))
    if len(site) <= _MOST:
        return site
    digest = hashlib.sha256(site.encode("utf-8")).hexdigest()[:16]
    return f"{site[: _MOST - 17]}~{digest}"
