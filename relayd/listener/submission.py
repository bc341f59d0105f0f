"""The session that submitting clients get: all verbs together."""

from __future__ import annotations

from relayd.listener.auth import AuthVerb
from relayd.listener.data import DataVerb
from relayd.listener.starttls import StartTlsVerb


class SubmissionSession(DataVerb, AuthVerb, StartTlsVerb):
    """SMTP message submission (RFC 6409)."""
