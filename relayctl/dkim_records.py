"""What ``relayctl dkim test`` looks at: records as DNS gives them, and a file signed and verified by them."""

from __future__ import annotations

import email.policy
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.utils import getaddresses
from pathlib import Path

import dns.exception
import dns.resolver
import typer

from config.addresses import host_and_port
from signing import proof, record
from signing.dkim import Signer
from signing.keys import Held

LOOKUP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one key: ``problems`` stop verifiers, ``warnings`` do not; [] = good."""

    selector: str
    algorithm: str
    state: str
    problems: list[str]
    warnings: list[str]


class LookupFailed(Exception):
    """DNS did not answer: nothing is known of the record."""


def resolver(nameserver: str) -> dns.resolver.Resolver:
    """Asking ``address[:port]``, or whom the host asks when that is empty."""
    if not nameserver:
        return dns.resolver.Resolver()
    asking = dns.resolver.Resolver(configure=False)
    try:
        address, asking.port = host_and_port(nameserver, 53)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    asking.nameservers = [address]
    return asking


def txt(asking: dns.resolver.Resolver, name: str) -> list[str]:
    """The TXT values at a name, strings joined; [] = there are none. LookupFailed when nobody knows."""
    try:
        answer = asking.resolve(f"{name}.", "TXT", lifetime=LOOKUP_SECONDS)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except dns.exception.DNSException as error:
        raise LookupFailed(f"{name} could not be looked up: {error}") from None
    return [b"".join(one.strings).decode("utf-8", "replace") for one in answer]


def published(held: Sequence[Held], asking: dns.resolver.Resolver, now: float) -> list[Verdict]:
    """Each key beside the record found for it."""
    return [_published(one, asking, now) for one in held if one.state(now) != "removable"]


def wrong(held: Sequence[Held], asking: dns.resolver.Resolver) -> list[str]:
    """All that would stop verifiers."""
    return [problem for one in held for problem in _published(one, asking, 0.0).problems]


def _published(held: Held, asking: dns.resolver.Resolver, now: float) -> Verdict:
    key = held.key
    try:
        found = txt(asking, key.name)
    except LookupFailed as error:
        return Verdict(key.selector, key.algorithm, held.state(now), [str(error)], [])
    return Verdict(key.selector, key.algorithm, held.state(now), record.problems(key, found), record.warnings(found))


def signed_file(path: Path, signer: Signer, asking: dns.resolver.Resolver, now: float) -> list[Verdict]:
    """A message as relayd would sign it, each signature verified by dkimpy. ValueError when no key covers it."""
    content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    domain = from_domain(content)
    keys = signer.keys_for(domain, now)
    if not keys:
        raise ValueError(f"{path}: no key signs for {domain or 'a message without From'}")
    signed = signer.sign(content, domain, now) + content

    def lookup(name: str) -> str | None:
        return next((value for value in txt(asking, name) if "p=" in value), None)

    found = []
    for number, key in enumerate(keys):
        try:
            why = proof.verify(signed, lookup, number)
        except LookupFailed as error:
            why = str(error)
        found.append(Verdict(key.selector, key.algorithm, "signing", [why] if why else [], []))
    return found


def from_domain(content: bytes) -> str:
    """Of the first mailbox of From, in lower case; "" when there is none."""
    header = BytesHeaderParser(policy=email.policy.compat32).parsebytes(content)
    mailboxes = getaddresses([str(value) for value in header.get_all("From", [])])
    return mailboxes[0][1].rpartition("@")[2].lower() if mailboxes else ""
