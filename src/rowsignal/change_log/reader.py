"""One look at the change log: a transaction or a statement that sees one snapshot of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Container, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Self, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.positions import AnyPosition, Position, Snapshot
from rowsignal.change_log.records import ID, RELATION, WIDTH, Record
from rowsignal.exceptions import (
    MissingRightError,
    PendingChangesError,
    SchemaVersionError,
    StandbyError,
)
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.connections import is_direct, throw_away
from rowsignal.postgres.statements import query

Result = TypeVar("Result")

ANSWER = 10.0  # seconds for what takes milliseconds, on a connection that is not dead

_NOT_THERE = (
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedTableError,
)

ON_STANDBY = (
    "The change log cannot be read on a standby, whose snapshots do not say which transactions "
    "are running; connect to the primary."
)


class IncarnationMissing(Exception):  # noqa: N818 -- a signal between two floors, no error
    """The log has no incarnation here: it is new, or was crashed, promoted or restored."""


class PositionLost(Exception):  # noqa: N818 -- as above
    """A position is well-formed, but what follows it is not all there any more."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the log is at one snapshot."""

    incarnation: UUID
    now: Snapshot
    horizon: Snapshot | None

    @classmethod
    def of(cls, record: Any) -> Self:
        """Read the answer of `log_head`; raise where this is no place to read a log."""
        if record["is_standby"]:
            raise StandbyError(ON_STANDBY)
        if record["has_written"]:
            raise PendingChangesError(
                "The change log cannot be read in a transaction that has written something: "
                "its snapshot would take its own work for committed. Use another transaction."
            )
        if record["incarnation"] is None:
            raise IncarnationMissing
        horizon = record["horizon"]
        return cls(
            record["incarnation"],
            Snapshot.parse(record["now"]),
            None if horizon is None else Snapshot.parse(horizon),
        )

    def check(self, position: Position) -> None:
        """Raise `PositionLost`, with a sentence, when the log does not reach back to `position`."""
        if position.incarnation != self.incarnation:
            raise PositionLost(
                "the position is of another log: another database, or this one before a crash, "
                "a promotion or a restore"
            )
        if (position.upto or position.seen).xmax > self.now.xmax:
            raise PositionLost("the position is ahead of the log")
        if self.horizon is not None and not position.seen.includes(self.horizon):
            raise PositionLost("the changes after the position have been pruned")


@dataclass(frozen=True, slots=True)
class Window:
    """The changes between two snapshots that are still to be read."""

    incarnation: UUID
    seen: Snapshot
    upto: Snapshot
    last_id: int
    is_last: bool  # whether nothing is to be read after it

    @classmethod
    def after(cls, position: Position, head: Head, until: Snapshot | None) -> Self:
        """Return the window that begins at `position`: the rest of its own, or up to the end."""
        end = until or head.now
        upto = position.upto or end
        if not end.includes(upto) or not upto.includes(position.seen):
            raise ValueError("The position to read until lies before the one to read after.")
        return cls(head.incarnation, position.seen, upto, position.last_id, upto == end)

    @property
    def is_empty(self) -> bool:
        """Tell, without asking the log, that nothing can have been committed."""
        return self.seen == self.upto


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in a window: the first of its changes, and the tables they are of."""

    window: Window
    records: Sequence[Record]
    names: Mapping[int, QualifiedName]
    parts: Container[int]  # relations that are partitions


class LogTransaction:
    """A transaction that reads the log, on asyncpg's own connection."""

    def __init__(self, driver: asyncpg.Connection) -> None:
        self.driver = driver
        self.names: dict[int, QualifiedName] = {}
        self.parts: set[int] = set()

    async def head(self) -> Head:
        """Return what the log is."""
        return Head.of(await self.driver.fetchrow(query("log_head")))

    async def window(self, after: AnyPosition, until: AnyPosition | None = None) -> Window:
        """Return what is to be read between positions; raise `PositionLost`."""
        head = await self.head()
        start = await self._restore(after)
        head.check(start)
        if until is None:
            return Window.after(start, head, None)
        end = await self._restore(until)
        head.check(end)
        return Window.after(start, head, end.upto or end.seen)

    async def _restore(self, stored: AnyPosition) -> Position:
        if isinstance(stored, Position):
            return stored
        record = await self.driver.fetchrow(query("log_stored_position"), stored.key)
        if record is None or (record["after"] is None) != (stored.last_id is None):
            raise PositionLost("the position was stored on the server, which has dropped it")
        upto = None if record["after"] is None else Snapshot.parse(record["after"])
        seen = Snapshot.parse(record["before"])
        return Position(stored.incarnation, seen, upto, stored.last_id or 0)

    def _arguments(self, window: Window, relations: Sequence[int] | None) -> tuple[object, ...]:
        seen = window.seen
        # One that runs on has nothing to show, however much it has written.
        running = [str(xid) for xid in seen.running if window.upto.sees(xid)]
        return seen.xmax, running, str(window.upto), window.last_id, relations

    async def changes(
        self, window: Window, relations: Sequence[int] | None, limit: int
    ) -> list[Record]:
        """Return the first changes of a window."""
        arguments = self._arguments(window, relations)
        records = await self.driver.fetch(query("log_changes"), *arguments, limit)
        await self.learn(records)
        return records  # type: ignore[no-any-return]

    async def cursor(self, window: Window, relations: Sequence[int] | None) -> Any:
        """Open asyncpg's cursor on all changes of a window."""
        arguments = self._arguments(window, relations)
        return await self.driver.cursor(query("log_changes"), *arguments, None)

    async def pages(
        self, window: Window, relations: Sequence[int] | None, size: int
    ) -> AsyncIterator[list[Record]]:
        """Yield all changes of a window, sorted once by the server, in bounded memory here.

        The next page is on its way while its predecessor is being worked on.
        """
        cursor = await self.cursor(window, relations)
        page = await cursor.fetch(size)
        while len(page) == size:
            await self.learn(page)
            async with _started(cursor.fetch(size)) as coming:
                yield page
                page = await coming
        await self.learn(page)
        yield page

    async def learn(self, records: Sequence[Record]) -> None:
        """Ask for the names of relations that have not been seen in this transaction."""
        unknown = set(map(itemgetter(RELATION), records)).difference(self.names)
        if unknown:
            found = await self.driver.fetch(query("log_relation_names"), list(unknown))
            self.names.update({row["oid"]: (row["schema"], row["name"]) for row in found})
            self.parts.update(row["oid"] for row in found if row["is_part"])

    async def relations(self, tables: Sequence[QualifiedName]) -> list[int]:
        """Return the relations that tables consist of, partitions included."""
        schemas, names = [table[0] for table in tables], [table[1] for table in tables]
        records = await self.driver.fetch(query("log_relations"), schemas, names)
        return [record["relation"] for record in records]


@asynccontextmanager
async def _started(work: Awaitable[Result]) -> AsyncIterator[asyncio.Future[Result]]:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.sleep(0)  # lets the request out before the caller goes to work
        yield task
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def log_transaction(engine: AsyncEngine) -> AsyncIterator[LogTransaction]:
    """Open a transaction for one look at the log; a connection that failed is thrown away."""
    async with engine.connect() as connection:
        driver = await driver_of(connection)
        try:
            await _begin(driver)
            yield LogTransaction(driver)
            await driver.execute("commit")
        except (IncarnationMissing, PositionLost):
            await driver.execute("rollback")
            raise
        except asyncpg.PostgresError as error:
            await asyncio.shield(connection.invalidate())
            raise explained(error) from error
        except BaseException:
            await asyncio.shield(connection.invalidate())
            raise


async def _begin(driver: asyncpg.Connection) -> None:
    """Begin, which proves that somebody answers: the rest may take as long as it takes."""
    try:
        await driver.execute(query("log_begin"), timeout=ANSWER)
    except TimeoutError as error:
        raise TimeoutError(f"PostgreSQL did not answer within {ANSWER:g} s.") from error


class QuickReader:
    """Asks for the head and the changes in one statement, on a connection that stays open.

    Only a connection without a pooler between keeps its settings, so there must be none.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Take over an engine, all of whose pool may be this one connection."""
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: asyncpg.Connection | None = None  # the same without a layer between
        self._origin = ""
        self._turn = asyncio.Lock()
        self._is_pooled = False
        self._is_closing = False
        self._is_mixed = False  # whether changes of tables that nobody asked for were seen

    async def look(
        self, after: Position, tables: Sequence[QualifiedName] | None, limit: int
    ) -> Look | None:
        """Return the first changes after a position; None where a transaction has to do it.

        That is behind a pooler, while the connection is in use, or when nobody answers soon. Raises
        as the head does.
        """
        if self._is_pooled or self._turn.locked():
            return None
        async with self._turn:
            try:
                driver = await self._open()
                return None if driver is None else await self._ask(driver, after, tables, limit)
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
    ) -> Look:
        wanted = tables if self._is_mixed else None
        look = await _look(driver, self._origin, after, wanted, limit)
        if tables is None or set(look.names.values()) <= set(tables):
            return look
        if not self._is_mixed:
            self._is_mixed = True
            look = await _look(driver, self._origin, after, tables, limit)
        return look

    async def close(self) -> None:
        """Close the connection, at once or after the look for which it is in use."""
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
            await asyncio.shield(throw_away(connection))


@cache
def look_statement(*, is_narrowed: bool) -> str:
    """Return the statement of a look at all tables, or at some of them."""
    relations = query("log_relations").replace("$1", "$6").replace("$2", "$7")
    condition = f"and c.relation = any (array({relations}))" if is_narrowed else ""
    return query("log_look").replace("{of_tables}", condition)


async def _look(
    driver: asyncpg.Connection,
    origin: str,
    after: Position,
    tables: Sequence[QualifiedName] | None,
    limit: int,
) -> Look:
    seen = after.seen
    arguments: list[object] = [seen.xmax, seen.running, after.incarnation, limit, origin]
    if tables is not None:
        arguments += [[schema for schema, _ in tables], [name for _, name in tables]]
    statement = look_statement(is_narrowed=tables is not None)
    rows = await driver.fetch(statement, *arguments, timeout=ANSWER)
    head = Head.of(rows[0])
    head.check(after)
    return Look(
        Window.after(after, head, None),
        [row[:WIDTH] for row in rows if row[ID] is not None],
        {row[RELATION]: tuple(row["name"]) for row in rows if row["name"] is not None},
        {row[RELATION] for row in rows if row["is_part"]},
    )


async def driver_of(connection: AsyncConnection) -> asyncpg.Connection:
    """Return asyncpg's own connection: rows cost half as much without a layer between."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if driver.is_closed():  # it waited in the pool while the server restarted
        await connection.invalidate()
        driver = (await connection.get_raw_connection()).driver_connection
    return driver


def explained(error: Exception) -> Exception:
    """Return the error that says what to do, where we know; else the same."""
    if isinstance(error, asyncpg.FeatureNotSupportedError) and "recovery" in str(error):
        return StandbyError(ON_STANDBY)
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return MissingRightError(
            f"The role of this connection lacks a right on the change log ({error}); its owner"
            " grants it by `rowsignal grant ROLE --watch`, and `--serve` for a role that prunes."
        )
    if isinstance(error, _NOT_THERE):
        return SchemaVersionError(
            "There is no change log in this database, or not this version's; "
            "install_triggers(..., log=True) makes one."
        )
    return error
