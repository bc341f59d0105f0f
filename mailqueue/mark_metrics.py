"""The figures of the marks as metrics of whichever process asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mailqueue.marks import MARKS, Figures

_FIGURES: tuple[tuple[str, str, Callable[[Figures], int | None]], ...] = (
    ("tambo_queue_memory_used_bytes", "Memory in use at the queue server", lambda f: f.memory_used),
    ("tambo_queue_memory_limit_bytes", "Memory the queue server may use", lambda f: f.memory_limit),
    ("tambo_queue_memory_mark_bytes", "Memory in use from which mail is refused", lambda f: f.memory_mark),
    ("tambo_queue_disk_free_bytes", "Free space on the queue server's disk", lambda f: f.disk_free),
    ("tambo_queue_disk_mark_bytes", "Free space below which mail is refused", lambda f: f.disk_mark),
)


class MarkMetrics(Collector):
    """``figures`` as last asked, before that nothing is shown; those of the disk only where it is watched."""

    def __init__(self, figures: Callable[[], Figures], registry: CollectorRegistry) -> None:
        self._figures = figures
        registry.register(self)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        for name, text, _ in _FIGURES:
            yield GaugeMetricFamily(name, text)
        yield _full()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        figures = self._figures()
        if not figures.memory_limit:
            return
        for name, text, read in _FIGURES:
            value = read(figures)
            if value is not None and ("disk" not in name or figures.disk_free is not None):
                yield GaugeMetricFamily(name, text, value=value)
        full = _full()
        for mark in MARKS:
            full.add_metric([mark], float(mark in figures.reached))
        yield full


def _full() -> GaugeMetricFamily:
    return GaugeMetricFamily("tambo_queue_full", "1 while mail is refused at this mark", labels=["mark"])
