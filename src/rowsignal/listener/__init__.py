"""The sources of a process's hints, and the state machine that chooses between them and polling."""

from rowsignal.listener.connection import Lease
from rowsignal.listener.listener import (
    OUTAGES,
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
