"""The loader, which adds rows to changes: from the log, else as they are now."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.changes import Change, Operation, Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.errors import describe, is_outage, is_schema_mismatch, sqlstate
from rowsignal.postgres.json_rows import Row, TableShape, rows_by_key
from rowsignal.postgres.json_values import Values
from rowsignal.streams.side_reader import SideReader

logger = logging.getLogger("rowsignal.streams")

UNREADABLE = "A changed row cannot be read: {}."
NO_KEY = "Any rows may have changed: {} came without a key."
REFILLED = "The table may have been truncated, and has rows again."

Key = Mapping[str, Any]
Shapes = Mapping[QualifiedName, TableShape]


@dataclass(slots=True)
class RowChange:
    """A change with the row as it is now (or as the log has it); None if the row is gone.

    `old` has the values before the change, of the columns that the log keeps.
    """

    change: Change
    row: Values | None = None
    old: Values | None = None

    @property
    def table(self) -> QualifiedName:
        """The schema and name of the table."""
        return self.change.schema, self.change.table


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReset(Reset):
    """A gap in the changes of one table; `is_of_capture` if its capture has changed."""

    table: QualifiedName
    is_of_capture: bool = False


Loaded = RowChange | TableReset


@dataclass(slots=True)
class RowSnapshot:
    """Rows of one table by the text of the requested keys; None for a missing row.

    `refused` are keys that no row can have; `unreadable` says why a row cannot be read.
    """

    rows: dict[str, Row | None] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)


class _Reading:
    """The rows of one table that some changes need, by the texts of their keys.

    By text, since keys are dicts: a row that changed ten times is read once.
    """

    def __init__(
        self, shape: TableShape, wanted: frozenset[str] | None, *, prefers_log: bool
    ) -> None:
        self.shape = shape
        self.columns = sorted((wanted or frozenset()).intersection(shape.columns))
        self.keys: dict[str, Key] = {}
        self.found = RowSnapshot()
        self.is_exact = shape.has_exact_key
        self._wanted = wanted
        self._is_needed = shape.has_row_security or (wanted is not None and not prefers_log)

    def bare(self, it: RowChange) -> RowChange:
        """Remove the logged values of a row if policies decide whether it may be seen."""
        if not self.shape.has_row_security:
            return it
        return RowChange(replace(it.change, row=None))

    def ask(self, it: RowChange) -> str | None:
        """Ask for the row of a change; return its name here, None if it is not needed."""
        key, wanted = it.change.key, self._wanted
        if key is None:
            return None
        if not self._is_needed and (wanted is None or _is_told(it, wanted)):
            return None
        name = repr(key)
        self.keys[name] = key
        return name


class RowLoader:
    """Adds rows to changes. A row that cannot be read becomes a reset of its table alone.

    A row that changed again is shown as it is now, and once more with that later change: a reader
    that keeps rows by these changes ends up with the table's content.
    """

    def __init__(self, reader: SideReader, shapes: Shapes) -> None:
        self._reader = reader
        self.shapes = shapes

    async def load(
        self,
        changes: Iterable[RowChange],
        wanted: Mapping[QualifiedName, frozenset[str]],
        *,
        prefers_log: bool = True,
        is_unverified: bool = False,
    ) -> list[Loaded]:
        """Return the changes of known tables with their rows, in order.

        `wanted` names the needed columns by table; other tables are not read, unless policies
        decide which rows may be seen. `is_unverified` marks notifications, which any role can send:
        the loader reads the tables to confirm them.
        """
        readings: dict[QualifiedName, _Reading] = {}
        told: list[tuple[RowChange, _Reading, str | None]] = []
        for it in changes:
            table = it.table
            reading = readings.get(table)
            if reading is None and table in self.shapes:
                columns = wanted.get(table)
                reading = _Reading(self.shapes[table], columns, prefers_log=prefers_log)
                readings[table] = reading
            if reading is not None:
                told.append((reading.bare(it), reading, reading.ask(it)))
        for reading in readings.values():
            await self._read(reading)
        loaded: list[Loaded] = []
        for it, reading, name in told:
            if it.change.key is None:
                loaded.append(await self._without_key(it, reading.shape, is_unverified))
            elif name is None:
                loaded.append(it)
            else:
                loaded += _with_row(it, name, reading, is_unverified)
        return loaded

    async def _without_key(self, it: RowChange, shape: TableShape, is_unverified: bool) -> Loaded:
        """Return a change without a key as a change of all rows, or of unknown ones."""
        change = it.change
        if change.operation is not Operation.TRUNCATE:
            if is_unverified:
                return it
            reason = NO_KEY.format(f"an {change.operation}")
            return TableReset(reason=reason, position=change.position, table=it.table)
        # TRUNCATE ONLY of a parent leaves the rows of its children; a hint may be forged.
        if (is_unverified or shape.has_children) and await self._has_rows(shape):
            return TableReset(reason=REFILLED, position=change.position, table=it.table)
        return it

    async def _has_rows(self, shape: TableShape) -> bool:
        # Counting one row at most: the table may be large.
        question = select(func.count()).select_from(
            select(literal_column("1")).select_from(shape.source()).limit(1).subquery()
        )

        async def ask(connection: AsyncConnection) -> bool:
            return bool(await connection.scalar(question))

        return await self._reader.read_patiently(ask)

    async def _read(self, reading: _Reading) -> None:
        shape, snapshot = reading.shape, reading.found
        snapshot.refused = {name for name, key in reading.keys.items() if not shape.accepts(key)}
        asked = {name: key for name, key in reading.keys.items() if name not in snapshot.refused}
        try:
            await self._read_into(snapshot, shape, asked, reading.columns)
        except Exception as error:
            if is_outage(error):
                raise
            logger.exception("%s cannot be read", ".".join(shape.full_name))
            snapshot.unreadable |= dict.fromkeys(asked, describe(error))

    async def _read_into(
        self,
        snapshot: RowSnapshot,
        shape: TableShape,
        keys: Mapping[str, Key],
        columns: Sequence[str],
    ) -> None:
        """Read rows; if a query fails because of a value, read each half of the keys."""
        names = list(keys)
        if not names:
            return
        work = partial(rows_by_key, shape=shape, keys=list(keys.values()), columns=columns)
        try:
            rows = await self._reader.read_patiently(work)
        except Exception as error:
            # Every half of the keys would fail for the same reason.
            if is_outage(error) or is_schema_mismatch(error):
                raise
            if len(names) == 1:
                _give_up(snapshot, shape, names[0], error)
                return
            middle = len(names) // 2
            for half in (names[:middle], names[middle:]):
                await self._read_into(snapshot, shape, {it: keys[it] for it in half}, columns)
        else:
            snapshot.rows |= dict(zip(names, rows, strict=True))


def _give_up(snapshot: RowSnapshot, shape: TableShape, name: str, error: Exception) -> None:
    logger.warning("a row of %s cannot be read: %s", ".".join(shape.full_name), describe(error))
    # Class 22 is a data exception, here of a key that its column's type cannot take.
    if (sqlstate(error) or "").startswith("22"):
        snapshot.refused.add(name)
    snapshot.unreadable[name] = describe(error)


def _is_told(it: RowChange, wanted: frozenset[str]) -> bool:
    """Tell whether the log has all values to be shown."""
    change = it.change
    if change.operation is Operation.DELETE:
        return it.old is not None
    return change.row is not None and wanted <= change.row.keys()


def _with_row(it: RowChange, name: str, reading: _Reading, is_unverified: bool) -> Sequence[Loaded]:
    change, found = it.change, reading.found
    # Telling it would let any role make up changes of rows that cannot exist.
    if name in found.refused and is_unverified:
        logger.debug("a notification for %s has a key that no row can have", it.table)
        return ()
    if name not in found.rows:
        reason = UNREADABLE.format(found.unreadable.get(name, "its key does not fit the table"))
        return (TableReset(reason=reason, position=change.position, table=it.table),)
    row = found.rows[name]
    if row is None or row.key == change.key or reading.is_exact:
        return (RowChange(change, None if row is None else row.values, it.old),)
    # An equal key that is written differently (1.0 and 1.00): the row has moved from one to the
    # other, and readers know rows by what is written.
    return (
        RowChange(replace(change, operation=Operation.DELETE, position=None), None, it.old),
        RowChange(replace(change, operation=Operation.UPDATE, key=row.key), row.values),
    )
