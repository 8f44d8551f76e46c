"""The reader of the waited-for rows of one model; it goes on after errors.

Each model has its own reader, so that a table that is locked, slow or unreadable delays no other.
A hint that arrives during a read is matched after the read, which returns the keys as the triggers
write them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.dispatcher.instances import load_instances
from rowsignal.dispatcher.row_query import RowState, read_rows
from rowsignal.dispatcher.row_waits import Question, RowWatch, Subscription
from rowsignal.exceptions import PoolerError, UnreadableRowError
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.mapping import KeyColumns, PrimaryKey, RowQuery
from rowsignal.payload import Hint
from rowsignal.postgres.errors import describe, is_hopeless, is_locked, is_schema_mismatch, sqlstate

logger = logging.getLogger("rowsignal.dispatcher")

RETRY_DELAY = 0.25
LOCKED_DELAY = 0.02
KEYLESS = 30.0  # seconds until keys are requested again after an error
MOST_HINTS_HELD = 1_000
ROWS_A_QUERY = 10_000  # each query has its own timeout, whatever the number of waits
Load = tuple[PrimaryKey, asyncio.Future[Any]]


class RowReader:
    """The reader of one `RowWatch`; its task exists only while rows must be read."""

    def __init__(
        self,
        rows: RowWatch,
        listener: Listener,
        pace: Pace,
        key_columns: Callable[[RowWatch], KeyColumns],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self.rows = rows
        self.task: asyncio.Task[None] | None = None
        self.label: str = rows.shape.mapper.local_table.description
        self._listener = listener
        self._pace = pace
        self._key_columns = key_columns
        self._spawn = spawn
        self._due: set[Any] = set()
        self._asked: list[asyncio.Future[int]] = []
        self._loads: list[Load] = []
        self._held: list[tuple[Table, Hint]] = []
        self._has_held_too_many = False
        self._is_reading = False
        self._is_locked = False
        self._mismatched_since: float | None = None
        self._failure = ""
        self._keyless_until = 0.0

    def note(self, row_ids: Iterable[Any]) -> None:
        """Read rows soon."""
        self._due.update(row_ids)
        self._start()

    def read_soon(self, row_ids: Iterable[Any]) -> asyncio.Future[int]:
        """Read rows soon; the future returns how many waits the read ended, or raises its error.

        While the table is locked it returns 0 at once; the rows are read when the lock is released.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._is_locked:
            future.set_result(0)
        else:
            self._asked.append(future)
        self.note(row_ids)
        return future

    def load(self, primary_key: PrimaryKey) -> asyncio.Future[Any]:
        """Load a detached object soon; the future returns None if there is no row."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._loads.append((primary_key, future))
        self._start()
        return future

    def hinted(self, table: Table, hints: Iterable[Hint]) -> None:
        """Read the rows that the hints of one table name."""
        if not self._is_reading:
            self._match([(table, hint) for hint in hints])
            return
        self._held += [(table, hint) for hint in hints]
        # Reading all rows once costs less than to match thousands of hints.
        if len(self._held) > MOST_HINTS_HELD:
            self._held.clear()
            self._has_held_too_many = True

    def close(self) -> None:
        """End the task: there are no waits left."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        self._listener.reads.forget(self.rows)

    def _start(self) -> None:
        if self.task is None:
            self.task = self._spawn(self._run(), f"rowsignal reads of {self.label}")

    def _match(self, hints: Iterable[tuple[Table, Hint]]) -> None:
        row_ids = set[Any]().union(*(self.rows.concerned(table, hint) for table, hint in hints))
        if row_ids:
            self.note(row_ids)

    def _match_held(self) -> None:
        held, self._held = self._held, []
        if self._has_held_too_many:
            self._has_held_too_many = False
            self.note(self.rows.row_ids)
        elif held:
            self._match(held)

    async def _run(self) -> None:
        try:
            while self._due or self._asked or self._loads:
                await self._round()
        finally:
            self.task = None

    async def _round(self) -> None:
        """Read the rows that are due; an error is passed only to the waits that it concerns."""
        # Taken before the read: what is noted from now on may have changed after it.
        due, self._due = self._due, set()
        asked, self._asked = self._asked, []
        self._is_reading = True
        try:
            ended = await self._read(due)
            await self._load()
        except Exception as error:  # noqa: BLE001 -- judged: no task ends unseen
            await self._postpone(due, asked, error)
        else:
            self._is_locked = False
            _resolve(asked, ended)
        finally:
            self._is_reading = False
            self._match_held()

    async def _read(self, row_ids: set[Any]) -> int:
        began = time.perf_counter()
        ended = read = 0
        for question in self.rows.questions(row_ids):
            read += len(question)
            for part in question.parts(ROWS_A_QUERY):
                ended += await self._answer(part)
        if read:
            seconds = time.perf_counter() - began
            self._listener.hooks.rows_read(table=self.label, rows=read, seconds=seconds)
        if ended:
            self._listener.hooks.delivered(table=self.label, count=ended)
        return ended

    async def _answer(self, question: Question) -> int:
        """Read the rows of a query for their waits; isolate a row that cannot be read."""
        try:
            found = await self._query(question)
        except Exception as error:
            if not is_hopeless(error):
                raise
            # Halves of the query would fail alike.
            if is_schema_mismatch(error) or isinstance(error, PoolerError):
                return self._mismatch(question, error)
            if len(question) == 1:
                return self._fail(question.each(), error)
            # One row of ten thousand is found in 14 steps, and the others get their answer.
            first, second = question.halves()
            return await self._answer(first) + await self._answer(second)
        self._mismatched_since = None
        return sum(map(self.rows.answer, question.waits, found))

    async def _query(self, question: Question) -> list[RowState | None]:
        if time.monotonic() >= self._keyless_until:
            try:
                return await self._query_with(question, is_keyed=True)
            except Exception as error:
                if not is_schema_mismatch(error) or not any(self._key_columns(self.rows)):
                    raise  # else without keys: the schema rowsignal may have been dropped
                failure = describe(error)
            found = await self._query_with(question, is_keyed=False)
            logger.info(
                "%s: the keys of hints cannot be read, so each hint causes a read of all rows: %s",
                self.label,
                failure,
            )
            self._keyless_until = time.monotonic() + KEYLESS
            return found
        return await self._query_with(question, is_keyed=False)

    async def _query_with(self, question: Question, *, is_keyed: bool) -> list[RowState | None]:
        async def work(connection: AsyncConnection) -> list[RowState | None]:
            # Built at its turn: by then the triggers and the needed columns are known.
            key_columns = self._key_columns(self.rows) if is_keyed else ()
            key_columns = key_columns if any(key_columns) else ()
            wanted = RowQuery(self.rows.attributes, key_columns, question.criterion)
            return await read_rows(
                connection, self.rows.shape, wanted, question.keys, question.parameters
            )

        return await self._listener.reads.run(
            work, lane=self.rows, timeout=self._pace.query_timeout, rows=len(question)
        )

    def _mismatch(self, question: Question, error: Exception) -> int:
        """Keep waiting for a while if the table is missing: it may come back under its name."""
        now = time.monotonic()
        self._mismatched_since = since = self._mismatched_since or now
        waits = list(question.each())
        # A wait for a table that was never there ends at once.
        lost = [wait for wait in waits if not wait.is_read or now - since > self._pace.missing]
        rest = {wait.row_id for wait in waits} - {wait.row_id for wait in lost}
        if rest:
            asyncio.get_running_loop().call_later(RETRY_DELAY, self.note, rest)
        else:
            self._mismatched_since = None
        for wait in waits:
            wait.failure = error
        return _end(lost, error)

    def _fail(self, waits: Iterable[Subscription], error: Exception) -> int:
        """End the waits for a row that cannot be read."""
        waits = list(waits)
        cause = describe(error) if sqlstate(error) else type(error).__name__
        if self._failure != cause:
            logger.warning("%s: a row cannot be read: %s", self.label, cause)
        self._failure = cause
        self._listener.hooks.task_restarted(task=f"reads of {self.label}", reason=cause)
        return _end(waits, unreadable(waits[0], error))

    async def _load(self) -> None:
        """Load the requested objects in one query."""
        loads, self._loads = self._loads, []
        loads = [load for load in loads if not load[1].done()]
        if not loads:
            return
        try:
            instances = await self._instances(loads)
        except Exception as error:
            if not is_hopeless(error):
                self._loads += loads
                raise
            for load in loads:
                await self._load_alone(load)
            return
        for (_, future), instance in zip(loads, instances, strict=True):
            _set_result(future, instance)

    async def _load_alone(self, load: Load) -> None:
        try:
            (instance,) = await self._instances([load])
        except Exception as error:
            if not is_hopeless(error):
                self._loads.append(load)
                raise
            if not load[1].done():
                load[1].set_exception(error)
        else:
            _set_result(load[1], instance)

    async def _instances(self, loads: list[Load]) -> list[Any]:
        work = partial(_load_all, rows=self.rows, keys=[key for key, _ in loads])
        return await self._listener.reads.run(
            work, lane=self.rows, timeout=self._pace.query_timeout, rows=len(loads)
        )

    async def _postpone(
        self, due: set[Any], asked: list[asyncio.Future[int]], error: Exception
    ) -> None:
        """Read again later; if PostgreSQL was never reached, fail the waits instead."""
        waits = [wait for question in self.rows.questions(due) for wait in question.each()]
        for wait in waits:
            wait.failure = error
        # A wrong address is the caller's error; an outage is waited out.
        if not self._listener.reads.attempts.have_worked:
            _end([wait for wait in waits if not wait.is_read], error)
        self._due |= due
        self._is_locked = is_locked(error)
        if self._is_locked:
            _resolve(asked, 0)
            await asyncio.sleep(LOCKED_DELAY)
            return
        if is_hopeless(error):
            logger.error(
                "%s: the read failed unexpectedly and is repeated", self.label, exc_info=error
            )
            reason = describe(error)
            self._listener.hooks.task_restarted(task=f"reads of {self.label}", reason=reason)
        for future in asked:
            if not future.done():
                future.set_exception(error)
        # Waits may have ended meanwhile.
        self._due &= self.rows.row_ids
        if self._due or self._loads:
            await asyncio.sleep(RETRY_DELAY)


async def _load_all(
    connection: AsyncConnection, *, rows: RowWatch, keys: list[PrimaryKey]
) -> list[Any]:
    return await load_instances(connection, rows.shape, keys)


def _end(waits: Iterable[Subscription], error: BaseException) -> int:
    ended = 0
    for wait in waits:
        ended += not wait.future.done()
        wait.fail(error)
    return ended


def unreadable(wait: Subscription, error: Exception) -> UnreadableRowError:
    """Return the error of a wait whose row the database has and Python cannot hold."""
    model, key = wait.watch.shape.mapper.class_.__name__, wait.primary_key
    shown = key if len(key) > 1 else key[0]
    refusal = UnreadableRowError(f"{model} {shown!r} cannot be read: {_in_short(error)}")
    refusal.__cause__ = error
    return refusal


def _resolve(futures: Iterable[asyncio.Future[int]], ended: int) -> None:
    for future in futures:
        _set_result(future, ended)


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _in_short(error: BaseException) -> str:
    first, *_ = str(error.__cause__ or error).splitlines() or [""]
    return f"{type(error.__cause__ or error).__name__}: {first[:200]}"
