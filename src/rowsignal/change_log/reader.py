"""One read of the change log, by a transaction or a statement with one snapshot."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Container, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Self, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.positions import AnyPosition, Position, Snapshot
from rowsignal.change_log.records import RELATION, Record
from rowsignal.exceptions import (
    MissingRightError,
    PendingChangesError,
    SchemaVersionError,
    StandbyError,
)
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.connections import driver_of, lent, throw_away
from rowsignal.postgres.statements import query

Result = TypeVar("Result")

ANSWER = 10.0  # seconds after which a connection counts as dead; the queries take milliseconds

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
    """The log has no incarnation: it is new, or the server crashed, was promoted or restored."""


class PositionLost(Exception):  # noqa: N818 -- as above
    """The log no longer has every change after a position."""


@dataclass(frozen=True, slots=True)
class Head:
    """The state of the log at one snapshot."""

    incarnation: UUID
    now: Snapshot
    low_watermark: Snapshot | None

    @classmethod
    def of(cls, record: Any) -> Self:
        """Read the result of `log_head`; raise if the log cannot be read on this connection."""
        if record["is_standby"]:
            raise StandbyError(ON_STANDBY)
        if record["has_written"]:
            raise PendingChangesError(
                "The change log cannot be read in a transaction that has written something: "
                "its snapshot would take its own work for committed. Use another transaction."
            )
        if record["incarnation"] is None:
            raise IncarnationMissing
        low_watermark = record["horizon"]
        return cls(
            record["incarnation"],
            Snapshot.parse(record["now"]),
            None if low_watermark is None else Snapshot.parse(low_watermark),
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
        if self.low_watermark is not None and not position.seen.includes(self.low_watermark):
            raise PositionLost("the changes after the position have been pruned")


@dataclass(frozen=True, slots=True)
class Window:
    """The changes between two snapshots that have not been read."""

    incarnation: UUID
    seen: Snapshot
    upto: Snapshot
    last_id: int
    is_last: bool  # whether the log ends with it

    @classmethod
    def after(cls, position: Position, head: Head, until: Snapshot | None) -> Self:
        """Return the window after `position`: the rest of its own window, or up to the end."""
        end = until or head.now
        upto = position.upto or end
        if not end.includes(upto) or not upto.includes(position.seen):
            raise ValueError("The position to read until lies before the one to read after.")
        return cls(head.incarnation, position.seen, upto, position.last_id, upto == end)

    @property
    def is_empty(self) -> bool:
        """Tell that nothing can have been committed, without a query."""
        return self.seen == self.upto


@dataclass(frozen=True, slots=True)
class WindowRead:
    """The first changes of a window, and the names of their tables."""

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
        """Return the head of the log."""
        return Head.of(await self.driver.fetchrow(query("log_head")))

    async def window(self, after: AnyPosition, until: AnyPosition | None = None) -> Window:
        """Return the window between positions; raise `PositionLost`."""
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
        # A transaction that is still open has no visible changes.
        # As text: for an array of xid8 asyncpg would first ask about the type.
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

        The next page is fetched while the caller handles the present one.
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
        """Read the names of relations that are new to this transaction."""
        unknown = set(map(itemgetter(RELATION), records)).difference(self.names)
        if unknown:
            found = await self.driver.fetch(query("log_relation_names"), list(unknown))
            self.names.update({row["oid"]: (row["schema"], row["name"]) for row in found})
            self.parts.update(row["oid"] for row in found if row["is_part"])

    async def relations(self, tables: Sequence[QualifiedName]) -> list[int]:
        """Return the relations of tables, partitions included."""
        schemas, names = [table[0] for table in tables], [table[1] for table in tables]
        records = await self.driver.fetch(query("log_relations"), schemas, names)
        return [record["relation"] for record in records]


@asynccontextmanager
async def _started(work: Awaitable[Result]) -> AsyncIterator[asyncio.Future[Result]]:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.sleep(0)  # send the request before the caller continues
        yield task
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def log_transaction(engine: AsyncEngine) -> AsyncIterator[LogTransaction]:
    """Open a transaction for one read of the log; discard a connection that failed."""
    async with lent(engine) as connection:
        driver = await driver_of(connection)
        try:
            await _begin(driver)
            yield LogTransaction(driver)
            await driver.execute("commit")
        # No error of the server: the connection is as good as before.
        except (IncarnationMissing, PositionLost):
            await driver.execute("rollback")
            raise
        except asyncpg.PostgresError as error:
            await throw_away(connection)
            raise explained(error) from error
        except BaseException:
            await throw_away(connection)
            raise


async def _begin(driver: asyncpg.Connection) -> None:
    """Begin under a timeout, which proves that the connection is alive; later reads may be slow."""
    try:
        await driver.execute(query("log_begin"), timeout=ANSWER)
    except TimeoutError as error:
        raise TimeoutError(f"PostgreSQL did not answer within {ANSWER:g} s.") from error


def explained(error: Exception) -> Exception:
    """Return an error that says what to do, if it is known; else the same error."""
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
