"""How long the change log keeps its rows; `rowsignal.change_log.retention` holds the code."""

from rowsignal.change_log.retention import (
    PruneReport,
    Retention,
    get_retention,
    prune,
    set_retention,
)

__all__ = ["PruneReport", "Retention", "get_retention", "prune", "set_retention"]
