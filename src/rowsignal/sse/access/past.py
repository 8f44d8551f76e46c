"""Past changes: what a grant lets a reader know of what the log has kept."""

import logging
from typing import Any

from rowsignal.changes import Operation
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.filters import all_hold
from rowsignal.sse.access.views import TableView

logger = logging.getLogger("rowsignal.sse")


class PastView:
    """Shows changes of one table as they were, as far as a view reaches and the log has values.

    A stream knows which rows its reader has seen; here only the logged values can say whether a
    row met the conditions before and after a change. Where they do not say, nothing is shown.
    """

    def __init__(self, view: TableView, exposure: Exposure) -> None:
        self._view = view
        self._exposure = exposure
        columns = exposure.columns
        self._shown = columns if view.columns is None else columns & view.columns
        self._key = exposure.key_writer(self._shown)

    def show(self, event: Event) -> dict[str, Any] | None:
        """Return a change as JSON, or None when it is not for this reader."""
        operation = self._operation(event)
        wanted = self._view.operations
        if operation is None or (wanted is not None and operation not in wanted):
            return None
        if operation is Operation.UPDATE and self._is_silent(event):
            return None
        shown: dict[str, Any] = {
            "operation": str(operation),
            "schema": self._exposure.full_name[0],
            "table": self._exposure.table.name,
            "key": None if event.key is None else self._key(event.key),
            "changed": self._changed(event, operation),
            "transaction_id": event.transaction_id and str(event.transaction_id),
            "captured_at": event.captured_at and event.captured_at.isoformat(),
        }
        if operation in {Operation.INSERT, Operation.UPDATE}:
            shown["row"] = self._values(event.new)
        if operation in {Operation.UPDATE, Operation.DELETE}:
            shown["old"] = self._values(event.old)
        return {it: value for it, value in shown.items() if value is not None or it == "key"}

    def _operation(self, event: Event) -> Operation | None:
        """Return what the change was for a reader: a row that left sight was a delete."""
        if not self._view.conditions:
            return event.operation
        if event.key is None:
            return None
        before = False if event.operation is Operation.INSERT else self._meets(event.old)
        after = False if event.operation is Operation.DELETE else self._meets(event.new)
        if before is None or after is None:
            return None
        if before and after:
            return Operation.UPDATE
        if before or after:
            return Operation.INSERT if after else Operation.DELETE
        return None

    def _meets(self, row: Row | None) -> bool | None:
        """Tell whether a row met the conditions; None where the log does not say."""
        if row is None or not self._view.filter_columns <= row.keys():
            return None
        return all_hold(self._view.conditions, row)

    def _is_silent(self, event: Event) -> bool:
        return event.changed is not None and self._shown.isdisjoint(event.changed)

    def _changed(self, event: Event, operation: Operation) -> list[str] | None:
        if operation is not Operation.UPDATE or event.changed is None:
            return None
        return [column for column in event.changed if column in self._shown]

    def _values(self, row: Row | None) -> dict[str, Any] | None:
        """Return the values that may be shown; a schema of the application needs all of them."""
        known = self._shown if row is None else self._shown & row.keys()
        if row is None or not known:
            return None
        if self._exposure.schema is not None and known != self._shown:
            return None
        try:
            return self._exposure.shape(known)(row, {})
        except Exception as error:  # noqa: BLE001 -- an application's schema may refuse a row
            logger.info("a row of %s is not shown: %s", self._exposure.name, type(error).__name__)
            return None
