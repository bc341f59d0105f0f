"""What delivery counts, under the names that dashboards of the field know. Labels: provider and source, no domains."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from delivery.pool import Source
from mailqueue.events import Event
from mailqueue.paces import Paces

LATENCIES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86400)


class DeliveryMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.paces = Paces()
        by_both = ("provider", "source")
        names = {
            "delivered": "total_messages_delivered_by_provider_and_source",
            "deferred": "total_messages_transfail_by_provider_and_source",
            "bounced": "total_messages_fail_by_provider_and_source",
            "unknown": "total_messages_unknown_by_provider_and_source",
        }
        self.results = {
            kind: Counter(name, f"Recipients {kind}, by provider and source", by_both, registry=registry)
            for kind, name in names.items()
        }
        self.results["expired"] = self.results["bounced"]
        self.sessions = Gauge(
            "connection_count_by_provider", "Open sessions, by provider", ("provider",), registry=registry
        )
        self.opened = Counter(
            "total_connection_count", "Sessions opened, by provider", ("provider",), registry=registry
        )
        self.refused = Counter(
            "egress_source_connection_failures", "Sessions that did not open", ("source", "kind"), registry=registry
        )
        self.refused_at = Gauge(
            "tambo_source_refused_seconds",
            "Unix time of the last reply that blamed the source, not the recipient",
            by_both,
            registry=registry,
        )
        self.sources = Gauge("tambo_sources", "Sources of a pool that are not turned off", ("pool",), registry=registry)
        self.waiting = Gauge(
            "ready_count", "Tickets held: destinations with mail due and no capacity yet", registry=registry
        )
        self.in_flight = Gauge("tambo_in_flight", "Items claimed and not yet settled", registry=registry)
        self.limited = Counter(
            "delayed_due_to_throttle", "Times a limit made a site wait, by provider", ("provider",), registry=registry
        )
        self.latency = Histogram(
            "deliver_message_latency_rollup",
            "Seconds from acceptance to delivery",
            buckets=LATENCIES,
            registry=registry,
        )
        self.leases_lost = Counter("tambo_leases_lost", "Leases on the queue lost by silence", registry=registry)

    def note_pools(self, pools: Mapping[str, Sequence[Source]]) -> None:
        """At start and on reload."""
        for pool, sources in pools.items():
            self.sources.labels(pool).set(sum(source.weight > 0 for source in sources))

    def settled(self, event: Event) -> None:
        """What became of a recipient."""
        counter = self.results.get(event.kind)
        if counter is not None:
            counter.labels(event.provider, event.source).inc()
            self.paces.add(event.kind)
        if event.kind == "delivered":
            self.paces.add(("source", event.source))
            self.paces.add(("provider", event.provider))
            self.latency.observe((event.at - event.received_at) / 1000)

    def source_refused(self, provider: str, source: str) -> None:
        self.refused_at.labels(provider, source).set(time.time())
