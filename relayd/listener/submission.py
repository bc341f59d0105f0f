"""The session that submitting clients get: all verbs together."""

from __future__ import annotations

from relayd.listener.auth import AuthVerb
from relayd.listener.bdat import BdatVerb
from relayd.listener.starttls import StartTlsVerb


class SubmissionSession(BdatVerb, AuthVerb, StartTlsVerb):
    """SMTP message submission (RFC 6409)."""
