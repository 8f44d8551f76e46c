"""The change log: read it by position, follow it, prune it."""

from rowsignal.change_log.batches import Batch
from rowsignal.change_log.log import ChangeLog, LogSnapshot

__all__ = ["Batch", "ChangeLog", "LogSnapshot"]
