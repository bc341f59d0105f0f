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
    """MAIL with the parameters of RFC 1870, 6152 and 6531 that are offered and needed."""
    line = f"MAIL FROM:<{transaction.reverse_path}>"
    if "SIZE" in offered:
        line += f" SIZE={len(transaction.content)}"
    if transaction.body == "8BITMIME":
        line += " BODY=8BITMIME"
    if transaction.smtputf8:
        line += " SMTPUTF8"
    return line + "\r\n"


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
