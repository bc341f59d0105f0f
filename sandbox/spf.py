"""SPF (RFC 7208): may this address send for that domain? Pure but for the lookups it is given.

All mechanisms but ``ptr``, which counts as a lookup and never matches (§5.5 says not to use it); ``redirect``, macros,
and the limits: 10 terms that ask the DNS, 2 answers without records, 10 names of one MX. No ``exp``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Result = Literal["pass", "fail", "softfail", "neutral", "none", "temperror", "permerror"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, str], Sequence[str]]  # (name, type) → texts, none of them for no such name; LookupFailed

MOST_LOOKUPS = 10  # §4.6.4
MOST_VOID = 2
MOST_NAMES = 10
_QUALIFIED: dict[str, Result] = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_TERM = re.compile(
    r"([-+~?]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?::([^/]*(?:/[^0-9/][^/]*)*))?((?:/[0-9/]*)?)", re.I
)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", re.I)
_CIDR = re.compile(r"(?:/(\d{1,2}))?(?://(\d{1,3}))?")
_MACRO = re.compile(r"%(?:\{([slodiphcrtv])(\d*)(r?)([-.+,/_=]*)\}|(.?))", re.I)


class LookupFailed(Exception):
    """The DNS did not answer, or with SERVFAIL."""


class _Broken(Exception):
    """permerror; the text says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``domain`` is whose record it was, ``why`` a few words."""

    result: Result
    domain: str
    why: str


@dataclass(slots=True)
class _Check:
    """One evaluation: what is asked about, and what it has cost so far."""

    lookup: Lookup
    address: Address
    sender: str
    helo: str
    lookups: int = 0
    void: int = 0


def check(lookup: Lookup, source: str, reverse_path: str, helo: str) -> Verdict:
    """For a client's address and what it said; a null reverse-path stands for postmaster of the HELO name (§2.4)."""
    local, _, domain = reverse_path.rpartition("@")
    domain = (domain or helo).lower().rstrip(".")
    state = _Check(lookup, ipaddress.ip_address(source), f"{local or 'postmaster'}@{domain}", helo)
    try:
        result, why = _evaluate(state, domain)
    except _Broken as error:
        result, why = "permerror", str(error)
    except LookupFailed as error:
        result, why = "temperror", str(error)
    return Verdict(result, domain, why)


def _evaluate(state: _Check, domain: str) -> tuple[Result, str]:
    """§4: the record of one domain."""
    if not _is_domain(domain):
        return "none", "no domain"
    records = [text for text in state.lookup(domain, "TXT") if re.match(r"v=spf1(?: |$)", text, re.I)]
    if not records:
        return "none", f"{domain} has no record"
    if len(records) > 1:
        raise _Broken(f"{domain} has {len(records)} records")
    mechanisms, redirect = _parse(records[0], domain)
    for qualifier, name, value, cidr, term in mechanisms:
        if _matches(state, domain, name, value, cidr):
            return _QUALIFIED[qualifier], term
    if redirect is None:
        return "neutral", "nothing matches"
    _count(state)
    target = _expand(state, redirect, domain)
    result, why = _evaluate(state, target)
    if result == "none":
        raise _Broken(f"redirect to {target}, which has no record")
    return result, why


def _parse(record: str, domain: str) -> tuple[list[tuple[str, str, str, str, str]], str | None]:
    """All terms before any is evaluated, since an error anywhere is one (§4.6): (qualifier, name, value, cidr, term)."""
    mechanisms: list[tuple[str, str, str, str, str]] = []
    redirects: list[str] = []
    for term in record.split(" ")[1:]:
        found = _TERM.fullmatch(term)
        if found is not None:
            qualifier, name, value, cidr = found[1] or "+", found[2].lower(), found[3] or "", found[4]
            if name in ("ip4", "ip6"):
                value, cidr = value + cidr, ""
                _network(name, value)
            wanted = name in ("include", "exists", "ip4", "ip6")
            if (wanted and not value) or (name == "all" and (value or cidr)) or (found[3] == "" and not wanted):
                raise _Broken(f"{domain}: {term!r}")
            if cidr and (name not in ("a", "mx") or not _CIDR.fullmatch(cidr)):
                raise _Broken(f"{domain}: {term!r}")
            mechanisms.append((qualifier, name, value, cidr, term))
        elif (modifier := _MODIFIER.fullmatch(term)) is not None:
            if modifier[1].lower() == "redirect":
                redirects.append(modifier[2])
        elif term:
            raise _Broken(f"{domain}: {term!r}")
    if len(redirects) > 1 or "" in redirects:
        raise _Broken(f"{domain}: redirect")
    return mechanisms, redirects[0] if redirects else None


def _matches(state: _Check, domain: str, name: str, value: str, cidr: str) -> bool:
    if name == "all":
        return True
    if name in ("ip4", "ip6"):
        return state.address in _network(name, value)
    _count(state)
    target = _expand(state, value, domain) if value else domain
    if name == "include":
        result, _ = _evaluate(state, target)
        if result == "none":
            raise _Broken(f"include of {target}, which has no record")
        return result == "pass"
    if name == "exists":
        return bool(_ask(state, target, "A"))
    if name == "a":
        return _is_among(state, [target], cidr)
    if name == "mx":
        names = [text.split()[-1].rstrip(".") for text in _ask(state, target, "MX")]
        if len(names) > MOST_NAMES:
            raise _Broken(f"{target} has {len(names)} mail hosts")
        return _is_among(state, [each for each in names if each], cidr)
    return False  # ptr


def _is_among(state: _Check, names: Sequence[str], cidr: str) -> bool:
    sizes = _CIDR.fullmatch(cidr)
    assert sizes is not None
    wide = state.address.version == 6
    bits = sizes[2] if wide else sizes[1]
    prefix = int(bits) if bits else state.address.max_prefixlen
    if prefix > state.address.max_prefixlen:
        raise _Broken(f"/{prefix}")
    for name in names:
        for text in _ask(state, name, "AAAA" if wide else "A"):
            if state.address in ipaddress.ip_network(f"{text}/{prefix}", strict=False):
                return True
    return False


def _ask(state: _Check, name: str, kind: str) -> Sequence[str]:
    found = state.lookup(name, kind) if _is_domain(name) else ()
    if not found:
        state.void += 1
        if state.void > MOST_VOID:
            raise _Broken(f"more than {MOST_VOID} names without records")
    return found


def _count(state: _Check) -> None:
    state.lookups += 1
    if state.lookups > MOST_LOOKUPS:
        raise _Broken(f"more than {MOST_LOOKUPS} lookups")


def _network(name: str, value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        kind = ipaddress.IPv4Network if name == "ip4" else ipaddress.IPv6Network
        return kind(value, strict=False)
    except ValueError:
        raise _Broken(f"{name}:{value} is no network") from None


def _is_domain(name: str) -> bool:
    labels = name.rstrip(".").split(".")
    return len(name) <= 253 and len(labels) > 1 and all(0 < len(label) <= 63 for label in labels) and name.isascii()


def _expand(state: _Check, text: str, domain: str) -> str:
    """§7: macros of a domain name; the leftmost labels go where it is too long."""
    local, _, sender_domain = state.sender.rpartition("@")
    dotted = ".".join(state.address.exploded.replace(":", "")) if state.address.version == 6 else str(state.address)
    values = {
        "s": state.sender,
        "l": local,
        "o": sender_domain,
        "d": domain,
        "i": dotted,
        "h": state.helo,
        "p": "unknown",
    }
    values["v"] = "ip6" if state.address.version == 6 else "in-addr"

    def replaced(found: re.Match[str]) -> str:
        if found[1] is None:
            plain = {"%": "%", "_": " ", "-": "%20"}.get(found[5])
            if plain is None:
                raise _Broken(f"macro {found[0]!r}")
            return plain
        value = values.get(found[1].lower())
        if value is None or found[2] == "0":
            raise _Broken(f"macro {found[0]!r}")
        parts = re.split("[" + re.escape(found[4] or ".") + "]", value)
        parts = parts[::-1] if found[3] else parts
        return ".".join(parts[-int(found[2]) :] if found[2] else parts)

    expanded = _MACRO.sub(replaced, text).rstrip(".")
    while len(expanded) > 253 and "." in expanded:
        expanded = expanded.partition(".")[2]
    return expanded
