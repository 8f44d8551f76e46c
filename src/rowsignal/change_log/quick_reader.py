"""One read of the change log by one statement, on a connection of its own."""

import asyncio
from collections.abc import Sequence
from functools import cache

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.positions import Position
from rowsignal.change_log.reader import (
    ANSWER,
    Head,
    IncarnationMissing,
    PositionLost,
    Window,
    WindowRead,
    explained,
)
from rowsignal.change_log.records import ID, RELATION, WIDTH
from rowsignal.exceptions import StandbyError
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.connections import driver_of, is_direct, throw_away
from rowsignal.postgres.statements import query


class QuickReader:
    """Reads the head and the changes in one statement, on a connection that stays open.

    Needs a direct connection: behind a pooler its settings would not last.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Take an engine for this one connection."""
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: asyncpg.Connection | None = (
            None  # the same connection without SQLAlchemy's layer
        )
        self._origin = ""
        self._turn = asyncio.Lock()
        self._is_pooled = False
        self._is_closing = False
        self._is_mixed = False  # whether changes of other tables were read

    async def read(
        self, after: Position, tables: Sequence[QualifiedName] | None, limit: int
    ) -> WindowRead | None:
        """Return the first changes after a position; None if the caller must use a transaction.

        That is the case behind a pooler, while the connection is in use, and when the server does
        not answer in time. Raises the same errors as `Head.of`.
        """
        if self._is_pooled or self._turn.locked():
            return None
        async with self._turn:
            try:
                driver = await self._open()
                return None if driver is None else await self._ask(driver, after, tables, limit)
            # The server has answered properly, so the connection stays.
            except (IncarnationMissing, PositionLost, StandbyError):
                raise
            except TimeoutError:
                await self._discard()
                return None
            except asyncpg.PostgresError as error:
                await self._discard()
                raise explained(error) from error
            except BaseException:
                await self._discard()
                raise
            finally:
                if self._is_closing:
                    await self._discard()

    async def _ask(
        self,
        driver: asyncpg.Connection,
        after: Position,
        tables: Sequence[QualifiedName] | None,
        limit: int,
    ) -> WindowRead:
        # Naming the tables adds nodes to the plan, which a reader of all that is logged need not
        # pay.
        wanted = tables if self._is_mixed else None
        read = await _read_window(driver, self._origin, after, wanted, limit)
        if tables is None or set(read.names.values()) <= set(tables):
            return read
        if not self._is_mixed:
            self._is_mixed = True
            read = await _read_window(driver, self._origin, after, tables, limit)
        return read

    async def close(self) -> None:
        """Close the connection, at once or after the read that uses it."""
        self._is_closing = True
        if not self._turn.locked():
            await self._discard()
        await self._engine.dispose()

    async def _open(self) -> asyncpg.Connection | None:
        self._is_closing = False
        if self._driver is not None and not self._driver.is_closed():
            return self._driver
        await self._discard()
        self._connection = connection = await self._engine.connect()
        self._is_pooled = not await is_direct(connection)
        # The check of the connection has begun a transaction; settings would be lost with it.
        await connection.rollback()
        if self._is_pooled:
            await self._discard()
            return None
        driver = await driver_of(connection)
        await driver.execute(query("log_look_settings"))
        self._origin = await driver.fetchval(query("log_look_origin"))
        self._driver = driver
        return driver

    async def _discard(self) -> None:
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            await throw_away(connection)


@cache
def window_statement(*, is_narrowed: bool) -> str:
    """Return the statement that reads changes of all tables, or of some of them."""
    return query("log_look", of_tables="log_look_of_tables" if is_narrowed else None)


async def _read_window(
    driver: asyncpg.Connection,
    origin: str,
    after: Position,
    tables: Sequence[QualifiedName] | None,
    limit: int,
) -> WindowRead:
    seen = after.seen
    arguments: list[object] = [seen.xmax, seen.running, after.incarnation, limit, origin]
    if tables is not None:
        arguments += [[schema for schema, _ in tables], [name for _, name in tables]]
    statement = window_statement(is_narrowed=tables is not None)
    rows = await driver.fetch(statement, *arguments, timeout=ANSWER)
    # The statement returns a row also when there is no change.
    head = Head.of(rows[0])
    head.check(after)
    return WindowRead(
        Window.after(after, head, None),
        [row[:WIDTH] for row in rows if row[ID] is not None],
        {row[RELATION]: tuple(row["name"]) for row in rows if row["name"] is not None},
        {row[RELATION] for row in rows if row["is_part"]},
    )
