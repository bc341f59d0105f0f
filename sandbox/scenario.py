"""What exists in the sandbox, as a validated tree: the built-in ``world.toml`` with a scenario file laid over it.

A scenario has the same tables. Domains, hosts, providers and behaviours of a known name replace the keys they give,
new ones are added; ``[[timeline]]`` says what changes while it runs.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from config.settings import Seconds, Section
from sandbox.behaviour import Behaviour, Catalogue

DnsMode = Literal["normal", "servfail", "refused", "silent"]
_KEYED = ("providers", "domains", "hosts")


class ScenarioError(ValueError):
    """A scenario that cannot be used; the text names the key."""


class DnsPlan(Section):
    ttl_seconds: int = Field(60, ge=0)
    mode: DnsMode = "normal"


class Limits(Section):
    """Hidden limits per source address; 0 = none. They are recorded, and enforced only with ``refuse``."""

    connections_per_source: int = Field(0, ge=0)
    messages_per_connection: int = Field(0, ge=0)
    refuse: bool = Field(False, description="421 beyond the limit")


class ProviderPlan(Limits):
    name: str
    mx_suffix: str = Field(pattern=r"^\.", description="hosts whose name ends so belong to it")


class HostPlan(Section):
    name: str
    address: str | None = Field(None, description='default: the next free one; "" = no address record')
    listen: bool = True


class DomainPlan(Limits):
    name: str
    mx: tuple[str, ...] = ()
    alias: str = Field("", description="CNAME to this domain, in place of mx")
    behaviour: str = "accept"
    wildcard: bool = Field(False, description="every name below exists as well")
    dns: DnsMode = "normal"
    txt: tuple[str, ...] = ("v=spf1 ip4:127.0.0.0/8 -all",)

    def hosts(self) -> list[tuple[int, str]]:
        """(preference, host name) in the order written; raises ValueError for a preference that is no number."""
        pairs = []
        for entry in self.mx:
            preference, space, name = entry.rpartition(" ")
            pairs.append((int(preference) if space else 10, name.lower()))
        return pairs

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(not 0 <= preference <= 65535 for preference, _ in self.hosts()):
            raise ValueError("a preference lies between 0 and 65535")
        return self


class TimelineEntry(Section):
    """One change: a domain's (or host's) behaviour, or the mode of the DNS; undone after ``for_seconds``."""

    after_seconds: Seconds = 0.0
    for_seconds: Seconds | None = None
    domain: str = ""
    set: str = Field("", description="a behaviour; normal = as planned")
    sources: tuple[str, ...] = ()
    dns: DnsMode | None = None


class Scenario(Section):
    dns: DnsPlan = DnsPlan()
    providers: tuple[ProviderPlan, ...] = ()
    behaviours: Mapping[str, Behaviour] = Field(default_factory=dict)
    domains: tuple[DomainPlan, ...] = ()
    hosts: tuple[HostPlan, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        catalogue = Catalogue(self.behaviours)
        known = {domain.name for domain in self.domains} | {name for d in self.domains for _, name in d.hosts()}
        for domain in self.domains:
            catalogue.get(domain.behaviour)
        for entry in self.timeline:
            if entry.dns is None and entry.domain not in known:
                raise ValueError(f"timeline: no domain or host {entry.domain!r}")
            if entry.set not in ("", "normal"):
                catalogue.get(entry.set)
        for host in self.hosts:
            if host.address and host.listen and not ipaddress.ip_address(host.address).is_loopback:
                raise ValueError(f"host {host.name}: {host.address} is not loopback, so nobody may listen there")
        return self


def load(path: Path | None = None, extra: Mapping[str, Any] | None = None) -> Scenario:
    """The built-in world, then the scenario file, then ``extra`` (the same tree as Python values), as one.

    Raises ScenarioError for a missing file, bad TOML, unknown keys, behaviours or domains.
    """
    tree = tomllib.loads(resources.files("sandbox").joinpath("world.toml").read_text(encoding="utf-8"))
    try:
        for layer in (tomllib.loads(path.read_text(encoding="utf-8")) if path else {}, extra or {}):
            tree = _overlay(tree, layer)
        return Scenario.model_validate(tree)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ScenarioError(f"{path or 'scenario'}: " + "; ".join(faults)) from error


def _overlay(tree: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, lists of named tables by name, everything else is replaced."""
    merged = dict(tree)
    for key, value in layer.items():
        if key in _KEYED and isinstance(value, list | tuple):
            rows = {row["name"]: dict(row) for row in merged.get(key, ())}
            for row in value:
                name = row.get("name", "")
                rows[name] = {**rows.get(name, {}), **row}
            merged[key] = list(rows.values())
        elif key in ("dns", "behaviours") and isinstance(value, Mapping):
            merged[key] = {**merged.get(key, {}), **value}
        else:
            merged[key] = value
    return merged
