"""One attempt to handle changes: the handler's work and the new position in one transaction."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

from rowsignal.changes import Change
from rowsignal.handlers.connection import HandlerConnection
from rowsignal.handlers.consumer import Feed
from rowsignal.handlers.leases import LeaseLostError, Partition
from rowsignal.handlers.letters import change_to_json, write
from rowsignal.handlers.places import Place
from rowsignal.hooks import Failed, Hooks
from rowsignal.postgres.statements import query

MAX_ERROR = 2000  # characters; SQLAlchemy quotes the whole statement

Work = Callable[[AsyncSession], Awaitable[object]]


class ConnectionLostError(Exception):
    """The handler's connection was lost, so the outcome must be read from the database."""


class Attempts:
    """Runs the handlers of one partition, each in a transaction that also stores the outcome."""

    def __init__(
        self,
        feed: Feed,
        partition: Partition,
        connection: HandlerConnection,
        sessions: async_sessionmaker[Any],
        hooks: Hooks,
    ) -> None:
        self._feed = feed
        self._consumer = feed.consumer
        self._partition = partition
        self._connection = connection
        self._sessions = sessions
        self._hooks = hooks

    async def handle(self, changes: Sequence[Change], after: Place) -> Exception | None:
        """Handle changes and store the place after them; return the handler's error if it fails.

        Raises `LeaseLostError` if another worker holds the partition, and `ConnectionLostError` if
        it is unknown whether the commit succeeded. In both cases the transaction has ended.
        """
        arguments = (*self._partition.key, after.seen, after.upto, after.last_id, len(changes))
        began = time.perf_counter()
        with self._span(changes) as failed:
            error = await self._run(self._work(changes), "consumer_move", arguments)
            if error is None:
                seconds = time.perf_counter() - began
                self._hooks.handled(
                    consumer=self._consumer.name, count=len(changes), seconds=seconds
                )
            else:
                failed(error)
        return error

    async def handle_letter(self, letter_id: int, change: Change) -> Exception | None:
        """Handle a dead letter once more, and delete it."""
        with self._span([change]) as failed:
            arguments = (*self._partition.key, letter_id)
            error = await self._run(self._work([change]), "letter_done", arguments)
            if error is not None:
                failed(error)
        return error

    async def reset(self, hooks: Sequence[Work], seen: str, reason: str) -> Exception | None:
        """Call the hooks of a reset and store the position from which the consumer goes on."""

        async def work(session: AsyncSession) -> None:
            for hook in hooks:
                await hook(session)

        arguments = (*self._partition.key, seen, reason)
        return await self._run(work, "consumer_reset", arguments)

    async def skip(self, after: Place) -> None:
        """Store a place; the changes before it were not wanted."""
        arguments = (*self._partition.key, after.seen, after.upto, after.last_id, 0)
        async with self._connection.alone() as driver:
            await self._move(driver, "consumer_move", arguments)

    async def fail(self, changes: Sequence[Change], after: Place | None, error: Exception) -> int:
        """Record a failed attempt; return the number of failed attempts."""
        failing = None if after is None else _failing(changes, after)
        arguments = (*self._partition.key, error_text(error), failing)
        async with self._connection.alone() as driver:
            count = await driver.fetchval(query("consumer_fail"), *arguments)
        if count is None:
            raise LeaseLostError
        self._hooks.handler_failed(consumer=self._consumer.name, attempts=count)
        return int(count)

    async def fail_letter(self, letter_id: int, error: Exception) -> None:
        """Record another failure of a dead letter."""
        async with self._connection.alone() as driver:
            await driver.execute(query("letter_failed"), letter_id, error_text(error))

    async def bury(self, change: Change, after: Place, error: Exception, attempts: int) -> None:
        """Turn a change into a dead letter and store the place after it."""
        _, driver = await self._connection.open()
        moved = (*self._partition.key, after.seen, after.upto, after.last_id, 0)
        letter = (self._partition.consumer, self._partition.number, change_to_json(change))
        async with driver.transaction():
            await self._move(driver, "consumer_move", moved)
            await driver.execute(query("consumer_bury"), *letter, error_text(error), attempts)
        self._hooks.dead_lettered(consumer=self._consumer.name)

    def _work(self, changes: Sequence[Change]) -> Work:
        consumer = self._consumer

        async def work(session: AsyncSession) -> None:
            typed = [self._feed.typed(change) for change in changes]
            await consumer.handler(session, typed[0] if consumer.batch is None else typed)

        return work

    async def _run(
        self, work: Work, statement: str, arguments: tuple[object, ...]
    ) -> Exception | None:
        connection, driver = await self._connection.open()
        transaction = await connection.begin()
        try:
            await self._connection.begin()
            error = await self._try(work, connection)
            # Without a transaction the position would be stored apart from the effect.
            if error is None and not transaction.is_active:
                error = RuntimeError("The handler rolled its transaction back, and returned.")
            if error is None:
                await self._move(driver, statement, arguments)
                await transaction.commit()
        except (asyncpg.PostgresError, SQLAlchemyError) as refused:
            # a deferred constraint, a conflict of transactions, an error that the handler hid
            if self._connection.is_broken:
                raise ConnectionLostError from refused
            error = refused
        finally:
            await self._end(connection)
        return error

    async def _try(self, work: Work, connection: AsyncConnection) -> Exception | None:
        """Run a handler; return its error, but raise errors of the connection."""
        # The session must neither commit the transaction nor choose a connection of its own.
        options = {"join_transaction_mode": "rollback_only", "binds": {}}
        try:
            async with self._sessions(bind=connection, **options) as session:
                async with asyncio.timeout(self._consumer.retry.timeout):
                    await work(session)
                    await (
                        session.commit()
                    )  # only flushes: the transaction belongs to the connection
        except Exception as error:
            # A timeout cancels a query, which breaks the connection: that is the handler's failure.
            if self._connection.is_broken and not isinstance(error, TimeoutError):
                raise ConnectionLostError from error
            return error
        return None

    async def _move(
        self, driver: asyncpg.Connection, statement: str, arguments: tuple[object, ...]
    ) -> None:
        if not await driver.fetchval(query(statement), *arguments):
            raise LeaseLostError

    async def _end(self, connection: AsyncConnection) -> None:
        """End the transaction; close the connection if that fails."""
        transaction = connection.get_transaction() if not self._connection.is_broken else None
        if self._connection.is_broken:
            await self._connection.discard()
        elif transaction is not None:
            try:
                await transaction.rollback()
            except BaseException:
                await self._connection.discard()
                raise

    def _span(self, changes: Sequence[Change]) -> AbstractContextManager[Failed]:
        attributes: dict[str, str | int] = {
            "rowsignal.consumer": self._partition.consumer,
            "rowsignal.partition": self._partition.number,
            "messaging.batch.message_count": len(changes),
            "db.collection.name": f"{changes[0].schema}.{changes[0].table}",
        }
        return self._hooks.span("rowsignal.handle", attributes, changes)


def _failing(changes: Sequence[Change], after: Place) -> str:
    """Return the failing changes and the place after them, for a later skip."""
    place = {"seen": after.seen, "upto": after.upto, "last_id": after.last_id}
    return f'{write(place)[:-1]}, "changes": [{", ".join(map(change_to_json, changes))}]}}'


def error_text(error: Exception) -> str:
    """Return the kind and the message of an error, shortened."""
    # PostgreSQL's text has neither NUL nor half a surrogate pair.
    text = f"{type(error).__name__}: {error}".replace("\0", "\N{REPLACEMENT CHARACTER}")
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."
