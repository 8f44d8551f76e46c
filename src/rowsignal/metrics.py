"""Prometheus metrics of waits, streams and the listener; never labelled by key."""

from rowsignal.exceptions import missing_extra
from rowsignal.hooks import Hooks

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as error:
    raise missing_extra("rowsignal.metrics", "metrics", error) from error

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PrometheusHooks(Hooks):
    """Hooks that count: pass them to a `Listener`, to `create_sse_router` or to both.

        hooks = PrometheusHooks()
        Listener(engine, hooks=hooks)

    Labels are tables and modes, so their number is that of the tables.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.connects = Counter(
            "rowsignal_listener_connects", "Connections that listened.", registry=registry
        )
        self.fallbacks = Counter(
            "rowsignal_listener_fallbacks", "Times that polling took over.", registry=registry
        )
        self.listener_up = Gauge(
            "rowsignal_listener_up", "1 while notifications arrive.", registry=registry
        )
        self.notifications = Counter(
            "rowsignal_notifications",
            "Notifications, by whether they were accepted.",
            ["accepted"],
            registry=registry,
        )
        self.reads = Histogram(
            "rowsignal_row_read_seconds",
            "Batched reads of waited-for rows.",
            ["table"],
            buckets=LATENCIES,
            registry=registry,
        )
        self.rows = Counter("rowsignal_rows_read", "Rows read.", ["table"], registry=registry)
        self.modes = Counter(
            "rowsignal_mode_changes",
            "Changes of how a table is watched.",
            ["table", "mode"],
            registry=registry,
        )
        self.deliveries = Counter(
            "rowsignal_deliveries",
            "Changes handed to readers, and waits resolved.",
            ["table"],
            registry=registry,
        )
        self.resets = Counter(
            "rowsignal_resets",
            "Times that readers had to start again.",
            ["table"],
            registry=registry,
        )
        self.delivery = Histogram(
            "rowsignal_delivery_seconds",
            "From the capture of a change to its being handed to readers, sampled.",
            buckets=LATENCIES,
            registry=registry,
        )
        self.restarts = Counter(
            "rowsignal_task_restarts",
            "Times that a task failed unforeseen and began again.",
            ["task"],
            registry=registry,
        )

    def connected(self, *, epoch: int) -> None:  # noqa: ARG002 -- counted, not shown
        """Count a connection."""
        self.connects.inc()
        self.listener_up.set(1)

    def degraded(self, *, reason: str) -> None:  # noqa: ARG002 -- a sentence is no label
        """Count a fall back to polling."""
        self.fallbacks.inc()
        self.listener_up.set(0)

    def notified(self, *, accepted: bool) -> None:
        """Count a notification."""
        self.notifications.labels(accepted=str(accepted).lower()).inc()

    def looked(self, *, table: str, rows: int, seconds: float) -> None:
        """Count a read of waited-for rows."""
        self.reads.labels(table=table).observe(seconds)
        self.rows.labels(table=table).inc(rows)

    def mode_changed(self, *, table: str, mode: str) -> None:
        """Count a change of mode."""
        self.modes.labels(table=table, mode=mode).inc()

    def delivered(self, *, table: str, count: int) -> None:
        """Count deliveries."""
        self.deliveries.labels(table=table).inc(count)

    def reset(self, *, table: str, reason: str) -> None:  # noqa: ARG002 -- a sentence is no label
        """Count a reset."""
        self.resets.labels(table=table).inc()

    def task_restarted(self, *, task: str, reason: str) -> None:  # noqa: ARG002 -- no label
        """Count a restart."""
        self.restarts.labels(task=task).inc()
