"""Questions about the past, answered from the log: a row, a transaction, the last moments."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.reader import explained
from rowsignal.changes import Operation
from rowsignal.exceptions import FilterError, RowSignalError, UnavailableError
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.errors import cause_of, is_locked
from rowsignal.postgres.json_rows import one_view, pin_settings, table_shapes
from rowsignal.postgres.json_values import decode_mapping, short_integer
from rowsignal.postgres.statements import query
from rowsignal.sse import Grant
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.past import PastView
from rowsignal.sse.access.views import TableView
from rowsignal.sse.delivery.rows import current_row
from rowsignal.sse.http.requests import Ask, find, key_of, views_of

logger = logging.getLogger("rowsignal.service")

SEARCHED = 50_000  # changes that one question reads at most
SHOWN = 200
MAX_SHOWN = 500
AT_ONCE = 2  # questions; others wait
TIMEOUT = 5.0
SETTINGS = {
    "statement_timeout": "3s",
    "lock_timeout": "1s",
    "enable_seqscan": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
TOO_SLOW = "The log is too large, or the database too busy, to look this up in time."
SPAN, BIN = 90.0, 0.3  # of the timeline, in seconds
MAX_XID = 2**64 - 1
OPERATIONS = {
    "i": Operation.INSERT,
    "u": Operation.UPDATE,
    "d": Operation.DELETE,
    "t": Operation.TRUNCATE,
}

decode_key = json.JSONDecoder(parse_float=str, parse_int=short_integer).decode

Result = TypeVar("Result")
Mark = tuple[float, str, int]


@dataclass(frozen=True, slots=True)
class Relations:
    """The table of each relation in the log; `parts` are partitions."""

    exposures: Mapping[int, Exposure]
    parts: frozenset[int]

    @property
    def oids(self) -> list[int]:
        """The oids of the relations."""
        return list(self.exposures)


class LogHistory:
    """Reads past changes, each answer of one moment, on connections beside the pool.

    No answer reads more than `SEARCHED` changes or takes longer than the statement timeout.
    Tables with row-level security that holds for the service's role are left out: the log cannot
    tell which of their past rows the policies would have shown.
    """

    def __init__(self, engine: AsyncEngine, exposures: Mapping[str, Exposure]) -> None:
        self._engine = engine
        self._exposures = exposures
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def recent(self, grant: Grant, names: Sequence[str], limit: int) -> dict[str, Any]:
        """Return the newest changes of some tables, or of all that are granted, newest first."""
        exposures = self._granted(grant, names)

        async def ask(connection: AsyncConnection) -> dict[str, Any]:
            relations = await _relations_of(connection, exposures)
            events = await _events(connection, "page_recent", relations, limit)
            return await _answer(connection, events, grant)

        return await self._run(ask)

    async def row(self, grant: Grant, name: str, pk: str) -> dict[str, Any]:
        """Return a row as it is now, None where it is not (to be seen), and its past changes."""
        exposure = find(name, self._exposures, grant)
        (view,) = views_of([exposure], grant, Ask())
        key = key_of(pk, exposure, view.columns)
        named = list(exposure.key), [_text(part) for part in key]

        async def ask(connection: AsyncConnection) -> dict[str, Any]:
            relations = await _relations_of(connection, [exposure])
            events = await _events(connection, "page_row", relations, SHOWN, *named)
            answer = await _answer(connection, events, grant)
            row = await current_row(connection, exposure, key, view)
            return {"row": _shown(row, exposure, view), **answer}

        return await self._run(ask)

    async def transaction(self, grant: Grant, number: str) -> dict[str, Any]:
        """Return the changes of one transaction, in their order."""
        if not (number.isascii() and number.isdigit() and int(number) <= MAX_XID):
            raise FilterError(f"{number!r} is no transaction id: it is a number, as changes have.")
        exposures = self._granted(grant, ())

        async def ask(connection: AsyncConnection) -> dict[str, Any]:
            relations = await _relations_of(connection, exposures)
            events = await _events(
                connection, "page_transaction", relations, SHOWN, str(int(number))
            )
            answer = await _answer(connection, events, grant)
            return {**answer, "is_complete": len(events) < SHOWN}

        return await self._run(ask)

    async def timeline(self, grant: Grant) -> dict[str, list[Mark]]:
        """Return when what happened how often, for each table that is granted whole."""
        exposures = [it for it in self._granted(grant, ()) if _is_whole(grant, it)]

        async def ask(connection: AsyncConnection) -> dict[str, list[Mark]]:
            relations = await _relations_of(connection, await _open(connection, exposures))
            if not await _has_log(connection):
                return {}
            arguments = (relations.oids, SEARCHED, BIN, SPAN)
            found = await connection.exec_driver_sql(query("page_timeline"), arguments)
            return _marks(found.all(), relations)

        return await self._run(ask)

    def _granted(self, grant: Grant, names: Sequence[str]) -> list[Exposure]:
        if names:
            return [find(name, self._exposures, grant) for name in names]
        return [it for it in self._exposures.values() if grant.for_table(it.name) is not None]

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        try:
            async with asyncio.timeout(TIMEOUT), self._turns, one_view(self._engine) as connection:
                await pin_settings(connection, is_local=True, more=SETTINGS)
                return await work(connection)
        except DBAPIError as error:
            if is_locked(error):
                raise UnavailableError(TOO_SLOW) from error
            cause = cause_of(error)
            better = explained(cause) if isinstance(cause, Exception) else error
            if isinstance(better, RowSignalError):
                raise better from error
            raise


def _shown(row: Row | None, exposure: Exposure, view: TableView) -> dict[str, Any] | None:
    """Return a row as it is sent; None, too, where its types or its schema refuse it."""
    if row is None:
        return None
    try:
        return exposure.shape(view.columns)(row, {})
    except Exception as error:  # noqa: BLE001 -- an application's types and schema run here
        logger.warning("a row of %s cannot be shown: %s", exposure.name, type(error).__name__)
        return None


def _is_whole(grant: Grant, exposure: Exposure) -> bool:
    """Tell whether all rows of a table may be seen: counts tell of hidden ones."""
    held = grant.for_table(exposure.name)
    return held is not None and not held.where and held.operations is None


async def _open(connection: AsyncConnection, exposures: Iterable[Exposure]) -> list[Exposure]:
    """Return the tables that no policy hides rows of."""
    by_name = {it.full_name: it for it in exposures}
    shapes = await table_shapes(connection, by_name)
    return [by_name[name] for name, shape in shapes.items() if not shape.has_row_security]


async def _has_log(connection: AsyncConnection) -> bool:
    """Tell whether there is a log: without one nothing is known of the past."""
    return bool((await connection.exec_driver_sql(query("page_has_log"))).scalar_one())


async def _relations_of(connection: AsyncConnection, exposures: Sequence[Exposure]) -> Relations:
    by_name: dict[QualifiedName, Exposure] = {it.full_name: it for it in exposures}
    asked = [schema for schema, _ in by_name], [name for _, name in by_name]
    found = (await connection.exec_driver_sql(query("page_relations"), asked)).all()
    return Relations(
        {it.relation: by_name[it.schema, it.name] for it in found},
        frozenset(it.relation for it in found if it.is_part),
    )


async def _events(
    connection: AsyncConnection,
    name: str,
    relations: Relations,
    limit: int,
    *arguments: object,
) -> list[Event]:
    if not await _has_log(connection):
        return []
    asked = (relations.oids, SEARCHED, limit, *arguments)
    found = (await connection.exec_driver_sql(query(name), asked)).all()
    events = [_event(record, relations) for record in found]
    return [event for event in events if event is not None]


def _event(record: Any, relations: Relations) -> Event | None:
    """Return what a record of the log tells; None where the key was another then."""
    exposure = relations.exposures[record.relation]
    operation = OPERATIONS[record.operation]
    if operation is Operation.TRUNCATE and record.relation in relations.parts:
        operation = Operation.UPDATE  # of any rows: those of other partitions are left
    parts = None if record.key is None else decode_key(record.key)
    if parts is not None and not parts.keys() >= set(exposure.key):
        return None
    return Event(
        operation=operation,
        exposure=exposure,
        key=None if parts is None else {name: parts[name] for name in exposure.key},
        changed=None if record.changed is None else tuple(record.changed),
        new=decode_mapping(record.new_row),
        old=decode_mapping(record.old_row),
        transaction_id=int(record.xid),
        captured_at=record.captured_at,
    )


async def _answer(
    connection: AsyncConnection, events: Sequence[Event], grant: Grant
) -> dict[str, Any]:
    touched = {event.exposure.name: event.exposure for event in events}
    seen = await _open(connection, touched.values())
    views = {it.name: PastView(views_of([it], grant, Ask())[0], it) for it in seen}
    shown = [views[it.exposure.name].show(it) for it in events if it.exposure.name in views]
    return {
        "changes": [change for change in shown if change is not None],
        "is_complete": await _is_within(connection),
    }


async def _is_within(connection: AsyncConnection) -> bool:
    """Tell whether the whole log was searched."""
    if not await _has_log(connection):
        return True
    found = await connection.exec_driver_sql(query("page_is_within"), (SEARCHED,))
    return bool(found.scalar_one())


def _marks(found: Iterable[Any], relations: Relations) -> dict[str, list[Mark]]:
    counts: Counter[tuple[str, float, str]] = Counter()
    for it in found:
        name = relations.exposures[it.relation].name
        counts[name, round(it.at, 1), str(OPERATIONS[it.operation])] += it.number
    marks: dict[str, list[Mark]] = {}
    for (name, at, operation), number in sorted(counts.items()):
        marks.setdefault(name, []).append((at, operation, number))
    return marks


def _text(value: object) -> str:
    """Return a key's value as `->>` writes it."""
    return json.dumps(value) if isinstance(value, bool | dict | list) else str(value)
