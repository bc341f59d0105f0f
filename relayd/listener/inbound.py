"""The session that hosts returning mail get: no AUTH, and nothing offered that a returned mail has no use for."""

from __future__ import annotations

from relayd.listener.bdat import BdatVerb
from relayd.listener.starttls import StartTlsVerb


class InboundSession(BdatVerb, StartTlsVerb):
    """SMTP as a mail exchanger speaks it (RFC 5321), for signed return paths and a few mailboxes. BDAT is not offered;
    who says it all the same must not have its octets read as commands."""

    def _keywords(self) -> list[str]:
        return [word for word in super()._keywords() if word.split(" ")[0] not in ("AUTH", "CHUNKING", "DSN")]
