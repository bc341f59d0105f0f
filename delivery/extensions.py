"""What a next hop offers (EHLO keywords) and whether a message fits through it. Pure.

Content is signed and never converted on the way: what does not fit is refused by ourselves, with the status that the
RFC of the extension gives.
"""

from __future__ import annotations

from collections.abc import Mapping

from delivery.reply import Reply
from delivery.transaction import Transaction

Extensions = Mapping[str, str]  # keyword in upper case → its parameters


def extensions_of(reply: Reply) -> Extensions:
    """The keywords of an EHLO reply; its first line is only the peer's name (RFC 5321 §4.1.1.1)."""
    found = {}
    for line in reply.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        found[keyword.upper()] = parameters.strip()
    return found


def mail_command(offered: Extensions, transaction: Transaction) -> str:
    return " ".join([f"MAIL FROM:<{transaction.reverse_path}>", *mail_parameters(offered, transaction)]) + "\r\n"


def rcpt_command(offered: Extensions, transaction: Transaction, index: int) -> str:
    parameters = rcpt_parameters(offered, transaction, index)
    return " ".join([f"RCPT TO:<{transaction.recipients[index]}>", *parameters]) + "\r\n"


def mail_parameters(offered: Extensions, transaction: Transaction) -> list[str]:
    """Those of RFC 1870, 6152, 6531 and 3461 that are offered and needed."""
    parameters = []
    if "SIZE" in offered:
        parameters.append(f"SIZE={len(transaction.content)}")
    if transaction.body == "8BITMIME":
        parameters.append("BODY=8BITMIME")
    if transaction.smtputf8:
        parameters.append("SMTPUTF8")
    if "DSN" in offered:
        parameters += _said(transaction, ("RET", transaction.ret), ("ENVID", transaction.envid))
    return parameters


def rcpt_parameters(offered: Extensions, transaction: Transaction, index: int) -> list[str]:
    """NOTIFY and ORCPT as they came; what was not said is not said for the sender (RFC 3461 §5.2.1)."""
    if "DSN" not in offered:
        return []
    notify = transaction.notify[index] if transaction.notify else ""
    orcpt = transaction.orcpt[index] if transaction.orcpt else ""
    return _said(transaction, ("NOTIFY", notify), ("ORCPT", orcpt))


def _said(transaction: Transaction, *pairs: tuple[str, str]) -> list[str]:
    """A value that is no single word of the session's characters would be a command of its own: it is left out."""
    return [
        f"{name}={value}"
        for name, value in pairs
        if value and value.isprintable() and " " not in value and (transaction.smtputf8 or value.isascii())
    ]


def unfit(offered: Extensions, transaction: Transaction) -> Reply | None:
    """Why this host cannot take this message for anybody, if so."""
    if transaction.smtputf8 and "SMTPUTF8" not in offered:
        return Reply(550, "5.6.7", "the message needs SMTPUTF8, which the next hop does not offer")
    if transaction.body == "8BITMIME" and "8BITMIME" not in offered:
        return Reply(554, "5.6.3", "the content is 8-bit and the next hop does not offer 8BITMIME")
    most, size = offered.get("SIZE", ""), len(transaction.content)
    if most.isdecimal() and len(most) <= 20 and 0 < int(most) < size:
        return Reply(552, "5.3.4", f"message of {size} bytes; the next hop takes at most {most}")
    if not transaction.reverse_path.isprintable():
        return Reply(553, "5.1.7", "control characters in the reverse-path")
    if not transaction.smtputf8 and not transaction.reverse_path.isascii():
        return Reply(550, "5.6.7", "the reverse-path is not ASCII and the message not marked SMTPUTF8")
    return None


def unsendable(transaction: Transaction) -> dict[int, Reply]:
    """Recipients that must not reach the wire, by index: a line end inside one would be a command of its own."""
    refused = {}
    for index, recipient in enumerate(transaction.recipients):
        if not recipient or not recipient.isprintable():
            refused[index] = Reply(553, "5.1.3", "no valid recipient address")
        elif not transaction.smtputf8 and not recipient.isascii():
            refused[index] = Reply(553, "5.6.7", "the recipient is not ASCII and the message not marked SMTPUTF8")
    return refused
