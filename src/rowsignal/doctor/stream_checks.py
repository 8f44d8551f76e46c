"""Checks of what carries changes beyond the database: the stream in NATS, and its relay."""

from collections.abc import Iterator
from typing import Protocol

from rowsignal.doctor.findings import Finding, Severity

LATE = 10.0  # seconds
FULL, SHORT = 0.9, 3600.0
RELAY = "rowsignal relay --nats URL"


class Stream(Protocol):
    """The state of a stream; `rowsignal.relay.StreamHealth` is one."""

    @property
    def name(self) -> str:
        """The stream's name."""

    @property
    def messages(self) -> int:
        """Return the number of messages."""

    @property
    def bytes(self) -> int:
        """Return their size in bytes."""

    @property
    def span(self) -> float | None:
        """Return the age of the oldest message in seconds."""

    @property
    def full_share(self) -> float | None:
        """Return the used share of the stream's limit of bytes."""

    @property
    def storage_share(self) -> float | None:
        """Return the used share of the account's storage."""

    @property
    def replicas(self) -> int:
        """Return the number of replicas."""

    @property
    def replicas_behind(self) -> int:
        """Return the number of replicas that are offline or lag."""

    @property
    def refuses_when_full(self) -> bool:
        """Tell whether it refuses new messages at its limits, not discards old ones."""

    @property
    def relay_lag(self) -> float | None:
        """Return the lag that the active relay announces; None without an active relay."""


def stream_findings(
    stream: Stream | None, name: str, *, unrelayed: float | None = None
) -> list[Finding]:
    """Examine the stream of a database, None where there is none.

    `unrelayed` is how many seconds the oldest change has waited in the log for a relay, if known.
    """
    if stream is None:
        message = f"There is no stream {name} in NATS: nothing was ever relayed there."
        return [Finding(Severity.ERROR, "stream", message, RELAY)]
    return [*_relay(stream, unrelayed), *_limits(stream), *_replicas(stream)]


def _relay(stream: Stream, unrelayed: float | None) -> Iterator[Finding]:
    lag = stream.relay_lag
    if lag is None:
        message = "No relay says that it is at work: changes wait in the database."
        yield Finding(Severity.ERROR, "relay", message, RELAY)
    elif max(lag, unrelayed or 0.0) > LATE:
        message = f"The relay is {max(lag, unrelayed or 0.0):.0f} s behind the database."
        fix = "Give the relay more CPU, or NATS faster disks; see its rowsignal_relay_lag_seconds."
        yield Finding(Severity.WARNING, "relay", message, fix)
    else:
        yield Finding(Severity.OK, "relay", f"A relay is at work, {lag:.1f} s behind.")


def _limits(stream: Stream) -> Iterator[Finding]:
    size = f"{stream.messages} messages in {stream.bytes / 2**20:.1f} MiB"
    span, full, storage = stream.span or 0.0, stream.full_share or 0.0, stream.storage_share or 0.0
    if stream.refuses_when_full:
        message = f"The stream {stream.name} refuses new messages when it is full."
        fix = f"nats stream edit {stream.name} --discard old"
        yield Finding(Severity.WARNING, "stream", message, fix)
    if storage > FULL:
        message = f"{storage:.0%} of the account's storage in NATS is used; then it takes no more."
        fix = "Give the account more storage, or the stream a limit: nats stream edit --max-bytes"
        yield Finding(Severity.WARNING, "stream", message, fix)
    if full > FULL and span < SHORT:
        message = (
            f"The stream is full and goes back {span / 60:.0f} minutes only: readers that are away"
            " for longer get a reset."
        )
        fix = f"nats stream edit {stream.name} --max-bytes"
        yield Finding(Severity.WARNING, "stream", message, fix)
    else:
        message = f"The stream has {size}; the oldest is {span / 3600:.1f} hours old."
        yield Finding(Severity.OK, "stream", message)


def _replicas(stream: Stream) -> Iterator[Finding]:
    if stream.replicas_behind:
        message = f"{stream.replicas_behind} of {stream.replicas} copies are away or late."
        fix = f"nats stream report; nats stream cluster peer-remove {stream.name}"
        yield Finding(Severity.WARNING, "replicas", message, fix)
