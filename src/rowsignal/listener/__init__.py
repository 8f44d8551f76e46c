"""The listening connection of a process, and what depends on its notifications."""

from rowsignal.listener.listener import (
    OUTAGES,
    Lease,
    Listener,
    ListenerState,
    Receiver,
    Timings,
    reconnect_delays,
)

__all__ = [
    "OUTAGES",
    "Lease",
    "Listener",
    "ListenerState",
    "Receiver",
    "Timings",
    "reconnect_delays",
]
