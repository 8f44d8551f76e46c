"""Frames of one table's rows and changes, for readers of some of its columns."""

from collections.abc import Mapping

from rowsignal.changes import Operation
from rowsignal.sse import frames
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.frames import compact

PRESENT = frozenset({Operation.INSERT, Operation.UPDATE})


class FrameWriter:
    """Writes the frames of one table for readers of the same columns.

    A change is joined from its parts, most of which are the same for all changes of the table.
    `shown` are the columns that the readers see, `names` says which table it is.
    """

    def __init__(self, exposure: Exposure, columns: frozenset[str] | None) -> None:
        """Write these columns; None means all that are exposed."""
        self.shown = exposure.columns if columns is None else exposure.columns & columns
        self.names = dict(zip(("schema", "table"), map(str, exposure.full_name), strict=True))
        self.key = exposure.key_writer(self.shown)
        self._exposure = exposure
        self._shape = exposure.shape(columns)
        self._needed = exposure.needed(self.shown)
        self._heads = {operation: _head(operation, self.names) for operation in Operation}

    def change(self, event: Event, operation: Operation, *, with_id: bool, with_old: bool) -> bytes:
        """Return the frame of a change, with its position as id and the old values if wanted."""
        # Readers with other filters and equal columns get the very same bytes.
        style = (operation, with_id, with_old, self.shown)
        made = event.frames.get(style)
        if made is None:
            data = self._change(event, operation, with_old=with_old)
            position = event.position if with_id else None
            made = event.frames[style] = frames.encoded(str(operation), data, position)
        return made

    def row(self, row: Row) -> bytes:
        """Return the frame of a current row."""
        key = self.key(self._exposure.key_of(row))
        return frames.frame("snapshot", {**self.names, "key": key, "row": self._shape(row, {})})

    def _change(self, event: Event, operation: Operation, *, with_old: bool) -> bytes:
        """Return the JSON of a change."""
        parts = [
            self._heads[operation],
            b"null" if event.key is None else compact(self.key(event.key)),
            b',"changed":',
            self._changed(event, operation),
            _origin(event),
        ]
        if operation in PRESENT and event.new is not None:
            parts += (b',"row":', compact(self._shape(event.new, event.kept_new)))
        if with_old and event.old is not None and self._needed <= event.old.keys():
            parts += (b',"old":', compact(self._shape(event.old, event.kept_old)))
        parts.append(b"}")
        return b"".join(parts)

    def _changed(self, event: Event, operation: Operation) -> bytes:
        if operation is not Operation.UPDATE or event.changed is None:
            return b"null"
        return compact([column for column in event.changed if column in self.shown])


def _head(operation: Operation, names: Mapping[str, str]) -> bytes:
    """Return the start of a change's JSON, up to its key."""
    return compact({"operation": str(operation), **names})[:-1] + b',"key":'


def _origin(event: Event) -> bytes:
    """Return the members that say which transaction made a change, and when."""
    number, at = event.transaction_id, event.captured_at
    transaction = b"null" if number is None else b'"%d"' % number
    # With pydantic's Z as the offset that isoformat() writes, which takes twice as long.
    moment = b"null" if at is None else compact(at).replace(b'Z"', b'+00:00"')
    return b',"transaction_id":%b,"captured_at":%b' % (transaction, moment)
