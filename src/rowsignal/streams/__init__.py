"""`watch`: the changes of tables as an async iterator."""

from rowsignal.streams.stream import ChangeStream, watch

__all__ = ["ChangeStream", "watch"]
