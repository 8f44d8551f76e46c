"""Long polls: one row, awaited by a client that can only ask."""

import asyncio
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import registry

from rowsignal.change_log.reader import ANSWER
from rowsignal.changes import browser_safe
from rowsignal.exceptions import NotFoundError, WaitTimeoutError
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.filters import all_hold
from rowsignal.sse.access.views import RowKey, TableView
from rowsignal.sse.delivery.rows import current_rows, having_keys, pin_settings
from rowsignal.sse.frames import compact
from rowsignal.waiting import wait_for_row_change


class LongPoll:
    """Waits for rows of the offered tables, each as one reader may see it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._models: dict[str, type[Any]] = {}
        self._registry = registry()

    async def wait(
        self, exposure: Exposure, view: TableView, key: RowKey, timeout: float, known: str | None
    ) -> tuple[dict[str, Any], str] | None:
        """Return the row and its tag once it is not the `known` one; None after `timeout` seconds.

        Without `known` it waits for a change after the call. Raises `NotFoundError` when the row
        is not there, or is not this reader's to see.
        """
        model = self._model(exposure)
        instance = await self._load(model, exposure, key)
        # Read after the instance: a change between the two is found by the wait, not lost.
        body, tag = await self._look(exposure, view, key)
        if known is not None and known != tag:
            return body, tag
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            session.add(instance)
            columns = sorted(view.changed or self._watched(exposure, view))
            attributes = [self._attribute(model, column) for column in columns]
            identity = sa.inspect(instance).identity
            with suppress(WaitTimeoutError):
                await wait_for_row_change(
                    session, model, identity, columns=attributes, timeout=timeout
                )
                return await self._look(exposure, view, key)
        return None

    def _watched(self, exposure: Exposure, view: TableView) -> Iterable[str]:
        shown = exposure.columns if view.columns is None else exposure.columns & view.columns
        return shown | view.filter_columns

    def _model(self, exposure: Exposure) -> type[Any]:
        """Return a class for a table: waiting works on mapped ones."""
        if exposure.name not in self._models:
            model = type("Row", (), {})
            self._registry.map_imperatively(model, exposure.table)
            self._models[exposure.name] = model
        return self._models[exposure.name]

    def _attribute(self, model: type[Any], column: str) -> str:
        mapper = sa.inspect(model)
        return str(mapper.get_property_by_column(mapper.local_table.c[column]).key)

    async def _load(self, model: type[Any], exposure: Exposure, key: RowKey) -> Any:
        session = AsyncSession(self._engine, expire_on_commit=False)
        async with asyncio.timeout(ANSWER), session:
            found = await session.scalar(having_keys(sa.select(model), exposure, [key]))
            if found is None:
                raise _absent(exposure)
            session.expunge(found)
        return found

    async def _look(
        self, exposure: Exposure, view: TableView, key: RowKey
    ) -> tuple[dict[str, Any], str]:
        wanted = exposure.columns | view.filter_columns
        given = dict(zip(exposure.key, key, strict=True))
        async with asyncio.timeout(ANSWER), self._engine.connect() as connection:
            await pin_settings(connection, is_local=True)
            (row,) = await current_rows(connection, exposure, [given], wanted)
        if row is None or not all_hold(view.conditions, row):
            raise _absent(exposure)
        return _body(exposure, view, row)


def _body(exposure: Exposure, view: TableView, row: Row) -> tuple[dict[str, Any], str]:
    body = {
        "schema": exposure.table.schema or "public",
        "table": exposure.table.name,
        "key": browser_safe(exposure.key_of(row)),
        "row": exposure.shape(view.columns)(row),
    }
    digest = hashlib.sha256(compact(body).encode()).hexdigest()[:32]
    return body, f'"{digest}"'


def _absent(exposure: Exposure) -> NotFoundError:
    return NotFoundError(f"There is no such row in {exposure.name}, or it is not yours to see.")
