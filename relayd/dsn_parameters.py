"""The DSN parameters of MAIL and RCPT (RFC 3461 §4, RFC 6533 §3) and xtext. Pure; values keep their case and coding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ENVID_CHARACTERS = 100  # decoded (§4.4)
ORCPT_CHARACTERS = 500  # type and all, as it stands on the wire (§4.2)
_CONDITIONS = ("SUCCESS", "FAILURE", "DELAY")

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")  # all printable ASCII but "+" and "=", or +HEX (§4)
_HEX = re.compile(r"\+([0-9A-F]{2})")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*/?^_`{|}~-]+")
_UNITEXT = re.compile(r"(?:[!-*,-<>-\[\]-~]|\\x\{[0-9A-F]{2,6}\}|[^\x00-\x7f])+")  # RFC 6533 §3: raw UTF-8


def decode_xtext(value: str) -> str | None:
    """``jo+2Bx`` → ``jo+x``, one character per octet; None for what is no xtext."""
    if _XTEXT.fullmatch(value) is None:
        return None
    return _HEX.sub(lambda found: chr(int(found[1], 16)), value) if "+" in value else value


def is_ret(value: str) -> bool:
    return value.upper() in ("FULL", "HDRS")


def is_envid(value: str) -> bool:
    """Printable ASCII once decoded, blanks too: it goes into a header field of a DSN."""
    decoded = decode_xtext(value)
    return decoded is not None and len(decoded) <= ENVID_CHARACTERS and _is_printable(decoded)


def is_notify(value: str) -> bool:
    words = value.upper().split(",")
    return words == ["NEVER"] or (len(set(words)) == len(words) and all(word in _CONDITIONS for word in words))


def is_orcpt(value: str, utf8: bool = False) -> bool:
    """``type;xtext``, not empty and printable once decoded; raw UTF-8 only of type utf-8 and with `utf8`."""
    kind, semicolon, address = value.partition(";")
    if not semicolon or not address or len(value.encode()) > ORCPT_CHARACTERS or _ATOM.fullmatch(kind) is None:
        return False
    if not address.isascii():
        return utf8 and kind.lower() == "utf-8" and _UNITEXT.fullmatch(address) is not None and address.isprintable()
    decoded = decode_xtext(address)
    return decoded is not None and _is_printable(decoded)


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


@dataclass(frozen=True, slots=True)
class DsnFields:
    """As :class:`mailqueue.message.Envelope` wants them."""

    ret: str = ""
    envid: str = ""
    notify: tuple[str, ...] = ()
    orcpt: tuple[str, ...] = ()


def dsn_fields(
    mail_options: Iterable[str], recipients: Sequence[str], rcpt_options: Sequence[Sequence[str]]
) -> DsnFields:
    """What was said for DSNs, per distinct recipient in order; what was said first of one counts.

    ``rcpt_options`` is parallel to ``recipients``, both as accepted (doubles included); values are checked already.
    """
    of_mail = _values(mail_options)
    notify: dict[str, str] = {}
    orcpt: dict[str, str] = {}
    for recipient, options in zip(recipients, rcpt_options, strict=True):
        if recipient not in notify:
            said = _values(options)
            notify[recipient] = said.get("NOTIFY", "").upper()
            orcpt[recipient] = said.get("ORCPT", "")
    return DsnFields(
        ret=of_mail.get("RET", "").upper(),
        envid=of_mail.get("ENVID", ""),
        notify=tuple(notify.values()) if any(notify.values()) else (),
        orcpt=tuple(orcpt.values()) if any(orcpt.values()) else (),
    )


def _values(options: Iterable[str]) -> dict[str, str]:
    return {key: value for key, _, value in (option.partition("=") for option in options)}
