"""The change log: read it by position, follow it, prune it."""

from rowsignal.change_log.log import Batch, ChangeLog, LogSnapshot

__all__ = ["Batch", "ChangeLog", "LogSnapshot"]
