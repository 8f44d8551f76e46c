"""The connection to NATS, by its name in this package."""

from rowsignal.nats.connection import OUTAGES, connected

__all__ = ["OUTAGES", "connected"]
