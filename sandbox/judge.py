"""The verdicts a receiver makes of a message: SPF, each DKIM signature, DMARC, and how RFC 8601 writes them down.

Pure but for the DNS, which is the sandbox's own, asked without a socket.
"""

from __future__ import annotations

import email
import email.policy
import re
from dataclasses import dataclass

from sandbox import dmarc, spf
from sandbox.spf import Lookup, LookupFailed
from signing import proof

MOST_SIGNATURES = 10
_TAG = re.compile(r"(?:^|;)\s*(d|s|a|i|b)\s*=([^;]*)")
_HEADERS_ONLY = email.policy.compat32


@dataclass(frozen=True, slots=True)
class Signature:
    """One DKIM-Signature field. ``result``: pass | fail | temperror | permerror."""

    result: str
    domain: str
    selector: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdicts:
    spf: spf.Verdict
    dkim: tuple[Signature, ...]
    dmarc: dmarc.Verdict

    @property
    def dkim_result(self) -> str:
        """One word for all signatures: pass when one does, none without any."""
        results = [signature.result for signature in self.dkim]
        return "pass" if "pass" in results else results[0] if results else "none"

    @property
    def refused(self) -> bool:
        """Whether the domain of From asks that this be refused."""
        return self.dmarc.result == "fail" and self.dmarc.policy == "reject"

    def words(self) -> dict[str, str]:
        """For the ledger and lists."""
        said = {"spf": self.spf.result, "dkim": self.dkim_result, "dmarc": self.dmarc.result}
        return said | ({"policy": self.dmarc.policy} if self.dmarc.result == "fail" else {})

    def field(self, host: str, reverse_path: str, helo: str) -> str:
        """The Authentication-Results field (RFC 8601 §2.2), with the CRLF at its end."""
        spoken = f"smtp.mailfrom={_word(reverse_path)}" if reverse_path else f"smtp.helo={_word(helo)}"
        parts = [f"spf={self.spf.result} ({_comment(self.spf.why)}) {spoken}"]
        for one in self.dkim:
            why = f" ({_comment(one.why)})" if one.why else ""
            parts.append(f"dkim={one.result}{why} header.d={_word(one.domain)} header.s={_word(one.selector)}")
        if not self.dkim:
            parts.append("dkim=none")
        asked = (
            f" (p={self.dmarc.policy})" if self.dmarc.result in ("pass", "fail") else f" ({_comment(self.dmarc.why)})"
        )
        parts.append(f"dmarc={self.dmarc.result}{asked} header.from={_word(self.dmarc.domain)}")
        return f"Authentication-Results: {host};\r\n\t" + ";\r\n\t".join(parts) + "\r\n"


def judge(
    lookup: Lookup, suffixes: dmarc.Suffixes, content: bytes, source: str, reverse_path: str, helo: str
) -> Verdicts:
    """``content`` as it came, CRLF; ``source`` the client's address. Never raises for what a sender wrote."""
    sender = spf.check(lookup, source, reverse_path, helo)
    head = content.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    message = email.message_from_bytes(head, policy=_HEADERS_ONLY)
    fields = [str(value) for value in message.get_all("DKIM-Signature", [])][:MOST_SIGNATURES]
    signatures = tuple(_signature(lookup, content, field, number) for number, field in enumerate(fields))
    passed = [one.domain for one in signatures if one.result == "pass"]
    by_spf = sender.domain if sender.result == "pass" else ""
    return Verdicts(sender, signatures, dmarc.check(lookup, suffixes, dmarc.author(message), by_spf, passed))


def _signature(lookup: Lookup, content: bytes, field: str, number: int) -> Signature:
    tags = {name: value.strip() for name, value in _TAG.findall(re.sub(r"\s+", "", field))}
    domain, selector = tags.get("d", "").lower(), tags.get("s", "")
    failed: list[str] = []

    def text(name: str) -> str | None:
        try:
            found = lookup(name, "TXT")
        except LookupFailed as error:
            failed.append(str(error))
            return None
        return found[0] if found else None

    try:
        why = proof.verify(content, text, number)
    except Exception as error:  # the gate: what a stranger wrote may break dkimpy in any way
        return Signature("permerror", domain, selector, type(error).__name__)
    result = "temperror" if failed else "fail" if why else "pass"
    return Signature(result, domain, selector, why.partition(" (")[0])


def _word(text: str) -> str:
    """A value of RFC 8601's ABNF: a token or an address as it is, else quoted; nothing that ends the field."""
    clean = "".join(letter if " " <= letter < "\x7f" else "?" for letter in text)
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+./=?^_`{|}~@:\[\]-]+", clean):
        return clean
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _comment(text: str) -> str:
    clean = "".join(letter if " " <= letter < "\x7f" else "?" for letter in text[:100])
    return clean.replace("\\", "/").replace("(", "[").replace(")", "]") or "-"
