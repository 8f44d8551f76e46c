"""Rows of one relation: from the values of a message to those of a change."""

from collections.abc import Mapping, Sequence
from typing import Any

from rowsignal.identifiers import QualifiedName
from rowsignal.relay.wal.pgoutput import UNCHANGED, Relation, Unchanged, Value
from rowsignal.relay.wal.texts import TextReaders

Row = Mapping[str, Any]


class RowReader:
    """Reads the rows of a relation, which is a table that is carried, or a part of it."""

    def __init__(
        self, relation: Relation, table: QualifiedName, key: Sequence[str], readers: TextReaders
    ) -> None:
        self.table = table
        self._names = [column.name for column in relation.columns]
        self._reads = [readers.value(column.type) for column in relation.columns]
        places = {name: place for place, name in enumerate(self._names)}
        self._is_identity = [column.is_key for column in relation.columns]
        self._key = [
            (name, places[name], readers.key(relation.columns[places[name]].type))
            for name in key
            if name in places
        ]
        self._has_key = bool(key) and len(self._key) == len(key)

    def row(self, values: Sequence[Value]) -> Row:
        """Return the values by name, without those that are not in the WAL."""
        return {
            name: None if value is None else read(value)
            for name, read, value in zip(self._names, self._reads, values, strict=True)
            if not isinstance(value, Unchanged)
        }

    def key(self, values: Sequence[Value]) -> Row | None:
        """Return the primary key; None where it is not all there."""
        if not self._has_key:
            return None
        key = {}
        for name, place, read in self._key:
            value = values[place]
            if value is None or isinstance(value, Unchanged):
                return None
            key[name] = read(value)
        return key

    def is_moved(self, old: Sequence[Value], new: Sequence[Value]) -> bool:
        """Tell whether the primary key has changed."""
        return any(old[place] != new[place] for _, place, _ in self._key)

    def complete(self, new: list[Value], old: Sequence[Value] | None, *, is_full: bool) -> None:
        """Put what was not touched in its place, as far as the old row has it."""
        if old is None or UNCHANGED not in new:
            return
        for place, value in enumerate(new):
            if value is UNCHANGED and (is_full or self._is_identity[place]):
                new[place] = old[place]

    def changed(self, old: Sequence[Value], new: Sequence[Value]) -> tuple[str, ...]:
        """Return the names of the columns that differ."""
        return tuple(
            name
            for name, before, after in zip(self._names, old, new, strict=True)
            if before != after
        )
