"""Views: which changes readers with equal grants and equal requests get, and how."""

from collections.abc import Iterable
from dataclasses import dataclass

from rowsignal.changes import Operation
from rowsignal.sse.access.events import Event, RowKey
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.filters import Condition, all_hold
from rowsignal.sse.access.frame_writers import FrameWriter

MAX_TRACKED = 100_000


class UnknownHistoryError(Exception):
    """It is unknown whether a row that is hidden now was ever shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """The columns, conditions and keys of one table; equal for readers that share frames.

    `permission` holds the conditions of the grant, `asked` those of the request.
    """

    name: str
    columns: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    changed: frozenset[str] | None = None
    keys: frozenset[RowKey] | None = None
    permission: tuple[Condition, ...] = ()
    asked: tuple[Condition, ...] = ()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions that a row must meet."""
        return self.permission + self.asked

    @property
    def filter_columns(self) -> frozenset[str]:
        """The columns that decide whether a row is shown."""
        return frozenset(condition.column for condition in self.conditions)


class Seen:
    """The keys of the rows that one view of a table shows; their number is limited.

    `keys` is None if they are unknown: the reader came with a position, or there were too many.
    """

    __slots__ = ("keys", "limit")

    def __init__(self, *, known: bool, limit: int = MAX_TRACKED) -> None:
        self.keys: set[RowKey] | None = set() if known else None
        self.limit = limit

    def add(self, keys: Iterable[RowKey]) -> None:
        """Add rows that are shown."""
        if self.keys is not None:
            self.keys.update(keys)
            if len(self.keys) > self.limit:
                self.keys = None

    def discard(self, key: RowKey) -> None:
        """Remove a row that is no longer shown."""
        if self.keys is not None:
            self.keys.discard(key)

    def clear(self) -> None:
        """Remove all rows; from then on the keys are known."""
        self.keys = set()


class RowFilter:
    """Applies one view to the changes of one table, and remembers the rows shown."""

    def __init__(
        self,
        view: TableView,
        exposure: Exposure,
        *,
        known: bool,
        tracked: int = MAX_TRACKED,
        is_guarded: bool = False,
    ) -> None:
        """Create a filter; `is_guarded`: row-level security hides rows from this process."""
        self.is_guarded = is_guarded
        self.view = view
        self.exposure = exposure
        self.conditions = view.conditions
        self.filter_columns = view.filter_columns
        self.seen = Seen(known=known, limit=tracked)
        self.writer = FrameWriter(exposure, view.columns)
        self.shown = self.writer.shown

    def show(self, event: Event, *, with_id: bool) -> bytes | None:
        """Return the frame of an event for this view's readers; None if they do not get it."""
        view = self.view
        if view.keys is not None and event.key is not None and event.row_key not in view.keys:
            return None
        was_visible = self._was_visible_in_log(event)
        operation = self._operation(event, was_visible)
        if operation is None or self._is_unwanted(event, operation):
            return None
        with_old = event.old is not None and was_visible is True
        return self.writer.change(event, operation, with_id=with_id, with_old=with_old)

    def _is_unwanted(self, event: Event, operation: Operation) -> bool:
        """Tell whether the reader did not request the operation, or may not see it."""
        wanted, told = self.view.operations, event.operation
        if wanted is not None and operation not in wanted:
            return True
        if self.conditions:
            told = operation  # a row that leaves the view counts as a delete
        elif wanted is not None and told not in wanted:
            return True
        return told is Operation.UPDATE and self._is_silent(event)

    def _is_silent(self, event: Event) -> bool:
        """Tell whether an update changed only hidden columns, which the reader must not learn."""
        wanted = self.view.changed
        if event.changed is not None and wanted is not None and wanted.isdisjoint(event.changed):
            return True
        return _is_same(event, self.shown)

    def _operation(self, event: Event, was_visible: bool | None) -> Operation | None:
        """Return the operation for a reader: a row that leaves the view is a delete."""
        if event.operation is Operation.TRUNCATE:
            return self._emptied()
        # A partition that was emptied: any rows may have changed.
        if event.key is None:
            return Operation.UPDATE
        is_present = event.new is not None
        if not self.conditions and not self.is_guarded:
            return _as_found(event.operation, is_present=is_present)
        if event.new is not None and all_hold(self.conditions, event.new):
            return self._in_sight(event, was_visible)
        return self._left(event, was_visible)

    def _in_sight(self, event: Event, was_visible: bool | None) -> Operation:
        """Return insert for a row that enters the view, else update."""
        if was_visible is None and _is_same(event, self.shown):
            # Only hidden columns changed: an update must not show it, an insert must be sent.
            is_staying = _is_same(event, self.filter_columns)
            was_visible = is_staying or self._was_visible_by_memory(event)
        self.seen.add([event.row_key])
        is_entering = event.operation is Operation.INSERT or was_visible is False
        return Operation.INSERT if is_entering else Operation.UPDATE

    def _emptied(self) -> Operation | None:
        """Return truncate for readers that were shown rows; other readers learn nothing."""
        is_open = not self.conditions and not self.is_guarded
        # A truncate would tell a reader with no rows in sight that there were some.
        had_rows = is_open or self._had_rows()
        self.seen.clear()
        return Operation.TRUNCATE if had_rows else None

    def _had_rows(self) -> bool:
        if self.seen.keys is None and (self.view.permission or self.is_guarded):
            raise UnknownHistoryError
        return self.seen.keys is None or bool(self.seen.keys)

    def _left(self, event: Event, was_visible: bool | None) -> Operation | None:
        if was_visible is None:
            was_visible = self._was_visible_by_memory(event)
        self.seen.discard(event.row_key)
        return Operation.DELETE if was_visible else None

    def _was_visible_in_log(self, event: Event) -> bool | None:
        if event.operation is Operation.INSERT:
            return False
        if self.is_guarded:
            return None
        if not self.conditions:
            return True
        if event.old is not None and self.filter_columns <= event.old.keys():
            return all_hold(self.conditions, event.old)
        return None

    def _was_visible_by_memory(self, event: Event) -> bool:
        if self.seen.keys is not None:
            return event.row_key in self.seen.keys
        if event.operation is Operation.UPDATE and _is_same(event, self.filter_columns):
            return False
        # A delete of a row that the reader never saw would reveal that there is one.
        if self.view.permission or self.is_guarded:
            raise UnknownHistoryError
        # For a reader that may see every row a superfluous delete reveals nothing.
        return True

    def snapshot(self, row: Row) -> bytes:
        """Return the frame of a current row, and add its key."""
        frame = self.writer.row(row)
        self.seen.add([tuple(self.exposure.key_of(row).values())])
        return frame


def _as_found(operation: Operation, *, is_present: bool) -> Operation:
    """Return the operation that agrees with the row, which was read later than the log."""
    if not is_present:
        return Operation.DELETE
    return Operation.UPDATE if operation is Operation.DELETE else operation


def _is_same(event: Event, columns: frozenset[str]) -> bool:
    return event.changed is not None and columns.isdisjoint(event.changed)
