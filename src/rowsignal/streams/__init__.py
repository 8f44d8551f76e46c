"""`watch`: the changes of one or more tables as an async iterator."""

from rowsignal.streams.stream import ChangeStream, watch

__all__ = ["ChangeStream", "watch"]
