"""Waits for committed changes of rows."""

from rowsignal.waiting.waits import (
    wait_for_any_row_change,
    wait_for_row,
    wait_for_row_change,
    wait_for_row_deleted,
)

__all__ = [
    "wait_for_any_row_change",
    "wait_for_row",
    "wait_for_row_change",
    "wait_for_row_deleted",
]
