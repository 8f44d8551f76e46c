"""Rows as the ORM has them: attribute names, and the values that a session would load."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper

from rowsignal.changes import Change
from rowsignal.exceptions import UnreadableRowError
from rowsignal.mapping.column_readers import reader_of, reading_dialect
from rowsignal.mapping.instances import detached_instance
from rowsignal.mapping.literals import Parser
from rowsignal.mapping.shapes import RowShape


@dataclass(frozen=True, slots=True)
class ColumnReader:
    """Reads the values of one column of a mapped class; `attribute` is the column's name there."""

    attribute: str
    column: Column[Any]
    parse: Parser

    def read(self, value: Any) -> Any:
        """Return a JSON value as the ORM loads it; raise `UnreadableRowError` where it cannot."""
        if value is None:
            return None
        try:
            return self.parse(value)
        except Exception as error:
            kind = type(error).__name__
            raise UnreadableRowError(
                f"Column {self.column.name} cannot be read as {self.column.type!r} ({kind})."
            ) from error


class LoadedRow(dict[str, Any]):
    """Values as the ORM loads them by attribute name, and the class that they are all of."""

    __slots__ = ("model",)

    def __init__(self, model: type[Any] | None, values: Iterable[tuple[str, Any]]) -> None:
        super().__init__(values)
        self.model = model

    def __reduce__(self) -> tuple[Any, ...]:
        return LoadedRow, (self.model, tuple(self.items()))

    def to_instance(self) -> Any:
        """Return an object of the class with these values."""
        return None if self.model is None else detached_instance(self.model, self)


@dataclass(frozen=True, slots=True)
class RowTypes:
    """The columns of a mapped table by their names in the database.

    `model` is the class that a row of the table is all of, if there is one.
    """

    model: type[Any] | None
    columns: Mapping[str, ColumnReader]

    @classmethod
    def of(cls, mapper: Mapper[Any], table: Table, dialect: Dialect | None = None) -> "RowTypes":
        """Return the types of one of the tables that a class maps to."""
        reading = reading_dialect(dialect)
        attributes = attribute_names(mapper, table)
        columns = {
            column.name: ColumnReader(
                attributes.get(column.name, column.name), column, reader_of(column.type, reading)
            )
            for column in table.columns
        }
        return cls(mapper.class_ if len(mapper.tables) == 1 else None, columns)

    @classmethod
    def of_shapes(
        cls, shapes: Sequence[RowShape], dialect: Dialect
    ) -> "dict[tuple[str | None, str], RowTypes]":
        """Return the types of each table of some shapes, by schema (or None) and name."""
        return {
            shape.name_of(table): cls.of(shape.mapper, table, dialect)
            for shape in shapes
            for table in shape.tables
        }

    def read(self, row: Mapping[str, Any]) -> "LoadedRow":
        """Return the values of a row by attribute; a column that the class lacks stays as it is."""
        return LoadedRow(self.model, self._items(row))

    def typed(self, change: Change) -> Change:
        """Return a change with its row, if it has one, as the ORM has it."""
        if change.row is None:
            return change
        return replace(change, row=self.read(change.row))

    def _items(self, row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        for name, value in row.items():
            reader = self.columns.get(name)
            yield (name, value) if reader is None else (reader.attribute, reader.read(value))


def attribute_names(mapper: Mapper[Any], table: Table) -> dict[str, str]:
    """Return the names that a class gives to the columns of one of its tables."""
    return {
        column.name: attribute.key
        for attribute in mapper.column_attrs
        for column in attribute.columns
        if isinstance(column, Column) and column.table is table
    }
