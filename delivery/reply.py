"""What a peer says: phases of a session, replies, and the parser that turns bytes into replies (RFC 5321 §4.2).

Sans-I/O. Lenient where the field is (bare LF, codes of one reply that disagree, Latin-1 text), strict where leniency
would let a peer fill our memory or lead us out of step: then :class:`ProtocolFault`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MAX_LINE = 2048  # bytes; RFC 5321 §4.5.3.1.5 says 512 with CRLF, some filters write longer reasons
MAX_LINES = 100  # of one reply; a long EHLO answer has about 20

# RFC 2034 puts the status first; "#5.1.1" is an old Cisco habit.
_STATUS = re.compile(r"#?([245]\.\d{1,3}\.\d{1,3})(?=[\s:;,-]|$)[:;,-]?\s*")


class Phase(StrEnum):
    """Where a session is: the command whose reply is awaited, or what is being written."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"  # EHLO or HELO
    STARTTLS = "starttls"  # the command
    TLS = "tls"  # the handshake
    AUTH = "auth"  # at a smarthost
    MAIL = "mail"  # with the RSET that may precede it
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"  # after 354, before the final dot
    END_OF_DATA = "end-of-data"  # the final dot is (maybe partly) written
    QUIT = "quit"


Ear = Callable[[str, Phase, str], None]  # who overhears a session: "C" us, "S" the peer, "*" a remark; phase; text


class ProtocolFault(Exception):
    """The peer does not speak SMTP, or speaks out of turn; the session cannot go on."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. ``code`` 200–599, its first digit decides; ``status`` is the enhanced code as the peer said it.

    ``text``: the lines joined by a space, without status codes; ``lines``: as received after the reply code.
    Control characters are replaced, so that a reply can be logged and quoted in a DSN.
    """

    code: int
    status: str = ""  # "" if none; its class may disagree with the code, which then prevails
    text: str = ""
    lines: tuple[str, ...] = ()

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def intermediate(self) -> bool:
        return 300 <= self.code < 400

    @property
    def transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return 500 <= self.code < 600

    @property
    def closing(self) -> bool:
        """421: the peer closes the channel, whatever the command was (RFC 5321 §3.8)."""
        return self.code == 421

    @property
    def spelled(self) -> str:
        """Its lines as they came, code and all."""
        last = len(self.lines) - 1
        return "\n".join(f"{self.code}{' ' if at == last else '-'}{line}" for at, line in enumerate(self.lines))

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.status, self.text) if part)


def make_reply(code: int, lines: tuple[str, ...]) -> Reply:
    """A reply from its code and the texts of its lines; finds the status and keeps it out of ``text``."""
    found = _STATUS.match(lines[0])
    if found is None:
        return Reply(code, "", (lines[0] if len(lines) == 1 else " ".join(lines)).strip(), lines)
    # Most peers repeat the status on every line; said once is enough.
    texts = (line[m.end() :] if (m := _STATUS.match(line)) and m[1] == found[1] else line for line in lines)
    return Reply(code, found[1], " ".join(texts).strip(), lines)


class ReplyParser:
    """``push`` bytes, then ``next`` until it gives None. Raises ProtocolFault after the good replies before the bad."""

    __slots__ = ("_buffer", "_lines")

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []

    @property
    def idle(self) -> bool:
        """Nothing is buffered: no byte beyond the replies already given out."""
        return not self._buffer and not self._lines

    def push(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data

    def next(self) -> Reply | None:
        while True:
            end = self._buffer.find(b"\n")
            if (end if end >= 0 else len(self._buffer)) > MAX_LINE:
                raise ProtocolFault(f"reply line longer than {MAX_LINE} bytes")
            if end < 0:
                return None
            line, self._buffer = self._buffer[:end].rstrip(b"\r"), self._buffer[end + 1 :]
            code, last, text = _line(line)
            self._lines.append(text)
            if last:
                lines, self._lines = tuple(self._lines), []
                return make_reply(code, lines)  # codes that disagree: the last line's counts, as in Postfix
            if len(self._lines) >= MAX_LINES:
                raise ProtocolFault(f"reply of more than {MAX_LINES} lines")


def _line(line: bytes) -> tuple[int, bool, str]:
    """(code, whether it is the reply's last line, text) of one line without its line end."""
    digits, mark = line[:3], line[3:4]
    if len(digits) != 3 or not digits.isdigit() or digits[:1] not in b"2345" or mark not in (b" ", b"-", b"\t", b""):
        raise ProtocolFault(f"no SMTP reply: {_text(line[:80])!r}")
    return int(digits), mark != b"-", _text(line[4:])


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
