"""The connection on which a process LISTENs, and the machine that chooses how to watch."""

from rowsignal.listener.listener import (
    OUTAGES,
    Lease,
    Listener,
    ListenerState,
    Receiver,
)
from rowsignal.listener.timings import Timings, reconnect_delays

__all__ = [
    "OUTAGES",
    "Lease",
    "Listener",
    "ListenerState",
    "Receiver",
    "Timings",
    "reconnect_delays",
]
