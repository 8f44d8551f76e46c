"""Long polls: one row, awaited by a client that can only ask."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import registry

from rowsignal.change_log.reader import ANSWER
from rowsignal.changes import Operation
from rowsignal.exceptions import NotFoundError, WaitTimeoutError
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.views import RowKey, TableView
from rowsignal.sse.delivery.rows import current_row, having_keys, pin_settings
from rowsignal.sse.frames import compact
from rowsignal.sse.http.entity_tags import KnownTags
from rowsignal.waiting import wait_for_row_change

Answer = tuple[dict[str, Any], str]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """Which row is waited for, as one reader may see it."""

    exposure: Exposure
    view: TableView
    key: RowKey

    @property
    def watched(self) -> frozenset[str]:
        """The columns whose changes may concern the reader."""
        return self.compared | self.view.filter_columns

    @property
    def compared(self) -> frozenset[str]:
        """The columns whose changes are told."""
        shown = self.exposure.columns if self.view.columns is None else self.view.columns
        return shown if self.view.changed is None else self.view.changed

    def tells(self, operation: Operation) -> bool:
        """Tell whether the reader asked for an operation, and may hear of it."""
        return self.view.operations is None or operation in self.view.operations


@dataclass(frozen=True, slots=True)
class Sight:
    """A row as it was seen: its answer, its tag, and the values that changes are told of."""

    body: dict[str, Any]
    tag: str
    compared: str


class LongPoll:
    """Waits for rows of the offered tables, each as one reader may see it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._models: dict[str, type[Any]] = {}
        self._registry = registry()

    async def wait(
        self, asked: RowRequest, timeout: float, known: KnownTags | None = None
    ) -> Answer | None:
        """Return the row and its tag once it is not the `known` one; None after `timeout` seconds.

        Without `known` it waits for a change after the call. Raises `NotFoundError` when the row
        is not there, or is not this reader's to see: after the same query, in the same words.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        first = await self._look(asked)
        if first is None:
            raise _absent(asked.exposure)
        if known is not None and first.tag not in known and asked.tells(Operation.UPDATE):
            return first.body, first.tag
        try:
            found = await self._changed(asked, first, deadline)
        except WaitTimeoutError:
            return None
        if found is not None:
            return found.body, found.tag
        if asked.tells(Operation.DELETE):
            raise _absent(asked.exposure)
        # A delete that is not told looks like no change.
        await asyncio.sleep(max(deadline - asyncio.get_running_loop().time(), 0.0))
        return None

    async def _changed(self, asked: RowRequest, first: Sight, deadline: float) -> Sight | None:
        """Return the row once it differs from `first`; None once it is out of sight."""
        while True:
            try:
                instance = await self._load(asked)
                # Read after the instance: a change between the two is found by the wait, not lost.
                seen = await self._look(asked)
                if seen is None:
                    return None
                if seen.compared != first.compared and asked.tells(Operation.UPDATE):
                    return seen
                await self._wait(asked, instance, deadline)
            except NotFoundError:
                return None

    async def _wait(self, asked: RowRequest, instance: Any, deadline: float) -> None:
        model = type(instance)
        left = max(deadline - asyncio.get_running_loop().time(), 0.0)
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            session.add(instance)
            attributes = [_attribute(model, column) for column in sorted(asked.watched)]
            identity = sa.inspect(instance).identity
            await wait_for_row_change(session, model, identity, columns=attributes, timeout=left)

    def _model(self, exposure: Exposure) -> type[Any]:
        """Return a class for a table: waiting works on mapped ones."""
        if exposure.name not in self._models:
            model = type("Row", (), {})
            self._registry.map_imperatively(model, exposure.table)
            self._models[exposure.name] = model
        return self._models[exposure.name]

    async def _load(self, asked: RowRequest) -> Any:
        exposure = asked.exposure
        query = having_keys(sa.select(self._model(exposure)), exposure, [asked.key])
        session = AsyncSession(self._engine, expire_on_commit=False)
        async with asyncio.timeout(ANSWER), session:
            found = await session.scalar(query)
            if found is None:
                raise _absent(exposure)
            session.expunge(found)
        return found

    async def _look(self, asked: RowRequest) -> Sight | None:
        async with asyncio.timeout(ANSWER), self._engine.connect() as connection:
            await pin_settings(connection, is_local=True)
            row = await current_row(connection, asked.exposure, asked.key, asked.view)
        return None if row is None else _sight(asked, row)


def _attribute(model: type[Any], column: str) -> str:
    mapper = sa.inspect(model)
    return str(mapper.get_property_by_column(mapper.local_table.c[column]).key)


def _sight(asked: RowRequest, row: Row) -> Sight:
    exposure, view = asked.exposure, asked.view
    shown = exposure.columns if view.columns is None else view.columns
    body = {
        "schema": exposure.table.schema or "public",
        "table": exposure.table.name,
        "key": exposure.key_writer(shown)(exposure.key_of(row)),
        "row": exposure.shape(view.columns)(row),
    }
    digest = hashlib.sha256(compact(body).encode()).hexdigest()[:32]
    compared = repr([row.get(name) for name in sorted(asked.compared)])
    return Sight(body, f'"{digest}"', compared)


def _absent(exposure: Exposure) -> NotFoundError:
    return NotFoundError(f"There is no such row in {exposure.name}, or it is not yours to see.")
