"""Prometheus metrics of waits, streams and the listener, labelled by table, not by key."""

from rowsignal.exceptions import missing_extra
from rowsignal.hooks import Hooks

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as error:
    raise missing_extra("rowsignal.metrics", "metrics", error) from error

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PrometheusHooks(Hooks):
    """Hooks that update metrics: pass them to a `Listener`, to `create_sse_router` or both.

        hooks = PrometheusHooks()
        Listener(engine, hooks=hooks)

    Labels are tables and modes, so the number of series depends on the number of tables.
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

        self._count_handlers(registry)
        self._count_relays(registry)

    def _count_handlers(self, registry: CollectorRegistry) -> None:
        name = ["consumer"]
        self.handled_changes = Counter(
            "rowsignal_handled_changes", "Changes handled.", name, registry=registry
        )
        self.handler_seconds = Histogram(
            "rowsignal_handler_seconds",
            "Transactions of handlers.",
            name,
            buckets=LATENCIES,
            registry=registry,
        )
        self.handler_failures = Counter(
            "rowsignal_handler_failures", "Attempts that failed.", name, registry=registry
        )
        self.dead_letters = Counter(
            "rowsignal_dead_letters", "Changes given up.", name, registry=registry
        )
        place = ["consumer", "partition"]
        self.lag_changes = Gauge(
            "rowsignal_consumer_lag_changes", "Changes to handle.", place, registry=registry
        )
        self.lag_seconds = Gauge(
            "rowsignal_consumer_lag_seconds", "Age of the first of them.", place, registry=registry
        )
        self.retention_used = Gauge(
            "rowsignal_consumer_retention_used",
            "Share of the retention behind the consumer; at 1 changes are lost to it.",
            place,
            registry=registry,
        )

    def _count_relays(self, registry: CollectorRegistry) -> None:
        name = ["database"]
        self.relayed_messages = Counter(
            "rowsignal_relayed_messages", "Messages that NATS has stored.", name, registry=registry
        )
        self.relay_lag = Gauge(
            "rowsignal_relay_lag_seconds",
            "From the capture of the last relayed change to its being stored.",
            name,
            registry=registry,
        )
        self.active_relay = Gauge(
            "rowsignal_relay_active", "1 at work, 0 standing by.", name, registry=registry
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

    def relayed(self, *, database: str, count: int, lag: float) -> None:
        """Count stored messages, and show the lag of the last one."""
        self.relayed_messages.labels(database=database).inc(count)
        self.relay_lag.labels(database=database).set(lag)

    def relay_active(self, *, database: str, active: bool) -> None:
        """Show whether this relay is at work."""
        self.active_relay.labels(database=database).set(active)
