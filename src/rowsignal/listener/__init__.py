"""Where a process gets its hints from, and the machine that chooses how to watch."""

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
