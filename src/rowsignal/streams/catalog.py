"""The state of streamed tables in PostgreSQL's catalogue, read for all tables on a timer.

PostgreSQL sends no notification when a trigger is dropped or disabled, a table is renamed or a
partition is added, and changes without triggers are silent, too. So the catalogue is polled.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.identifiers import QualifiedName
from rowsignal.listener import Listener
from rowsignal.postgres.errors import describe
from rowsignal.postgres.json_rows import TableShape, table_shapes
from rowsignal.streams.side_reader import SideReader
from rowsignal.triggers.catalog import Capture, captures

logger = logging.getLogger("rowsignal.streams")

INTERVAL = 2.0  # seconds that a dropped trigger may go unnoticed
SHARE_OF_TIME = 0.05  # of the time that a query of the catalogue takes
QUERY_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class TableState:
    """The capture of a table, and the shape of its rows; None if it has none."""

    capture: Capture
    shape: TableShape | None

    @property
    def label(self) -> str:
        """The table's name for messages."""
        return ".".join(filter(None, (self.capture.schema, self.capture.table)))

    @property
    def fault(self) -> str | None:
        """Return a sentence on why changes of the table are lost; None if they are not."""
        if self.capture.oid is None or self.shape is None:
            return f"There is no table {self.label} in this database."
        if self.capture.kind is None:
            return f"{self.label} has no triggers, so its changes are not told."
        if not self.capture.is_complete:
            return f"Triggers of {self.label} are missing or disabled: changes may be missing."
        return None

    def difference(self, newer: "TableState") -> str | None:
        """Return a sentence on what has changed since, as far as it concerns readers."""
        mine, theirs = self.capture, newer.capture
        if newer.fault is not None:
            return None if newer.fault == self.fault else newer.fault
        if self.fault is not None:
            return f"Changes of {self.label} are told again; some may be missing up to here."
        if mine.oid != theirs.oid:
            return f"{self.label} is another table now."
        if mine.kind != theirs.kind or mine.channels != theirs.channels:
            return f"How changes of {self.label} are captured was changed."
        if self.shape is None or newer.shape is None or _key(self.shape) != _key(newer.shape):
            return f"The primary key of {self.label} was changed."
        if mine.key_columns != theirs.key_columns:
            return f"The primary key of {self.label} was changed."
        if set(mine.relations) != set(theirs.relations):
            return f"{self.label} has other partitions or children now."
        if self.shape.has_row_security != newer.shape.has_row_security:
            return f"Row-level security of {self.label} was switched."
        return None


def _key(shape: TableShape) -> list[tuple[str, int]]:
    return [(part.name, part.base) for part in shape.key]


class StateReader(Protocol):
    """Callback interface of a stream that follows tables. Methods must not block."""

    def state_changed(self, name: QualifiedName, state: TableState, reason: str | None) -> None:
        """Handle a table's new state; with a `reason`, changes may be missing."""


@dataclass(eq=False)
class TableCatalog:
    """The states of the tables that streams of one database follow."""

    reader: SideReader
    interval: float = INTERVAL
    states: dict[QualifiedName, TableState] = field(default_factory=dict)
    _readers: dict[QualifiedName, set[StateReader]] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, engine: AsyncEngine) -> "TableCatalog":
        """Return the running event loop's catalogue for an engine."""
        listener = Listener.of(engine)
        if listener not in _catalogs:
            _catalogs[listener] = cls(SideReader.of(engine))
        return _catalogs[listener]

    async def follow(
        self, names: Iterable[QualifiedName], reader: StateReader
    ) -> Mapping[QualifiedName, TableState]:
        """Return the states of tables; report changes to `reader` until `unfollow`.

        A known state is as old as the last refresh at most; the next refresh corrects it.
        """
        wanted = list(names)
        # Registered first: a refresh of another stream that is under way reports to this one.
        for name in wanted:
            self._readers.setdefault(name, set()).add(reader)
        if not all(name in self.states and self.states[name].fault is None for name in wanted):
            try:
                await self.refresh()
            except BaseException:
                self.unfollow(wanted, reader)
                raise
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="rowsignal table catalogue")
        return {name: self.states[name] for name in wanted}

    def unfollow(self, names: Iterable[QualifiedName], reader: StateReader) -> None:
        """Stop reporting to `reader`."""
        for name in names:
            readers = self._readers.get(name, set())
            readers.discard(reader)
            if not readers:
                self._readers.pop(name, None)
                self.states.pop(name, None)
        if not self._readers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def refresh(self) -> None:
        """Read the catalogue and report changes to the readers."""
        # One query at a time: an answer that comes late must not replace a newer one.
        async with self._turn:
            names = list(self._readers)
            fresh = await self.reader.read(partial(_states, names=names), timeout=QUERY_TIMEOUT)
        for name, state in fresh.items():
            known = self.states.get(name)
            self.states[name] = state
            if known is not None and known != state:
                for reader in tuple(self._readers.get(name, ())):
                    reader.state_changed(name, state, known.difference(state))

    async def ask(self, names: Iterable[QualifiedName]) -> dict[QualifiedName, TableState]:
        """Return the states of tables without following them."""
        return await self.reader.read(partial(_states, names=list(names)), timeout=QUERY_TIMEOUT)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self.interval
        while True:
            await asyncio.sleep(pause)
            began = loop.time()
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 -- it is asked again, whatever it was
                logger.warning(
                    "the catalogue of streamed tables cannot be read; trying again: %s",
                    describe(error),
                )
            # A catalogue with thousands of tables may take long to answer.
            pause = max(self.interval, (loop.time() - began) / SHARE_OF_TIME)


async def _states(
    connection: AsyncConnection, names: Sequence[QualifiedName]
) -> dict[QualifiedName, TableState]:
    found = await captures(connection, names)
    shapes = await table_shapes(connection, names)
    return {
        name: TableState(capture, shapes.get(name))
        for name, capture in zip(names, found, strict=True)
    }


_catalogs: WeakKeyDictionary[Listener, TableCatalog] = WeakKeyDictionary()
