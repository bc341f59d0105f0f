"""Figures of the listener, under the names that dashboards of the field know already.

Plain names without ``_total`` suffix: what only grows is a Gauge that nobody lowers (``rate()`` does not mind),
because the client library renames counters.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

from mailqueue.paces import Paces
from relayd.replies import UNSIGNED

_SERVICE = "esmtp_listener"
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ListenerMetrics:
    """Children are looked up once here: an increment on the hot path is one call."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.paces = Paces()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["service"], registry=registry).labels(_SERVICE)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, ["service"], registry=registry, buckets=_FAST).labels(_SERVICE)

        self.connections = gauge("connection_count", "open connections")
        self.connections_opened = gauge("total_connection_count", "connections accepted since start")
        self.connections_denied = gauge("total_connections_denied", "connections refused by a cap")
        self.messages = gauge("total_messages_received", "messages answered with 250")
        self.read_data = seconds("smtpsrv_read_data_duration", "seconds from 354 to the end of content")
        self.process_data = seconds("smtpsrv_process_data_duration", "seconds from the end of content to its reply")
        self.transaction = seconds("smtpsrv_transaction_duration", "seconds from MAIL to the reply to the content")
        self._rejections = Gauge(
            "smtp_server_rejections", "replies that refuse, by reason", ["service", "reason"], registry=registry
        )
        self._flags = Gauge(
            "total_messages_flagged", "messages accepted with a warning", ["service", "warning"], registry=registry
        )
        # There from the start, for an alert: increase() sees nothing of a series that begins with the first message.
        self._by_reason = {UNSIGNED: self._rejections.labels(_SERVICE, UNSIGNED)}
        self._by_warning = {UNSIGNED: self._flags.labels(_SERVICE, UNSIGNED)}

    def flagged(self, warning: str) -> None:
        """`warning` comes from :mod:`relayd.prepare`, a closed set."""
        child = self._by_warning.get(warning)
        if child is None:
            child = self._by_warning[warning] = self._flags.labels(_SERVICE, warning)
        child.inc()

    def rejected(self, reason: str) -> None:
        """`reason` comes from :mod:`relayd.replies`, a closed set."""
        child = self._by_reason.get(reason)
        if child is None:
            child = self._by_reason[reason] = self._rejections.labels(_SERVICE, reason)
        child.inc()
