"""The world at run time, without sockets: hosts with addresses, sites with hidden limits, domains and their mood.

A site is what shares a limit: the provider whose suffix the host's name ends in, else the domain that lists it first.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sandbox.behaviour import Behaviour, Catalogue, Greylist, Later, Phase, Step
from sandbox.limits import Accounts, Limits
from sandbox.scenario import DnsMode, DomainPlan, HostPlan, Scenario


@dataclass(slots=True)
class Domain:
    """A simulated mail domain; ``behaviour`` and ``by_source`` change while it runs."""

    plan: DomainPlan
    planned: Behaviour
    behaviour: Behaviour
    by_source: dict[str, Behaviour] = field(default_factory=dict)
    moods: dict[str, str] = field(default_factory=dict)  # source, "" = all others → the behaviour's name
    turns: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.plan.name

    def treats(self, source: str) -> Behaviour:
        """How it treats this source address now."""
        return self.by_source.get(source, self.behaviour) if self.by_source else self.behaviour

    def treat(self, source: str, behaviour: Behaviour, name: str) -> None:
        """So from now on, a source or ("") all others."""
        self.moods[source] = name
        if source:
            self.by_source[source] = behaviour
        else:
            self.behaviour = behaviour

    def forget(self, source: str) -> None:
        """The source is one like all others."""
        self.moods.pop(source, None)
        self.by_source.pop(source, None)

    def due(self, phase: Phase, step: Step) -> bool:
        """Whether a step with ``every`` falls due this time; each call counts."""
        if step.always:
            return True
        self.turns[phase] += 1
        return step.due(self.turns[phase])

    def returns(self, later: Later | None) -> bool:
        """Whether mail goes back for this message; each call counts."""
        if later is None:
            return False
        self.turns["later"] += 1
        return self.turns["later"] % later.every == 0


@dataclass(frozen=True, slots=True)
class Site:
    name: str
    limits: Limits


@dataclass(slots=True)
class Host:
    """A mail host: ``owner`` is the domain whose behaviour rules its sessions; ``serves`` whom it takes mail for."""

    name: str
    address: str
    listen: bool
    owner: Domain
    site: Site
    serves: dict[str, Domain] = field(default_factory=dict)

    def domain(self, name: str) -> Domain | None:
        """The recipient domain if this host serves it, by wildcard too."""
        found = self.serves.get(name)
        parent = name
        while found is None and "." in parent:
            parent = parent.partition(".")[2]
            above = self.serves.get(parent)
            found = above if above is not None and above.plan.wildcard else None
        return found


class World:
    """All of it; raises ValueError when the plan cannot be laid out."""

    def __init__(self, scenario: Scenario, first_address: str = "127.0.2.1") -> None:
        self.scenario = scenario
        self.catalogue = Catalogue(scenario.behaviours)
        self.greylist = Greylist()
        self.accounts = Accounts()
        self.domains: dict[str, Domain] = {}
        self.hosts: dict[str, Host] = {}
        self.dns_modes: dict[str, DnsMode] = {}
        self._sites: dict[str, Site] = {}
        self._addresses = _addresses(first_address, {host.address for host in scenario.hosts if host.address})
        self._planned_hosts = {host.name: host for host in scenario.hosts}
        self.host_aliases = {host.name: host.alias for host in scenario.hosts if host.alias}
        if scenario.dns.mode != "normal":
            self.dns_modes[""] = scenario.dns.mode
        for plan in scenario.domains:
            self._settle(plan)
        for plan in scenario.domains:
            self._serve(plan)

    def _settle(self, plan: DomainPlan) -> None:
        behaviour = self.catalogue.get(plan.behaviour)
        domain = self.domains[plan.name] = Domain(plan, behaviour, behaviour)
        domain.by_source.update(self._planned_by_source(plan))
        domain.moods = {"": plan.behaviour, **plan.sources}
        if plan.dns != "normal":
            self.dns_modes[plan.name] = plan.dns
        planned = self._planned_hosts
        for name in self._mail_hosts(plan):
            if name not in self.hosts:
                self.hosts[name] = self._host(planned.get(name) or HostPlan(name=name), domain)

    def _mail_hosts(self, plan: DomainPlan) -> list[str]:
        """The hosts behind a domain's MX records, aliases of hosts followed."""
        return [self.host_aliases.get(name, name) for name in mail_hosts(plan)]

    def _planned_by_source(self, plan: DomainPlan) -> dict[str, Behaviour]:
        return {source: self.catalogue.get(name) for source, name in plan.sources.items()}

    def _host(self, plan: HostPlan, owner: Domain) -> Host:
        address = next(self._addresses) if plan.address is None else plan.address
        site = next((p for p in self.scenario.providers if plan.name.endswith(p.mx_suffix)), None)
        name = site.name if site else owner.name
        if name not in self._sites:
            self._sites[name] = Site(name, site or owner.plan)
        return Host(plan.name, address, plan.listen, owner, self._sites[name])

    def _serve(self, plan: DomainPlan) -> None:
        target = plan
        if plan.alias:
            if plan.alias not in self.domains:
                raise ValueError(f"{plan.name}: no domain {plan.alias!r} to be an alias of")
            target = self.domains[plan.alias].plan
        for name in self._mail_hosts(target):
            self.hosts[name].serves[plan.name] = self.domains[plan.name]

    def hosts_of(self, name: str) -> list[Host]:
        """The hosts a domain owns, or the host of that name; raises ValueError when there is neither."""
        if name in self.domains:
            return [host for host in self.hosts.values() if host.owner is self.domains[name]]
        if name in self.hosts:
            return [self.hosts[name]]
        raise ValueError(f"no domain or host {name!r} in the sandbox")

    def behave(self, name: str, behaviour: str, sources: tuple[str, ...] = (), share: float = 1.0) -> None:
        """Change how a domain treats everybody, or only some sources, ``share`` of the time; ``normal`` = as planned."""
        if name not in self.domains:
            raise ValueError(f"no domain {name!r} in the sandbox")
        domain = self.domains[name]
        planned = self._planned_by_source(domain.plan)
        if behaviour == "normal" and sources:
            for source in sources:
                domain.forget(source)
                if source in planned:
                    domain.treat(source, planned[source], domain.plan.sources[source])
        elif behaviour == "normal":
            domain.behaviour, domain.by_source = domain.planned, planned
            domain.moods = {"": domain.plan.behaviour, **domain.plan.sources}
        else:
            chosen = self.catalogue.get(behaviour)
            chosen = chosen if share == 1.0 else chosen.sharing(share)
            for source in sources or ("",):
                domain.treat(source, chosen, behaviour if share == 1.0 else f"{behaviour} {share:.0%}")

    def moods(self) -> dict[str, dict[str, str]]:
        """Domains that do not simply take everything: source ("" = all others) → behaviour."""
        return {name: dict(one.moods) for name, one in self.domains.items() if set(one.moods.values()) != {"accept"}}

    def standing(self, now: float) -> list[dict[str, Any]]:
        """Of each source that a site counts: what it sent, and what is left of its limits."""
        limits = {site.name: site.limits for site in self._sites.values()}
        return [
            {
                "site": site,
                "source": source,
                "today": account.day.at(now, limits[site].day_seconds),
                "days": account.days,
                "asked": account.asked,
                "unknown": account.unknown,
                "factor": round(account.factor(limits[site]), 3),
            }
            for site, source, account in self.accounts
        ]

    def providers(self) -> dict[str, str]:
        """Provider name → suffix of its mail hosts' names, as providers.toml wants it; all others are default."""
        return {provider.name: provider.mx_suffix for provider in self.scenario.providers}


def mail_hosts(plan: DomainPlan) -> list[str]:
    """Names of the hosts that take a domain's mail; itself when the MX is implicit; none for null MX and aliases."""
    if plan.alias:
        return []
    return [name for _, name in plan.hosts() if name != "."] if plan.mx else [plan.name]


def _addresses(first: str, taken: set[str]) -> Iterator[str]:
    address = ipaddress.IPv4Address(first)
    while True:
        if not address.is_loopback:
            raise ValueError(f"{address} is not a loopback address; the sandbox uses no other")
        if str(address) not in taken:
            yield str(address)
        address += 1
