"""Row changes over NATS JetStream: a relay that publishes them once, and gateways that read it."""

import rowsignal.exceptions

try:
    from rowsignal.relay.jetstream import JetStreamPublisher, StreamSettings
    from rowsignal.relay.offered import relayed_tables
    from rowsignal.relay.publisher import Publisher
    from rowsignal.relay.relay import Relay
    from rowsignal.relay.source import JetStreamSource
    from rowsignal.relay.subjects import stream_name, subject_of
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
    "JetStreamPublisher",
    "JetStreamSource",
    "Publisher",
    "Relay",
    "RelayTimings",
    "StreamSettings",
    "WalCaptureStatus",
    "WalTableStatus",
    "install_wal_capture",
    "relayed_tables",
    "stream_name",
    "subject_of",
    "uninstall_wal_capture",
    "wal_capture_status",
]
