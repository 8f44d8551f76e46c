"""Row changes over NATS JetStream: a relay that publishes them once, and gateways that read it."""

import rowsignal.exceptions

try:
    from rowsignal.nats.shared_limits import JetStreamLimits
    from rowsignal.nats.subjects import stream_name, subject_of
    from rowsignal.relay.health import StreamHealth, StreamWatch, stream_health, unrelayed_seconds
    from rowsignal.relay.jetstream import JetStreamPublisher, StreamSettings
    from rowsignal.relay.offered import relayed_tables
    from rowsignal.relay.publisher import Publisher
    from rowsignal.relay.relay import Relay
    from rowsignal.relay.source import JetStreamSource
    from rowsignal.relay.timings import RelayTimings
    from rowsignal.relay.wal.installation import (
        WalCaptureStatus,
        WalTableStatus,
        install_wal_capture,
        uninstall_wal_capture,
        wal_capture_status,
    )
except ModuleNotFoundError as error:
    raise rowsignal.exceptions.missing_extra("rowsignal.relay", "nats", error) from error

__all__ = [
    "JetStreamLimits",
    "JetStreamPublisher",
    "JetStreamSource",
    "Publisher",
    "Relay",
    "RelayTimings",
    "StreamHealth",
    "StreamSettings",
    "StreamWatch",
    "WalCaptureStatus",
    "WalTableStatus",
    "install_wal_capture",
    "relayed_tables",
    "stream_health",
    "stream_name",
    "subject_of",
    "uninstall_wal_capture",
    "unrelayed_seconds",
    "wal_capture_status",
]
