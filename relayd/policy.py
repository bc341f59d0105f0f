"""Pure decisions about a client and the paths it names: a Reply is a refusal, None is consent."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from config.addresses import ascii_domain
from config.settings import AccountSettings
from relayd import replies, senders
from relayd.replies import Reply

LOCAL_PART_OCTETS = 64  # RFC 5321 §4.5.3.1.1
DOMAIN_OCTETS = 255  # §4.5.3.1.2
PATH_OCTETS = 254  # §4.5.3.1.3: 256 with the angle brackets

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_UTEXT = _ATEXT.replace("~-]", "~\x80-\U0010ffff-]")  # RFC 6531 §3.3
_LOCAL_PART = re.compile(rf'(?:{_ATEXT}(?:\.{_ATEXT})*|"(?:[ !#-\[\]-~]|\\[ -~])*")')
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # "_" occurs in the wild: DNS decides, not we
_UTF8_LOCAL_PART = re.compile(rf'(?:{_UTEXT}(?:\.{_UTEXT})*|"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*")')
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Client:
    """Who speaks: fixed when the session says EHLO, authenticates or turns to TLS."""

    address: str
    account: AccountSettings | None
    helo: str
    protocol: str  # RFC 3848: SMTP ESMTP ESMTPA ESMTPS ESMTPSA; RFC 6531: UTF8SMTP…


def protocol(extended: bool, tls: bool, authenticated: bool) -> str:
    """Transmission type for the Received field (RFC 3848)."""
    if not extended:
        return "SMTP"
    return "ESMTP" + ("S" if tls else "") + ("A" if authenticated else "")


def with_utf8(client: Client) -> Client:
    """The same client in a transaction that said SMTPUTF8 (RFC 6531 §4.3)."""
    return replace(client, protocol=client.protocol.replace("ESMTP", "UTF8SMTP"))


def may_submit(client: Client) -> Reply | None:
    """No account, no mail: the whole of the open-relay question."""
    if client.account is None:
        return replies.WHO_ARE_YOU
    return replies.ACCOUNT_DISABLED if client.account.disabled else None


def check_reverse_path(path: str, utf8: bool = False) -> Reply | None:
    """ "" (null reverse-path) and mailboxes with a domain are fine."""
    return None if path == "" or is_mailbox(path, utf8) else replies.BAD_SENDER


def may_send_as(account: AccountSettings | None, path: str) -> Reply | None:
    """The reverse-path within the account's senders; what the header says is looked at with the content."""
    if account is None or senders.may_use(account, path):
        return None
    return replies.sender_not_allowed(account.name)


def check_recipient(path: str, utf8: bool = False) -> Reply | None:
    """A mailbox with a domain; <Postmaster> alone is nobody's here (no local mailboxes)."""
    if is_mailbox(path, utf8):
        return None
    return replies.NO_RECIPIENT_DOMAIN if path and "@" not in path else replies.BAD_RECIPIENT


def is_mailbox(path: str, utf8: bool = False) -> bool:
    """RFC 5321 §4.1.2 Mailbox within the length limits; address literals count. With `utf8` also RFC 6531 §3.3."""
    local_part, at, domain = path.rpartition("@")
    if not path.isascii():
        return utf8 and at == "@" and _is_utf8_mailbox(path, local_part, domain)
    if not at or len(path) > PATH_OCTETS or len(local_part) > LOCAL_PART_OCTETS or len(domain) > DOMAIN_OCTETS:
        return False
    if _LOCAL_PART.fullmatch(local_part) is None:
        return False
    return _DOMAIN.fullmatch(domain) is not None or is_address_literal(domain)


def _is_utf8_mailbox(path: str, local_part: str, domain: str) -> bool:
    """Lengths count in octets of UTF-8, the domain's in A-labels too."""
    if not path.isprintable() or len(path.encode()) > PATH_OCTETS or len(local_part.encode()) > LOCAL_PART_OCTETS:
        return False
    if _UTF8_LOCAL_PART.fullmatch(local_part) is None:
        return False
    try:
        return len(ascii_domain(domain)) <= DOMAIN_OCTETS
    except ValueError:
        return False


def is_address_literal(domain: str) -> bool:
    """``[192.0.2.1]`` or ``[IPv6:2001:db8::1]`` (RFC 5321 §4.1.3)."""
    if not (domain.startswith("[") and domain.endswith("]")):
        return False
    text = domain[1:-1]
    try:
        if text[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(text[5:])
        else:
            ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return "%" not in text  # no zone of ours
