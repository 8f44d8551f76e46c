"""The change log: reading by position, following, pruning."""

from rowsignal.change_log.batches import Batch
from rowsignal.change_log.log import ChangeLog, LogSnapshot

__all__ = ["Batch", "ChangeLog", "LogSnapshot"]
