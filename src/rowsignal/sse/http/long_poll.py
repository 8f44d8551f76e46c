"""Long polls: a request that waits for a change of one row."""

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import load_only

from rowsignal.change_log.reader import ANSWER
from rowsignal.changes import Operation
from rowsignal.exceptions import NotFoundError, UnreadableRowError, WaitTimeoutError
from rowsignal.mapping import class_for
from rowsignal.sse.access.events import RowKey
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.views import TableView
from rowsignal.sse.delivery.groups import UNSHOWABLE
from rowsignal.sse.delivery.rows import current_row, having_keys, pin_settings
from rowsignal.sse.frames import compact
from rowsignal.sse.http.entity_tags import KnownTags
from rowsignal.waiting import wait_for_row_change

logger = logging.getLogger("rowsignal.sse")

Answer = tuple[dict[str, Any], str]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """The waited-for row and the view of its reader."""

    exposure: Exposure
    view: TableView
    key: RowKey

    @property
    def watched(self) -> frozenset[str]:
        """The columns whose changes may affect the reader."""
        return self.compared | self.view.filter_columns

    @property
    def compared(self) -> frozenset[str]:
        """The columns whose changes end the wait."""
        shown = self.exposure.columns if self.view.columns is None else self.view.columns
        return shown if self.view.changed is None else self.view.changed

    def tells(self, operation: Operation) -> bool:
        """Tell whether the reader requested an operation and may see it."""
        return self.view.operations is None or operation in self.view.operations


@dataclass(frozen=True, slots=True)
class RowDocument:
    """A row as it was read: its document, its entity tag, and the compared values."""

    body: dict[str, Any]
    tag: str
    compared: str


class LongPoll:
    """Waits for rows of the offered tables, under the view of each reader."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._models: dict[str, type[Any]] = {}

    async def wait(
        self, asked: RowRequest, timeout: float, known: KnownTags | None = None
    ) -> Answer | None:
        """Return the row and its tag once it is not the `known` one; None after `timeout` seconds.

        Without `known` it waits for a change after the call. Raises the same `NotFoundError`, after
        the same query, for a missing row and for a row that this reader may not see, and
        `UnreadableRowError` for a row that the types or the schema cannot take.
        """
        try:
            return await self._answer(asked, timeout, known)
        except UnreadableRowError as error:
            name = asked.exposure.name
            logger.error("the row %s of %s cannot be shown", asked.key, name, exc_info=error)  # noqa: TRY400
            raise UnreadableRowError(UNSHOWABLE.format(name)) from error

    async def _answer(
        self, asked: RowRequest, timeout: float, known: KnownTags | None
    ) -> Answer | None:
        deadline = asyncio.get_running_loop().time() + timeout
        first = await self._read(asked)
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
        # A delete that the reader may not see must look like no change.
        await asyncio.sleep(max(deadline - asyncio.get_running_loop().time(), 0.0))
        return None

    async def _changed(
        self, asked: RowRequest, first: RowDocument, deadline: float
    ) -> RowDocument | None:
        """Return the row once it differs from `first`; None once it is gone or hidden."""
        while True:
            try:
                instance = await self._load(asked)
                # Read after the instance, so that the wait finds a change between the two.
                seen = await self._read(asked)
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
            # The wait compares with the values that the session holds.
            session.add(instance)
            attributes = [_attribute(model, column) for column in sorted(asked.watched)]
            identity = sa.inspect(instance).identity
            await wait_for_row_change(session, model, identity, columns=attributes, timeout=left)

    def _model(self, exposure: Exposure) -> type[Any]:
        """Return a mapped class for a table, which waits need."""
        if exposure.name not in self._models:
            self._models[exposure.name] = class_for(exposure.table)
        return self._models[exposure.name]

    async def _load(self, asked: RowRequest) -> Any:
        exposure = asked.exposure
        model = self._model(exposure)
        watched = [getattr(model, _attribute(model, name)) for name in sorted(asked.watched)]
        query = sa.select(model).options(load_only(*watched))
        query = having_keys(query, exposure, [asked.key])
        session = AsyncSession(self._engine, expire_on_commit=False)
        async with asyncio.timeout(ANSWER), session:
            try:
                found = await session.scalar(query)
            except (SQLAlchemyError, OSError):
                raise
            except Exception as error:
                raise _unreadable(error) from error
            if found is None:
                raise _absent(exposure)
            # It outlives this session, and is added to that of the wait.
            session.expunge(found)
        return found

    async def _read(self, asked: RowRequest) -> RowDocument | None:
        async with asyncio.timeout(ANSWER), self._engine.connect() as connection:
            await pin_settings(connection, is_local=True)
            row = await current_row(connection, asked.exposure, asked.key, asked.view)
        return None if row is None else _document(asked, row)


def _attribute(model: type[Any], column: str) -> str:
    mapper = sa.inspect(model)
    return str(next(it.key for it in mapper.column_attrs if it.columns[0].name == column))


def _document(asked: RowRequest, row: Row) -> RowDocument:
    exposure, view = asked.exposure, asked.view
    shown = exposure.columns if view.columns is None else view.columns
    body = {
        "schema": exposure.table.schema or "public",
        "table": exposure.table.name,
        "key": exposure.key_writer(shown)(exposure.key_of(row)),
        "row": _shaped(exposure, view, row),
    }
    digest = hashlib.sha256(compact(body)).hexdigest()[:32]
    compared = repr([row.get(name) for name in sorted(asked.compared)])
    return RowDocument(body, f'"{digest}"', compared)


def _shaped(exposure: Exposure, view: TableView, row: Row) -> dict[str, Any]:
    try:
        return exposure.shape(view.columns)(row, {})
    except Exception as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> UnreadableRowError:
    return UnreadableRowError(f"The row cannot be read: {type(error).__name__}.")


def _absent(exposure: Exposure) -> NotFoundError:
    return NotFoundError(f"There is no such row in {exposure.name}, or it is not yours to see.")
