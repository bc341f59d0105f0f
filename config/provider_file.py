"""The file of provider rules: its tables, one laid over another, and the mistakes that reading alone shows.

Pure. What the rules mean together (samples against all of them) is :mod:`config.providers`' part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from config.addresses import expand, hostname
from config.durations import RATE_FORMS, Rate
from config.schema import Allowed, Problem, Section, join

Tls = Literal["opportunistic", "required"]


def _rate(value: object) -> object:
    return Rate.parse(value) if isinstance(value, str) else value


RateText = Annotated[Rate, BeforeValidator(_rate), Allowed(RATE_FORMS)]
LIMITS = ("connections", "messages_per_connection", "tls", "message_rate", "connection_rate")


class SamplesBlock(Section):
    mx: tuple[str, ...] = Field((), description="MX hosts of this provider; at least one for each suffix")
    not_mx: tuple[str, ...] = Field((), description="MX hosts that look alike and are not; at least one")
    recipients: tuple[str, ...] = Field((), description="addresses or domains that are known to be its own")
    not_recipients: tuple[str, ...] = ()


class SourceBlock(Section):
    """What differs for one source address."""

    connections: int | None = Field(None, ge=1, le=10_000)
    messages_per_connection: int | None = Field(None, ge=1, le=1_000_000)
    message_rate: RateText | None = None
    connection_rate: RateText | None = None


class LimitsBlock(SourceBlock):
    tls: Tls | None = None
    sources: dict[str, SourceBlock] = Field(default_factory=dict)
    unset: tuple[str, ...] = ()


class ProviderBlock(LimitsBlock):
    mx_suffixes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    roll_up: bool | None = None
    samples: SamplesBlock = SamplesBlock()


class ProvidersFile(Section):
    extends: Literal["packaged"] | None = None
    unset: tuple[str, ...] = ()
    default: LimitsBlock = LimitsBlock()
    providers: dict[str, ProviderBlock] = Field(default_factory=dict)


def bare(name: str) -> str:
    """A host or domain name as it is compared: lower case, without the root's dot."""
    return name.rstrip(".").lower()


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The file ``above`` laid over the file ``below`` (plain TOML data, both of the right shape)."""
    providers = {name: block for name, block in below["providers"].items() if name not in above.get("unset", ())}
    for name, block in above.get("providers", {}).items():
        providers[name] = _merged(providers.get(name, {}), block)
    return {
        "default": _merged(below["default"], above.get("default", {})),
        "providers": providers,
        "unset": [name for name in above.get("unset", ()) if name not in below["providers"]],
    }


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``unset`` keys leave; those without a value after that stay named in ``unset``, to keep the default out."""
    merged = {key: value for key, value in below.items() if key not in above.get("unset", ())}
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merged(old, value)
        elif isinstance(value, list) and isinstance(old, list):
            merged[key] = [*old, *(element for element in value if element not in old)]
        else:
            merged[key] = value
    return merged


def lint(file: ProvidersFile) -> Iterator[Problem]:
    for name in file.unset:
        if name not in file.providers:
            yield Problem("unset", f'there is no provider "{name}" to remove')
    for key in ("connections", "messages_per_connection", "tls"):
        if getattr(file.default, key) is None:
            yield Problem(f"default.{key}", "missing; the default block needs it, as all others fall back to it")
    yield from _lint_limits(file.default, "default")
    suffixes: dict[str, str] = {}
    domains: dict[str, str] = {}
    for name, block in file.providers.items():
        at = join("providers", name)
        if name == "default":
            yield Problem(at, "the name default belongs to the default block")
        if not (block.mx_suffixes or block.domains):
            yield Problem(at, "needs mx_suffixes or domains, else it never applies")
        yield from _lint_limits(block, at)
        yield from _lint_names(block.mx_suffixes, f"{at}.mx_suffixes", name, suffixes)
        yield from _lint_names(block.domains, f"{at}.domains", name, domains)
        yield from _lint_samples(block, at)


def _lint_limits(block: LimitsBlock, at: str) -> Iterator[Problem]:
    for key in block.unset:
        if key not in ProviderBlock.model_fields or key == "unset":
            yield Problem(f"{at}.unset", f'"{key}" is no key of a provider')
    for address in block.sources:
        try:
            expand(address)
        except ValueError as error:
            yield Problem(join(f"{at}.sources", address), str(error))


def _lint_names(names: Sequence[str], at: str, provider: str, taken: dict[str, str]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        key, plain = f"{at}[{index}]", name.lower().removeprefix(".")
        if "\\" in name:
            yield Problem(key, f'"{name}" holds a backslash: a plain name is wanted, no (double-escaped) pattern')
        elif name.endswith("."):
            yield Problem(key, f'"{name}" ends in a dot and would never match; write it without')
        elif wrong := _no_hostname(plain):
            yield Problem(key, f'"{name}": {wrong}')
        elif at.endswith(".domains") and name.startswith("."):
            yield Problem(key, f'"{name}": a recipient domain is matched whole; write it without the first dot')
        elif plain in taken:
            yield Problem(key, f'"{name}" is already one of {"its own" if taken[plain] == provider else taken[plain]}')
        else:
            taken[plain] = provider


def _no_hostname(name: str) -> str:
    try:
        hostname(name)
    except ValueError as error:
        return str(error)
    return ""


def _lint_samples(block: ProviderBlock, at: str) -> Iterator[Problem]:
    samples = block.samples
    if block.mx_suffixes and not samples.mx:
        yield Problem(f"{at}.samples.mx", "no samples; name an MX host for each suffix")
    if block.mx_suffixes and not samples.not_mx:
        yield Problem(f"{at}.samples.not_mx", "no samples; name an MX host that looks alike and must not match")
    if block.domains and not samples.recipients:
        yield Problem(f"{at}.samples.recipients", "no samples; name a recipient that is this provider's")
    for suffix in block.mx_suffixes:
        if samples.mx and not any(_under(bare(host), suffix.lower()) for host in samples.mx):
            yield Problem(f"{at}.samples.mx", f'none of them ends in "{suffix}"')


def _under(host: str, suffix: str) -> bool:
    """At a label boundary; the bare suffix itself only when it is written without its first dot."""
    return host.endswith("." + suffix.removeprefix(".")) or host == suffix
