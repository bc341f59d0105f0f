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

import dns.exception
import dns.rdata
from pydantic import Field, ValidationError, model_validator

from config.settings import Seconds, Section
from sandbox.behaviour import Behaviour, Catalogue
from sandbox.limits import Limits
from sandbox.shapes import names as shape_names

DnsMode = Literal["normal", "servfail", "refused", "silent"]
BUILT_IN = ("behaviours.toml", "world.toml")
_KEYED = ("providers", "domains", "hosts")


class ScenarioError(ValueError):
    """A scenario that cannot be used; the text names the key."""


class DnsPlan(Section):
    ttl_seconds: int = Field(60, ge=0)
    mode: DnsMode = "normal"
    public_suffixes: tuple[str, ...] = Field((), description="below which names are registered, besides the real ones")


class ProviderPlan(Limits):
    name: str
    mx_suffix: str = Field(pattern=r"^\.", description="hosts whose name ends so belong to it")


class HostPlan(Section):
    name: str
    address: str | None = Field(None, description='default: the next free one; "" = no address record')
    alias: str = Field("", description="a CNAME to this host, in place of an address: what no MX should name")
    listen: bool = True


class RecordPlan(Section):
    """Records beside those of domains and hosts: a name with one of these is there."""

    name: str
    type: Literal["TXT", "A", "AAAA", "CNAME", "MX", "PTR", "TLSA"] = "TXT"
    values: tuple[str, ...] = Field(min_length=1, description="as a zone file has them; TXT without its quotes")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for value in self.values if self.type != "TXT" else ():
            try:
                dns.rdata.from_text("IN", self.type, value)
            except dns.exception.DNSException as error:
                raise ValueError(f"{self.name}: {value!r} is no {self.type} record: {error}") from None
        return self


class DomainPlan(Limits):
    name: str
    mx: tuple[str, ...] = ()
    alias: str = Field("", description="CNAME to this domain, in place of mx")
    behaviour: str = "accept"
    sources: Mapping[str, str] = Field(default_factory=dict, description="source address → behaviour, from the start")
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
    say: str = Field("", description="what this step is about, for people")
    domain: str = ""
    set: str = Field("", description="a behaviour; normal = as planned")
    share: float = Field(1.0, gt=0, le=1, description="of the behaviour's steps")
    sources: tuple[str, ...] = ()
    dns: DnsMode | None = None


class Scenario(Section):
    title: str = Field("", description="one line, for lists")
    play: str = Field("", description="what to do while it runs, and what is seen, for people")
    dns: DnsPlan = DnsPlan()
    providers: tuple[ProviderPlan, ...] = ()
    behaviours: Mapping[str, Behaviour] = Field(default_factory=dict)
    domains: tuple[DomainPlan, ...] = ()
    hosts: tuple[HostPlan, ...] = ()
    records: tuple[RecordPlan, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        catalogue = Catalogue(self.behaviours)
        known = {domain.name for domain in self.domains} | {name for d in self.domains for _, name in d.hosts()}
        for name, behaviour in self.behaviours.items():
            if behaviour.later is not None and behaviour.later.shape not in shape_names():
                raise ValueError(f"behaviours.{name}: no shape {behaviour.later.shape!r} in sandbox/returns*.toml")
        for domain in self.domains:
            for chosen in (domain.behaviour, *domain.sources.values()):
                catalogue.get(chosen)
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
    tree: dict[str, Any] = {}
    for part in BUILT_IN:
        tree |= tomllib.loads(resources.files("sandbox").joinpath(part).read_text(encoding="utf-8"))
    try:
        for layer in (tomllib.loads(path.read_text(encoding="utf-8")) if path else {}, extra or {}):
            tree = _overlay(tree, layer)
        return Scenario.model_validate(tree)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ScenarioError(f"{path or 'scenario'}: " + "; ".join(faults)) from error


def find(name: str) -> Path:
    """A scenario file by its path, or one of those shipped by its name; ScenarioError lists them."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    shipped = {each.stem: each for each in scenarios()}
    if name not in shipped:
        raise ScenarioError(f"no scenario {name!r}; there are: {', '.join(shipped)}, or a file's path")
    return shipped[name]


def scenarios() -> list[Path]:
    """The scenario files that come with the sandbox."""
    return sorted(Path(str(resources.files("sandbox"))).joinpath("scenarios").glob("*.toml"))


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
