"""Row changes over NATS JetStream: a relay that publishes them once, and gateways that read it."""

from rowsignal.exceptions import missing_extra

try:
    from rowsignal.relay.jetstream import JetStreamPublisher, StreamSettings
    from rowsignal.relay.publisher import Publisher
    from rowsignal.relay.relay import Relay
    from rowsignal.relay.subjects import stream_name, subject_of
    from rowsignal.relay.timings import RelayTimings
except ModuleNotFoundError as error:
    raise missing_extra("rowsignal.relay", "nats", error) from error

__all__ = [
    "JetStreamPublisher",
    "Publisher",
    "Relay",
    "RelayTimings",
    "StreamSettings",
    "stream_name",
    "subject_of",
]
