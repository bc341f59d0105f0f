"""DMARC (RFC 7489): whether what SPF or DKIM proved belongs to the domain of From, and what that domain asks for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import getaddresses
from typing import Literal

from publicsuffixlist import PublicSuffixList

from sandbox.spf import Lookup, LookupFailed

Policy = Literal["none", "quarantine", "reject"]
Result = Literal["pass", "fail", "none", "temperror", "permerror"]
_POLICIES: Mapping[str, Policy] = {"none": "none", "quarantine": "quarantine", "reject": "reject"}
_VERSION = re.compile(r"v\s*=\s*DMARC1\s*(?:;|$)")


class Suffixes:
    """Organizational domains (§3.2): by the public suffix list, and by suffixes of one's own, such as gob.pe.test."""

    def __init__(self, own: Collection[str] = ()) -> None:
        self._list = PublicSuffixList()
        self._own = frozenset(name.lower() for name in own)

    def organization(self, domain: str) -> str:
        """One label below the longest public suffix; the name itself when it is one."""
        labels = domain.lower().rstrip(".").split(".")
        for at in range(len(labels)):
            if ".".join(labels[at:]) in self._own:
                return ".".join(labels[max(at - 1, 0) :])
        found: str | None = self._list.privatesuffix(".".join(labels))
        return found or ".".join(labels)


@dataclass(frozen=True, slots=True)
class Record:
    """What a domain publishes; ``strict`` alignment means equal, relaxed of one organization."""

    policy: Policy
    subdomains: Policy
    strict_dkim: bool = False
    strict_spf: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """``policy`` is what the domain asks for where ``result`` is fail; ``by`` what made it pass: "dkim", "spf"."""

    result: Result
    domain: str
    policy: Policy = "none"
    by: str = ""
    why: str = ""


def parse(text: str) -> Record | None:
    """A TXT value; None for what is no DMARC record or has no valid policy (§6.6.3 ends there)."""
    if _VERSION.match(text) is None:
        return None
    tags: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip().lower())
    policy = _POLICIES.get(tags.get("p", ""))
    if policy is None:
        return None
    below = _POLICIES.get(tags.get("sp", ""), policy)
    return Record(policy, below, tags.get("adkim") == "s", tags.get("aspf") == "s")


def author(message: Message) -> str:
    """The domain of From, in lower case; "" unless there is exactly one (§6.6.1)."""
    fields = message.get_all("From", [])
    domains = {address.rpartition("@")[2].lower().rstrip(".") for _, address in getaddresses(map(str, fields))}
    return domains.pop() if len(fields) == 1 and len(domains) == 1 else ""


def check(lookup: Lookup, suffixes: Suffixes, domain: str, spf_domain: str, dkim_domains: Sequence[str]) -> Verdict:
    """``domain`` is From's; ``spf_domain`` what SPF passed for ("" = it did not); ``dkim_domains`` whose signatures verify."""
    if not domain:
        return Verdict("permerror", "", why="no single domain in From")
    try:
        found = _discover(lookup, suffixes, domain)
    except LookupFailed as error:
        return Verdict("temperror", domain, why=str(error))
    if found is None:
        return Verdict("none", domain, why="no record")
    record, at = found
    policy = record.policy if at == domain else record.subdomains

    def aligned(other: str, strict: bool) -> bool:
        same = suffixes.organization(other) == suffixes.organization(domain)
        return other.lower() == domain or (not strict and same)

    if any(aligned(other, record.strict_dkim) for other in dkim_domains):
        return Verdict("pass", domain, policy, "dkim")
    if spf_domain and aligned(spf_domain, record.strict_spf):
        return Verdict("pass", domain, policy, "spf")
    return Verdict("fail", domain, policy, why="nothing that passes is aligned with From")


def _discover(lookup: Lookup, suffixes: Suffixes, domain: str) -> tuple[Record, str] | None:
    """§6.6.3: of the domain itself, else of its organization; more than one record is none."""
    for name in dict.fromkeys((domain, suffixes.organization(domain))):
        texts = [text for text in lookup(f"_dmarc.{name}", "TXT") if _VERSION.match(text)]
        if len(texts) == 1:
            record = parse(texts[0])
            return None if record is None else (record, name)
        if texts:
            return None
    return None
