"""IP addresses in configuration: what counts as inside, ``host:port``, ranges of source addresses."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_IN_RANGE = 4096

# Spelled out, because what ipaddress calls private changes between patch releases of Python, and holds more
# than anybody should bind (documentation, reserved and "this network" addresses).
INSIDE: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "100.64.0.0/10",  # RFC 6598, shared
        "::1/128",
        "fe80::/10",
        "fc00::/7",  # RFC 4193
    )
)

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", re.IGNORECASE)
_DEVIATING = "ßς"  # IDNA 2003 maps them, IDNA 2008 does not (UTS 46 §7)


def is_inside(address: IPAddress) -> bool:
    """Private, loopback, link-local or shared (RFC 6598); never the unspecified address."""
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in INSIDE)


def network_inside(network: IPNetwork) -> bool:
    """The whole network lies in one of :data:`INSIDE`."""
    return any(
        network.version == inside.version and network.subnet_of(inside)  # type: ignore[arg-type]
        for inside in INSIDE
    )


def refuse_public(address: str, allow_public: bool = False) -> None:
    """ValueError for what is no address, or is one that the outside could reach."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{address!r} is no IP address; write the address itself, not a name") from None
    if not allow_public and not is_inside(parsed):
        raise ValueError(
            f"{address} is reachable from outside (0.0.0.0 and :: count as public); "
            "allowed: a private, loopback or shared address"
        )


def host_and_port(text: str, port: int | None = None) -> tuple[str, int]:
    """``"127.0.0.1:53"``, ``"[::1]:53"`` → (address, port); a bare address only with a default ``port``."""
    forms = "write address:port, for instance 127.0.0.1:9126 or [::1]:9126"
    host, colon, number = text.rpartition(":")
    try:
        if port is not None and (not colon or (":" in host and not host.endswith("]"))):
            return str(ipaddress.ip_address(text.strip("[]"))), port
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if bare == host and ":" in host:
            raise ValueError(forms)
        address = str(ipaddress.ip_address(bare))
    except ValueError:
        raise ValueError(forms) from None
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and int(number) <= 65535):
        raise ValueError(forms)
    return address, int(number)


def expand(text: str) -> tuple[str, ...]:
    """``"127.0.1.1-127.0.1.48"`` → its 48 addresses, a single address → itself; ValueError says what is wrong."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last if dash else first)
    except ValueError:
        raise ValueError("write an address or a range first-last, for instance 127.0.1.1-127.0.1.48") from None
    if low.version != high.version or int(high) < int(low):
        raise ValueError("a range goes from a lower to a higher address of the same family")
    size = int(high) - int(low) + 1
    if size > MOST_IN_RANGE:
        raise ValueError(f"{size} addresses; a range holds at most {MOST_IN_RANGE}")
    if low.is_unspecified or low.is_multicast or high.is_multicast:
        raise ValueError("unspecified and multicast addresses are no sources")
    return tuple(str(low + step) for step in range(size))


def hostname(text: str) -> str:
    if not _HOSTNAME.fullmatch(text):
        raise ValueError("write a host name: labels of letters, digits and hyphens, separated by dots, none at the end")
    return text


def ascii_domain(text: str) -> str:
    """A domain as it is compared: lower case, A-labels (RFC 5890), address literals (RFC 5321 §4.1.3) in one spelling.

    Letters, marks and digits alone are taken beyond ASCII, and only where no reader maps them to other ones: what two
    programs could read as two domains is a ValueError, as is everything that is no domain.
    """
    if text.startswith("[") and text.endswith("]"):
        six, inner = text[1:6].lower() == "ipv6:", text[1:-1]
        if "%" in inner:
            raise ValueError("an address literal has no zone")
        return f"[ipv6:{ipaddress.IPv6Address(inner[5:])}]" if six else f"[{ipaddress.IPv4Address(inner)}]"
    return hostname(".".join(_a_label(label) for label in text.split("."))).lower()


def _a_label(label: str) -> str:
    label = label.lower()
    if label.isascii():
        return label
    if unicodedata.normalize("NFKC", label) != label or any(char in _DEVIATING for char in label):
        raise ValueError("programs differ in what this domain is; write its A-labels")
    if any(unicodedata.category(char)[0] not in "LMN" for char in label if char != "-") or label[2:4] == "--":
        raise ValueError("beyond ASCII a domain has letters, marks and digits only")
    if label.startswith("-") or label.endswith("-"):
        raise ValueError("a label neither begins nor ends with a hyphen")
    return "xn--" + label.encode("punycode").decode("ascii")


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return hostname(text)


def _domain_pattern(text: str) -> str:
    below = text.startswith("*.")
    try:
        name = hostname(ascii_domain(text[2:] if below else text))
    except ValueError:
        raise ValueError("write a domain (agency.pe), or *.agency.pe for every one below it") from None
    return f"*.{name}" if below else name


def _source(text: str) -> str:
    expand(text)
    return text


def _inside_port(text: str) -> str:
    if text:
        refuse_public(host_and_port(text)[0])
    return text


def _nameserver(text: str) -> str:
    host_and_port(text, 53)
    return text


Hostname = Annotated[str, AfterValidator(hostname)]
DomainPattern = Annotated[str, AfterValidator(_domain_pattern)]  # as domains are compared, "*." before it or not
Host = Annotated[str, AfterValidator(_host)]  # a name or an address
SourceAddress = Annotated[str, AfterValidator(_source)]
InsidePort = Annotated[str, AfterValidator(_inside_port)]  # "address:port" that the outside cannot reach, or ""
Nameserver = Annotated[str, AfterValidator(_nameserver)]


def on_this_host(url: str) -> bool:
    """Whether a server's address is this host's, as far as it shows: unix:///…, or redis://… with a loopback address."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"
