"""Every reply the listener says: code, enhanced status code (RFC 3463, RFC 2034) and text.

Banner, the answers to EHLO and HELO, 334 and 354 carry no enhanced code (RFC 2034 §4); everything else does. Texts name what
to do, never what failed inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TEXT_LIMIT = 440  # a reply line is 512 octets at most (RFC 5321 §4.5.3.1.5)


@dataclass(frozen=True, slots=True)
class Reply:
    """``reason`` is the word under which refusals are counted (metric label, event); "" for what is no refusal."""

    code: int
    status: str  # "" where RFC 2034 wants none
    text: str
    reason: str = ""
    line: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = f"{self.code} {self.status} {self.text}" if self.status else f"{self.code} {self.text}"
        object.__setattr__(self, "line", words.encode("ascii", "replace") + b"\r\n")

    def __str__(self) -> str:
        return self.line.decode("ascii").rstrip()


# Sessions
QUIT = Reply(221, "2.0.0", "bye")
OK = Reply(250, "2.0.0", "ok")
HELP = Reply(214, "2.0.0", "see RFC 5321 and RFC 6409")
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "too many connections, try again later", "connections")
TOO_MANY_ON_LISTENER = Reply(421, "4.7.0", "too many connections here, try again later", "connections_of_listener")
TOO_MANY_FROM_ADDRESS = Reply(421, "4.7.0", "too many connections from your address", "connections_per_address")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "too many errors", "errors")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "too many commands in one session, connect again", "commands")
TOO_MANY_FAILED_AUTH = Reply(421, "4.7.0", "too many failed authentications", "auth")
PASSWORD_GONE = Reply(421, "4.7.0", "the password does not count any more, connect again", "auth")
SHUTTING_DOWN = Reply(421, "4.3.2", "shutting down, connect again", "shutdown")
INTAKE_STOPPED = Reply(421, "4.3.2", "no mail is taken for now, try again later", "intake")
IDLE = Reply(421, "4.4.2", "idle for too long", "idle")
CONTENT_TOO_SLOW = Reply(421, "4.4.2", "content took too long", "idle")
NOT_SMTP = Reply(421, "4.7.0", "this is SMTP", "syntax")
INTERNAL = Reply(451, "4.3.0", "temporary failure, try again", "internal")
BROKEN_OFF = Reply(421, "4.3.0", "temporary failure in the midst of content, connect again", "internal")
BDAT_SYNTAX = Reply(421, "4.5.4", "syntax: BDAT octets [LAST]; what follows cannot be told from commands", "syntax")
CHUNK_TOO_BIG = Reply(421, "4.5.4", "chunk beyond every limit, not read", "size")

# Syntax and order
BAD_LINE = Reply(500, "5.5.2", "lines are printable ASCII and end in CRLF", "syntax")
BAD_UTF8 = Reply(500, "5.5.2", "not valid UTF-8", "syntax")
LINE_TOO_LONG = Reply(500, "5.5.2", "line too long", "syntax")
AUTH_LINE_TOO_LONG = Reply(500, "5.5.6", "authentication exchange line is too long", "syntax")
UNKNOWN_COMMAND = Reply(500, "5.5.1", "command not recognized", "syntax")
NOT_OFFERED = Reply(502, "5.5.1", "command not offered", "syntax")
NO_ARGUMENT = Reply(501, "5.5.4", "no argument allowed", "syntax")
HELLO_FIRST = Reply(503, "5.5.1", "say EHLO first", "sequence")
MAIL_FIRST = Reply(503, "5.5.1", "MAIL first", "sequence")
RCPT_FIRST = Reply(503, "5.5.1", "RCPT first, no valid recipients", "sequence")
CHUNKS_BEGUN = Reply(503, "5.5.1", "BDAT has begun, go on with it or say RSET", "sequence")
NESTED_MAIL = Reply(503, "5.5.1", "a mail transaction is under way", "sequence")
HELLO_SYNTAX = Reply(501, "5.5.4", "syntax: EHLO name", "syntax")
MAIL_SYNTAX = Reply(501, "5.5.4", "syntax: MAIL FROM:<address> [parameters]", "syntax")
RCPT_SYNTAX = Reply(501, "5.5.4", "syntax: RCPT TO:<address> [parameters]", "syntax")
SIZE_VALUE = Reply(501, "5.5.4", "SIZE is a number of octets", "syntax")
BODY_VALUE = Reply(501, "5.5.4", "BODY is 7BIT or 8BITMIME", "syntax")
AUTH_VALUE = Reply(501, "5.5.4", "AUTH is <> or an address in xtext", "syntax")
SMTPUTF8_VALUE = Reply(501, "5.5.4", "SMTPUTF8 takes no value", "syntax")
RET_VALUE = Reply(501, "5.5.4", "RET is FULL or HDRS", "syntax")
ENVID_VALUE = Reply(501, "5.5.4", "ENVID is xtext of at most 100 printable characters", "syntax")
NOTIFY_VALUE = Reply(501, "5.5.4", "NOTIFY is NEVER, or of SUCCESS, FAILURE and DELAY each once", "syntax")
ORCPT_VALUE = Reply(501, "5.5.4", "ORCPT is type;address in xtext, at most 500 characters", "syntax")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "parameter not recognized", "syntax")
CANNOT_VERIFY = Reply(252, "2.1.5", "cannot verify, send and see")

# Mail transaction
SENDER_OK = Reply(250, "2.1.0", "ok")
RECIPIENT_OK = Reply(250, "2.1.5", "ok")
WHO_ARE_YOU = Reply(530, "5.7.0", "authentication required", "relaying")
ACCOUNT_DISABLED = Reply(550, "5.7.1", "account disabled", "account_disabled")
BAD_SENDER = Reply(553, "5.1.7", "malformed reverse-path", "sender")
BAD_RECIPIENT = Reply(553, "5.1.3", "malformed recipient address", "recipient")
NO_RECIPIENT_DOMAIN = Reply(553, "5.1.3", "the recipient address needs a domain", "recipient")
NOT_ASCII = Reply(553, "5.6.7", "an address beyond ASCII needs SMTPUTF8", "utf8")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "too many recipients in one transaction", "recipients")
TOO_BIG = Reply(552, "5.3.4", "message too big", "size")
QUEUE_FULL = Reply(452, "4.3.1", "queue full, try again later", "queue_full")
NOT_ACCEPTING = Reply(452, "4.3.1", "cannot take mail now, try again later", "queue_full")
NO_ROOM = Reply(452, "4.3.1", "too much mail is coming in at once, try again later", "volume")
QUEUE_DOWN = Reply(451, "4.3.0", "queue not available, try again", "queue_down")
TOO_MANY_HOPS = Reply(554, "5.4.6", "too many hops, mail is looping", "hops")
HEADER_TOO_BIG = Reply(552, "5.3.4", "header too big", "header")
RELAYING_DENIED = Reply(550, "5.7.1", "relaying denied", "relaying")
NO_SUCH_MAILBOX = Reply(550, "5.1.1", "no such mailbox here", "recipient")
UNSIGNED = "unsigned"  # no key covers the From domain: reason of a refusal, or warning of what was accepted
NOT_SIGNED = Reply(550, "5.7.20", "no DKIM key for the domain of the From address", UNSIGNED)
SEND_CONTENT = Reply(354, "", "end with <CRLF>.<CRLF>")

# TLS and AUTH
START_TLS = Reply(220, "2.0.0", "go ahead")
TLS_NOT_OFFERED = Reply(502, "5.5.1", "TLS is not offered here", "tls")
TLS_ALREADY = Reply(503, "5.5.1", "TLS is active already", "sequence")
TLS_NOTHING_MAY_FOLLOW = Reply(421, "4.7.0", "nothing may be sent behind STARTTLS before the handshake", "injection")
AUTH_OK = Reply(235, "2.7.0", "authentication successful")
AUTH_FAILED = Reply(535, "5.7.8", "authentication credentials invalid", "auth")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "encryption required, say STARTTLS first", "auth")
AUTH_NOT_OFFERED = Reply(502, "5.5.1", "AUTH is not offered here", "auth")
AUTH_BUSY = Reply(454, "4.7.0", "temporary authentication failure, try again", "auth_busy")
AUTH_REFUSED = Reply(454, "4.7.0", "too many failed authentications, try again later", "auth_refused")
AUTH_ALREADY = Reply(503, "5.5.1", "authenticated already", "sequence")
AUTH_IN_TRANSACTION = Reply(503, "5.5.1", "not during a mail transaction", "sequence")
AUTH_SYNTAX = Reply(501, "5.5.4", "syntax: AUTH mechanism [initial-response]", "syntax")
AUTH_MECHANISM = Reply(504, "5.5.4", "mechanisms: PLAIN, LOGIN", "auth")
AUTH_CANCELLED = Reply(501, "5.7.0", "authentication cancelled", "auth")
AUTH_BAD_RESPONSE = Reply(501, "5.5.2", "cannot decode the response", "auth")


def queued(message_id: str) -> Reply:
    return Reply(250, "2.0.0", f"queued as {message_id}")


def chunk(size: int) -> Reply:
    return Reply(250, "2.0.0", f"{size} octets received")


def taken(message_id: str) -> Reply:
    """Mail that came back, kept."""
    return Reply(250, "2.0.0", f"taken as {message_id}")


def duplicate(message_id: str) -> Reply:
    """The idempotency key was seen: everything in this message is queued already under another id."""
    return Reply(250, "2.0.0", f"queued as {message_id} (duplicate, already queued)")


def sender_not_allowed(account: str) -> Reply:
    return Reply(550, "5.7.1", f"sender not allowed for account {account}", "sender_not_allowed")


def author_refused(header: str, why: str) -> Reply:
    """From, Sender, Resent-From or Resent-Sender of an account that may not send as anybody."""
    return Reply(550, "5.7.1", f"{header}: {why}"[:_TEXT_LIMIT], "sender_not_allowed")


def header_refused(name: str, why: str) -> Reply:
    return Reply(550, "5.6.0", f"{name}: {why}"[:_TEXT_LIMIT], "header")


def over_quota(left: int, count: int) -> Reply:
    text = f"quota exhausted: {left} recipients left, message has {count}"
    return Reply(550, "5.7.1", text, "quota")


def outside_term(why: str) -> Reply:
    """`why`: the days of the quota."""
    return Reply(550, "5.7.1", why, "quota")


def over_rate(limit: str, again: str) -> Reply:
    return Reply(451, "4.7.1", f"rate limit of {limit} reached, try again at {again}", "rate")


def above_rate(limit: str, count: int) -> Reply:
    """A message that would not fit into an empty minute, hour or day: waiting does not help."""
    return Reply(550, "5.7.1", f"message has {count} recipients, rate limit is {limit}: send it in parts", "rate")


def not_seven_bit(why: str) -> Reply:
    return Reply(554, "5.6.1", f"cannot be converted to 7-bit: {why}"[:_TEXT_LIMIT], "content")


def too_many_campaigns(limit: int) -> Reply:
    return Reply(452, "4.3.1", f"too many campaigns open ({limit}); finish or delete one", "campaigns")


def challenge(text: bytes) -> bytes:
    """334 line of a SASL exchange; `text` is base64 already, the space stays even before nothing (RFC 4954 §4)."""
    return b"334 " + text + b"\r\n"


_BARE = re.compile(r"([245])\d\d(?!-| \d\.\d{1,3}\.\d{1,3} )")
_UNCODED = ("220 ", "334 ", "354 ")


def with_status(line: str) -> str:
    """A foreign reply line gets its class's plain enhanced code (x.0.0) unless it has one or must have none."""
    found = _BARE.match(line)
    if found is None or line.startswith(_UNCODED):
        return line
    return f"{line[:3]} {found[1]}.0.0 {line[4:]}"
