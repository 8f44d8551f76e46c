"""Metrics of the service in addition to those of its hooks, filtered by the token."""

import platform
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from rowsignal.service.probe import Probe
from rowsignal.sse import Grant, Outlet


class ServiceMetrics(Collector):
    """Metrics of the fan-out and the probe, read at each scrape."""

    def __init__(self, outlet: Outlet, probe: Probe, version: str) -> None:
        self._outlet = outlet
        self._probe = probe
        self._version = version

    def collect(self) -> Iterable[Metric]:
        """Return the present metrics."""
        yield self._build()
        fanout, counts = self._outlet.fanout, self._outlet.fanout.counts
        is_ready = self._probe.problem is None and not fanout.is_closing
        yield _gauge("ready", "1 while streams can be served.", float(is_ready))
        yield _gauge("readers", "Open streams.", fanout.readers)
        yield _gauge(
            "readers_limit", "Streams that this process serves.", fanout.limits.max_streams
        )
        yield _counter("events_sent", "Events handed to readers.", counts.delivered)
        yield _counter("sent_bytes", "Bytes handed to readers.", counts.bytes)
        yield _counter("reader_resets", "Readers that had to start again.", counts.resets)
        yield _counter("overflows", "Readers whose buffer overflowed.", counts.overflows)
        yield from self._of_log()

    def _build(self) -> Metric:
        labels = {"version": self._version, "python": platform.python_version()}
        found = GaugeMetricFamily("rowsignal_build_info", "Always 1.", labels=list(labels))
        found.add_metric(list(labels.values()), 1)
        return found

    def _of_log(self) -> Iterator[Metric]:
        facts = self._probe.facts
        usage = facts.get("queue_usage")
        if usage is not None:
            yield _gauge("queue_usage", "Share of PostgreSQL's NOTIFY queue in use.", usage)
        log = facts.get("log")
        if log is None:
            return
        yield _gauge("log_bytes", "Size of the change log.", log["bytes"])
        yield _gauge("log_bytes_limit", "Size that the log may have.", log["retention_bytes"])
        yield _gauge("log_age_seconds", "Age of the oldest change.", _age(log["oldest_at"]))
        yield _gauge(
            "log_lag_seconds",
            "Time since the oldest transaction ended that streams have not reached.",
            self._probe.lag.seconds,
        )


class VisibleMetrics:
    """Metrics without the samples of tables that a grant does not name."""

    def __init__(self, registry: CollectorRegistry, grant: Grant) -> None:
        self._registry = registry
        self._grant = grant

    def collect(self) -> Iterator[Metric]:
        """Return the visible samples of each metric."""
        for metric in self._registry.collect():
            left = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            left.samples = [it for it in metric.samples if self._is_visible(it.labels.get("table"))]
            yield left

    def _is_visible(self, table: str | None) -> bool:
        return table is None or self._grant.for_table(table) is not None


def register_process(registry: CollectorRegistry) -> None:
    """Register Prometheus' metrics of Python processes: CPU, memory, files, garbage."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)


def _age(moment: str | None) -> float:
    if moment is None:
        return 0.0
    return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"rowsignal_{name}", text, value=value or 0)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"rowsignal_{name}", text, value=value)
