"""The world at run time, without sockets: hosts with addresses, sites with hidden limits, domains and their mood.

A site is what shares a limit: the provider whose suffix the host's name ends in, else the domain that lists it first.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sandbox.behaviour import Behaviour, Catalogue, Greylist, Phase, Step
from sandbox.scenario import DnsMode, DomainPlan, HostPlan, Limits, Scenario


@dataclass(slots=True)
class Domain:
    """A simulated mail domain; ``behaviour`` and ``by_source`` change while it runs."""

    plan: DomainPlan
    planned: Behaviour
    behaviour: Behaviour
    by_source: dict[str, Behaviour] = field(default_factory=dict)
    turns: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.plan.name

    def treats(self, source: str) -> Behaviour:
        """How it treats this source address now."""
        return self.by_source.get(source, self.behaviour) if self.by_source else self.behaviour

    def due(self, phase: Phase, step: Step) -> bool:
        """Whether a step with ``every`` falls due this time; each call counts."""
        if step.every == 1:
            return True
        self.turns[phase] += 1
        return self.turns[phase] % step.every == 0


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
        self.domains: dict[str, Domain] = {}
        self.hosts: dict[str, Host] = {}
        self.dns_modes: dict[str, DnsMode] = {}
        self._sites: dict[str, Site] = {}
        self._addresses = _addresses(first_address, {host.address for host in scenario.hosts if host.address})
        if scenario.dns.mode != "normal":
            self.dns_modes[""] = scenario.dns.mode
        for plan in scenario.domains:
            self._settle(plan)
        for plan in scenario.domains:
            self._serve(plan)

    def _settle(self, plan: DomainPlan) -> None:
        behaviour = self.catalogue.get(plan.behaviour)
        domain = self.domains[plan.name] = Domain(plan, behaviour, behaviour)
        if plan.dns != "normal":
            self.dns_modes[plan.name] = plan.dns
        planned = {host.name: host for host in self.scenario.hosts}
        for name in mail_hosts(plan):
            if name not in self.hosts:
                self.hosts[name] = self._host(planned.get(name) or HostPlan(name=name), domain)

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
        for name in mail_hosts(target):
            self.hosts[name].serves[plan.name] = self.domains[plan.name]

    def hosts_of(self, name: str) -> list[Host]:
        """The hosts a domain owns, or the host of that name; raises ValueError when there is neither."""
        if name in self.domains:
            return [host for host in self.hosts.values() if host.owner is self.domains[name]]
        if name in self.hosts:
            return [self.hosts[name]]
        raise ValueError(f"no domain or host {name!r} in the sandbox")

    def behave(self, name: str, behaviour: str, sources: tuple[str, ...] = ()) -> None:
        """Change how a domain treats everybody, or only some sources; ``normal`` = as planned."""
        if name not in self.domains:
            raise ValueError(f"no domain {name!r} in the sandbox")
        domain = self.domains[name]
        chosen = domain.planned if behaviour == "normal" else self.catalogue.get(behaviour)
        if sources:
            domain.by_source.update(dict.fromkeys(sources, chosen))
            return
        domain.behaviour = chosen
        if behaviour == "normal":
            domain.by_source.clear()

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
