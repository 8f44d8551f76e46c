"""The retention of the change log, re-exported from `rowsignal.change_log.retention`."""

from rowsignal.change_log.retention import (
    PruneReport,
    Retention,
    get_retention,
    prune,
    set_retention,
)

__all__ = ["PruneReport", "Retention", "get_retention", "prune", "set_retention"]
