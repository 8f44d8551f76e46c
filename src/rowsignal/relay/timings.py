"""The intervals and timeouts of a relay."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTimings:
    """Seconds.

    `presence` is how often an active relay says that it is at work, `takeover` after how long a
    silence another one goes on in its place. `acknowledgement` is how long a message may stay
    unacknowledged, `checkpoint` how often the position is stored while nothing changes.
    """

    presence: float = 0.5
    takeover: float = 2.0
    acknowledgement: float = 5.0
    checkpoint: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.presence < self.takeover:
            raise ValueError(
                f"{self}: `takeover` is longer than `presence`, or a relay would give up one that"
                " is at work."
            )
