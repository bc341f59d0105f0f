"""The session that hosts returning mail get: no AUTH, and nothing offered that a returned mail has no use for."""

from __future__ import annotations

from relayd.listener.data import DataVerb
from relayd.listener.starttls import StartTlsVerb


class InboundSession(DataVerb, StartTlsVerb):
    """SMTP as a mail exchanger speaks it (RFC 5321), for signed return paths and a few mailboxes."""

    def _keywords(self) -> list[str]:
        return [word for word in super()._keywords() if word.split(" ")[0] not in ("AUTH", "CHUNKING", "DSN")]
