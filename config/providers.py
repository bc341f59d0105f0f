"""Mailbox providers: who they are (MX hosts, recipient domains) and what they tolerate. Rules are data.

``providers.toml`` holds a ``[default]`` block and one ``[providers.<name>]`` each; a key that a provider does
not set is the default block's. A file that says ``extends = "packaged"`` is laid over the packaged one, key by
key: lists are joined, other values replaced, ``unset = ["key"]`` first removes what was inherited (a rate
unset is no limit; any other key falls back to the default block), ``unset = ["provider"]`` at the top removes
providers. Each rule carries samples which must match when the file is read; one that fails its own samples is
refused with its name, so that a rule that never fires cannot be shipped.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from config.addresses import expand
from config.durations import Rate
from config.provider_file import (
    LIMITS,
    LimitsBlock,
    ProviderBlock,
    ProvidersFile,
    SourceBlock,
    Tls,
    bare,
    lint,
    overlay,
)
from config.schema import ConfigError, Problem, fit, join

PACKAGED = "providers.toml"
SANDBOX = "providers.sandbox.toml"  # packaged too: extends the other with the names of the sandbox


@dataclass(frozen=True, slots=True)
class ProviderRule:
    """What one mailbox provider (or, named "default", everybody else) tolerates from one source address."""

    name: str
    connections: int  # open at once, over all the provider's sites when roll_up, else for each site
    messages_per_connection: int
    tls: Tls
    message_rate: Rate | None = None
    connection_rate: Rate | None = None
    roll_up: bool = True  # its MX hosts are one site; False = every distinct set of MX hosts is its own
    mx_suffixes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    together: bool = False  # connections are counted over all sources, not for each
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def for_source(self, address: str) -> ProviderRule:
        """The rule with what differs for this source."""
        return replace(self, **changes) if (changes := self.overrides.get(address)) else self


@dataclass(frozen=True, slots=True)
class Providers:
    """All rules of one file. Immutable; look-ups cost one dictionary probe per label."""

    default: ProviderRule
    rules: Mapping[str, ProviderRule]
    _by_suffix: Mapping[str, ProviderRule]
    _by_domain: Mapping[str, ProviderRule]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Providers:
        """The packaged rules, or those of a file; ConfigError with every problem, each led by the file's name."""
        packaged = _parse((resources.files("config") / PACKAGED).read_text("utf-8"), PACKAGED)
        if not path:
            return _build(packaged, PACKAGED)
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path}: cannot be read: {getattr(error, 'strerror', 'not UTF-8')}"]) from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str = "providers") -> Providers:
        """The same from the text of a file called ``name``."""
        data = _parse(text, name)
        if data.get("extends") == "packaged":
            _fitted(data, name)  # its own mistakes, before those that only show when laid over
            data = overlay(_parse((resources.files("config") / PACKAGED).read_text("utf-8"), PACKAGED), data)
        return _build(data, name)

    def for_mx(self, hosts: Sequence[str]) -> ProviderRule | None:
        """The provider to whom *all* these MX hosts belong, by the longest suffix; None when there is none."""
        rules = {id(rule): rule for rule in map(self._of_host, hosts)}
        return rules.popitem()[1] if len(rules) == 1 else None

    def for_domain(self, domain: str) -> ProviderRule | None:
        """The provider who is known to have this recipient domain (exactly this one, not those below it)."""
        return self._by_domain.get(bare(domain))

    def for_destination(self, domain: str, hosts: Sequence[str]) -> ProviderRule:
        """MX hosts decide; a provider without suffixes is known by the domain; else the default rule."""
        known = self.for_domain(domain)
        return self.for_mx(hosts) or (known if known and not known.mx_suffixes else None) or self.default

    def named(self, name: str) -> ProviderRule:
        """The rule of this name, the default one for a name that is gone (a reload may remove a provider)."""
        return self.rules.get(name, self.default)

    def _of_host(self, host: str) -> ProviderRule | None:
        rest = bare(host)
        if (rule := self._by_suffix.get(rest)) is not None:
            return rule
        while rest:
            _, dot, rest = rest.partition(".")
            found = self._by_suffix.get(dot + rest) or self._by_suffix.get(rest)
            if dot and found is not None:
                return found
        return None


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{name}: not valid TOML: {error}"]) from None


def _fitted(data: Mapping[str, Any], name: str) -> ProvidersFile:
    file, problems = fit(ProvidersFile, data)
    if file is None or problems:
        raise ConfigError([f"{name}: {problem}" for problem in problems])
    return file


def _build(data: Mapping[str, Any], name: str) -> Providers:
    file = _fitted(data, name)
    problems = list(lint(file))
    if problems:
        raise ConfigError([f"{name}: {problem}" for problem in problems])
    default = _rule("default", file.default, ProviderBlock())
    rules = {each: _rule(each, file.default, block) for each, block in file.providers.items()}
    built = Providers(
        default,
        MappingProxyType({"default": default} | rules),
        MappingProxyType({suffix: rule for rule in rules.values() for suffix in rule.mx_suffixes}),
        MappingProxyType({domain: rule for rule in rules.values() for domain in rule.domains}),
    )
    if failed := [problem for each, block in file.providers.items() for problem in _unmatched(built, each, block)]:
        raise ConfigError([f"{name}: {problem}" for problem in failed])
    return built


def _rule(name: str, default: LimitsBlock, block: ProviderBlock) -> ProviderRule:
    def value(key: str) -> Any:
        own = getattr(block, key)
        if own is None and not (key in block.unset and key.endswith("_rate")):
            own = getattr(default, key)
        return own

    sources: dict[str, dict[str, Any]] = {}
    for spelled, changes in (default if name == "default" else block).sources.items():
        given = {key: setting for key in SourceBlock.model_fields if (setting := getattr(changes, key)) is not None}
        for address in expand(spelled):
            sources.setdefault(address, {}).update(given)
    return ProviderRule(
        name=name,
        **{key: value(key) for key in LIMITS},
        roll_up=name != "default" if block.roll_up is None else block.roll_up,
        mx_suffixes=tuple(suffix.lower() for suffix in block.mx_suffixes),
        domains=tuple(domain.lower() for domain in block.domains),
        overrides=MappingProxyType(sources),
    )


def _unmatched(providers: Providers, name: str, block: ProviderBlock) -> Iterator[Problem]:
    """Samples against all rules together: a longer suffix of another provider may have taken a host."""
    at, samples, rule = join("providers", name), block.samples, providers.named(name)
    for key, hosts, wanted in (("mx", samples.mx, True), ("not_mx", samples.not_mx, False)):
        for host in hosts:
            found = providers.for_mx([host])
            if (found is rule) is not wanted:
                yield Problem(f"{at}.samples.{key}", _verdict(host, found))
    for key, names, wanted in (
        ("recipients", samples.recipients, True),
        ("not_recipients", samples.not_recipients, False),
    ):
        for recipient in names:
            found = providers.for_domain(recipient.rpartition("@")[2])
            if (found is rule) is not wanted:
                yield Problem(f"{at}.samples.{key}", _verdict(recipient, found))


def _verdict(sample: str, found: ProviderRule | None) -> str:
    return f'"{sample}" matches {found.name if found else "no provider"}'
