"""Prometheus metrics of waits, streams and the listener, labelled by table, not by key."""

from rowsignal.exceptions import missing_extra
from rowsignal.hooks import Hooks, Mode

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as error:
    raise missing_extra("rowsignal.metrics", "metrics", error) from error

__all__ = ["PrometheusHooks"]

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Maker:
    """Makes metrics in one registry, all with names that begin with `rowsignal_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rowsignal_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"rowsignal_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"rowsignal_{name}", text, labels, buckets=LATENCIES, registry=self._registry
        )


class PrometheusHooks(Hooks):
    """Hooks that update metrics: pass them to a `Listener`, to `create_sse_router` or both.

        hooks = PrometheusHooks()
        Listener(engine, hooks=hooks)

    Labels are tables and modes, so the number of series depends on the number of tables.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        make = _Maker(registry)
        self.connects = make.counter("listener_connects", "Connections that listened.")
        self.fallbacks = make.counter("listener_fallbacks", "Times that polling took over.")
        self.listener_up = make.gauge("listener_up", "1 while notifications arrive.")
        self.notifications = make.counter(
            "notifications", "Notifications, by whether they were accepted.", "accepted"
        )
        self.reads = make.histogram(
            "row_read_seconds", "Batched reads of waited-for rows.", "table"
        )
        self.rows = make.counter("rows_read", "Rows read.", "table")
        self.modes = make.counter(
            "mode_changes", "Changes of how a table is watched.", "table", "mode"
        )
        self.deliveries = make.counter(
            "deliveries", "Changes handed to readers, and waits resolved.", "table"
        )
        self.resets = make.counter("resets", "Times that readers had to start again.", "table")
        self.delivery = make.histogram(
            "delivery_seconds",
            "From the capture of a change to its being handed to readers, sampled.",
        )
        self.restarts = make.counter(
            "task_restarts", "Times that a task failed unforeseen and began again.", "task"
        )
        self._count_handlers(make)

    def _count_handlers(self, make: "_Maker") -> None:
        self.handled_changes = make.counter("handled_changes", "Changes handled.", "consumer")
        self.handler_seconds = make.histogram(
            "handler_seconds", "Transactions of handlers.", "consumer"
        )
        self.handler_failures = make.counter(
            "handler_failures", "Attempts that failed.", "consumer"
        )
        self.dead_letters = make.counter("dead_letters", "Changes given up.", "consumer")
        place = ("consumer", "partition")
        self.lag_changes = make.gauge("consumer_lag_changes", "Changes to handle.", *place)
        self.lag_seconds = make.gauge("consumer_lag_seconds", "Age of the first of them.", *place)
        self.retention_used = make.gauge(
            "consumer_retention_used",
            "Share of the retention behind the consumer; at 1 changes are lost to it.",
            *place,
        )

    def connected(self, *, epoch: int) -> None:  # noqa: ARG002 -- counted, not shown
        """Count a connection."""
        self.connects.inc()
        self.listener_up.set(1)

    def degraded(self, *, reason: str) -> None:  # noqa: ARG002 -- a sentence is no label
        """Count a fallback to polling."""
        self.fallbacks.inc()
        self.listener_up.set(0)

    def notified(self, *, accepted: bool) -> None:
        """Count a notification."""
        self.notifications.labels(accepted=str(accepted).lower()).inc()

    def rows_read(self, *, table: str, rows: int, seconds: float) -> None:
        """Count a query that read the rows of waits."""
        super().rows_read(table=table, rows=rows, seconds=seconds)
        self.reads.labels(table=table).observe(seconds)
        self.rows.labels(table=table).inc(rows)

    def mode_changed(self, *, table: str, mode: Mode) -> None:
        """Count a change of mode."""
        self.modes.labels(table=table, mode=mode).inc()

    def delivered(self, *, table: str, count: int) -> None:
        """Count deliveries."""
        self.deliveries.labels(table=table).inc(count)

    def reset(self, *, table: str, reason: str) -> None:  # noqa: ARG002 -- a sentence is no label
        """Count a reset."""
        self.resets.labels(table=table).inc()

    def task_restarted(self, *, task: str, reason: str) -> None:  # noqa: ARG002 -- no label
        """Count a restart of a task."""
        kind = task.partition(" of ")[0]  # the rest names a table, which not every scraper may see
        self.restarts.labels(task=kind).inc()

    def handled(self, *, consumer: str, count: int, seconds: float) -> None:
        """Count handled changes."""
        self.handled_changes.labels(consumer=consumer).inc(count)
        self.handler_seconds.labels(consumer=consumer).observe(seconds)

    def handler_failed(self, *, consumer: str, attempts: int) -> None:  # noqa: ARG002 -- no label
        """Count a failed attempt."""
        self.handler_failures.labels(consumer=consumer).inc()

    def dead_lettered(self, *, consumer: str) -> None:
        """Count a dead letter."""
        self.dead_letters.labels(consumer=consumer).inc()

    def consumer_lagged(
        self, *, consumer: str, partition: int, changes: int, seconds: float, retention_used: float
    ) -> None:
        """Set the lag of a consumer."""
        place = {"consumer": consumer, "partition": str(partition)}
        self.lag_changes.labels(**place).set(changes)
        self.lag_seconds.labels(**place).set(seconds)
        self.retention_used.labels(**place).set(retention_used)
