"""Waits for rows: one dispatcher per listener matches hints to waits and reads their rows."""

from rowsignal.dispatcher.conditions import (
    Appears,
    Changes,
    Condition,
    Disappears,
    Satisfies,
    Until,
    attributes_in,
    condition_of,
)
from rowsignal.dispatcher.dispatcher import HOPELESS, Dispatcher
from rowsignal.dispatcher.instances import build_instance, loaded_values, overlay
from rowsignal.dispatcher.row_query import UNREAD, RowState, key_parameters
from rowsignal.dispatcher.row_reader import unreadable
from rowsignal.dispatcher.row_waits import Subscription

__all__ = [
    "HOPELESS",
    "UNREAD",
    "Appears",
    "Changes",
    "Condition",
    "Disappears",
    "Dispatcher",
    "RowState",
    "Satisfies",
    "Subscription",
    "Until",
    "attributes_in",
    "build_instance",
    "condition_of",
    "key_parameters",
    "loaded_values",
    "overlay",
    "unreadable",
]
