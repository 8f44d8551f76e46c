"""The caller's session: its isolation, its objects and its uncommitted changes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Text, cast, column, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import PendingChangesError
from rowsignal.identifiers import qualify
from rowsignal.mapping import (
    PrimaryKey,
    RowShape,
    Target,
    has_deleted,
    has_flushed,
    held_instance,
)
from rowsignal.postgres.parameters import run_query
from rowsignal.postgres.statements import query
from rowsignal.waiting.arguments import shown

XIDS = 2**32  # xmin of a row has the lower 32 bits of the transaction id

Identity = tuple[RowShape, Any]

# Committed values that a wait has shown to a transaction whose own queries never show them.
_outside_values: WeakKeyDictionary[SessionTransaction, dict[Identity, Mapping[str, Any]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True, slots=True)
class SessionView:
    """The view of a session's transaction: names of tables, isolation level, its own changes."""

    target: Target
    is_snapshot: bool = False
    written: frozenset[str] = frozenset()


@asynccontextmanager
async def asked(target: Target) -> AsyncIterator[None]:
    """End the transaction that the block began, if the session was in none before."""
    session = target.session
    was_open = session is None or session.in_transaction()
    try:
        yield
    finally:
        if session is not None and not was_open and session.in_transaction():
            await session.run_sync(_end_transaction)


async def view_of(target: Target, dispatcher: Dispatcher) -> SessionView:
    """Return the view of the caller's session, with names resolved by its `search_path`.

    Uses the session's own connection, if its transaction has one. Raises `ValueError` for temporary
    tables, which no other connection can read.
    """
    session = target.session
    if session is None or not session.sync_session.is_active:
        return SessionView(target)
    sync = session.sync_session
    if not _has_connection(sync, target) and not _has_hooks(sync, target.engine):
        return SessionView(target)
    connection = await session.connection(bind_arguments={"mapper": target.shape.mapper})
    return await _ask(connection, target, dispatcher)


def _has_connection(session: Session, target: Target) -> bool:
    transaction = session.get_transaction()
    is_connected = transaction is not None and bool(transaction._connections)
    return is_connected or isinstance(session.get_bind(target.shape.mapper), Connection)


def _has_hooks(session: Session, engine: AsyncEngine) -> bool:
    """Tell whether a hook may choose the schema when the session's next transaction begins."""
    return bool(session.dispatch.after_begin) or bool(engine.sync_engine.pool.dispatch.checkout)


def _end_transaction(session: Session) -> None:
    """Commit a transaction that only read; a rollback would expire the session's objects."""
    transaction = session.get_transaction()
    if transaction is not None:
        transaction.close()


async def _ask(connection: AsyncConnection, target: Target, dispatcher: Dispatcher) -> SessionView:
    names = [qualify(one.name, target.shape.name_of(one)[0]) for one in target.shape.tables]
    rows = await run_query(connection, query("session_view"), (names,))
    facts = [dict(row) for row in rows.mappings()]
    if not facts:
        return SessionView(target)
    return SessionView(
        target=await _resolved(target, facts, dispatcher),
        is_snapshot=facts[0]["isolation"] in {"repeatable read", "serializable"},
        written=frozenset(
            one.name
            for one, fact in zip(target.shape.tables, facts, strict=True)
            if fact["is_written"] and fact["kind"] in {"r", "p"}
        ),
    )


async def _resolved(target: Target, facts: list[dict[str, Any]], dispatcher: Dispatcher) -> Target:
    shape = target.shape
    bare = [
        fact
        for one, fact in zip(shape.tables, facts, strict=True)
        if shape.name_of(one)[0] is None and fact["schema"] is not None
    ]
    for fact in bare:
        if fact["schema"].startswith("pg_temp"):
            raise ValueError(
                f"{shape.mapper.class_.__name__} is a temporary table of this session's connection:"
                " no other connection can read it, so it cannot be waited for."
            )
    if not bare or facts[0]["schemas"] == await _schemas_of_reads(dispatcher):
        return target
    schemas = {fact["schema"] for fact in bare}
    if len(schemas) > 1:
        raise ValueError(
            f"The tables of {shape.mapper.class_.__name__} are in several schemas of this session's"
            " search_path: name their schemas in the model."
        )
    translation = dict(shape.translation)
    for one in shape.tables:
        if shape.name_of(one)[0] is None:
            translation[one.schema] = next(iter(schemas))
    translated = tuple(sorted(translation.items(), key=repr))
    return replace(target, shape=RowShape(shape.mapper, translated))


async def _schemas_of_reads(dispatcher: Dispatcher) -> list[str]:
    async def work(connection: AsyncConnection) -> list[str]:
        result = await connection.exec_driver_sql("select pg_catalog.current_schemas(true)::text[]")
        return list(result.scalar_one())

    reads, timeout = dispatcher.listener.reads, dispatcher.pace.query_timeout
    return await reads.run(work, lane="catalogue", timeout=timeout)


def refuse_unfinished(session: AsyncSession, shape: RowShape, key: PrimaryKey) -> None:
    """Raise `PendingChangesError` if the session itself has changed the row, or will."""
    sync, held = session.sync_session, held_instance(session, shape.mapper, key)
    unfinished = [held] if held is not None else []
    unfinished += [thing for thing in sync.new if _has_key(thing, shape, key)]
    is_unfinished = any(
        instance in sync.new or sync.is_modified(instance) or has_flushed(sync, instance)
        for instance in unfinished
    )
    if is_unfinished or has_deleted(sync, shape.mapper, key):
        raise _unfinished(shape, key)


def _has_key(instance: object, shape: RowShape, key: PrimaryKey) -> bool:
    mapper = shape.mapper
    return (
        isinstance(instance, mapper.class_)
        and tuple(mapper.primary_key_from_instance(instance)) == key
    )


def _unfinished(shape: RowShape, key: PrimaryKey) -> PendingChangesError:
    return PendingChangesError(
        f"This session has unfinished changes of {shape.mapper.class_.__name__} {shown(key)!r}:"
        " commit or roll back before waiting, or the wait would end at its own change, or wait for"
        " itself."
    )


async def is_within_outer_transaction(view: SessionView, key: PrimaryKey) -> bool:
    """Tell whether a transaction around the session wrote the row, uncommitted.

    The wait then watches the committed row, since that transaction may still commit. If a
    transaction of the session itself wrote the row, say by a statement, the wait raises
    `PendingChangesError`.
    """
    session, shape = view.target.session, view.target.shape
    if session is None or not view.written:
        return False
    connection = await session.connection(bind_arguments={"mapper": shape.mapper})
    if not await _has_own_version(connection, view, key):
        return False
    if isinstance(session.sync_session.get_bind(shape.mapper), Connection):
        return True
    raise _unfinished(shape, key)


async def _has_own_version(connection: AsyncConnection, view: SessionView, key: PrimaryKey) -> bool:
    """Tell whether this transaction wrote the version of the row that it sees."""
    shape = view.target.shape
    same = (one == value for one, value in zip(shape.mapper.primary_key, key, strict=True))
    versions = select(
        cast(func.pg_current_xact_id(), Text),
        cast(func.pg_snapshot_xmax(func.pg_current_snapshot()), Text),
        *(cast(column("xmin", _selectable=one), Text) for one in shape.tables),
    )
    statement = versions.select_from(shape.mapper.persist_selectable).where(*same)
    options = {"schema_translate_map": shape.schema_translate_map or None}
    result = await connection.execute(statement, execution_options=options)
    row = result.one_or_none()
    if row is None:
        return False
    ours, completed, *writers = map(int, row)
    # xmin has 32 bits and wraps round: the writer is within 2**31 of this transaction.
    later = [ours + (writer - ours) % XIDS for writer in writers]
    for xid in later:
        if xid - ours >= XIDS // 2:
            continue  # older than this transaction
        if view.is_snapshot or xid >= completed or await _is_in_progress(connection, xid):
            return True
    return False


async def _is_in_progress(connection: AsyncConnection, xid: int) -> bool:
    status = await run_query(
        connection, "select pg_catalog.pg_xact_status($1::text::xid8)", (str(xid),)
    )
    return bool(status.scalar_one() == "in progress")


def outside_values(view: SessionView, key: Any) -> Mapping[str, Any] | None:
    """Return the committed values that an earlier wait has shown to this transaction."""
    transaction = _transaction(view)
    if transaction is None:
        return None
    return _outside_values.get(transaction, {}).get((view.target.shape, key))


def keep_outside_values(view: SessionView, key: Any, values: Mapping[str, Any]) -> None:
    """Remember committed values that the transaction's own queries will not show."""
    transaction = _transaction(view)
    if transaction is not None:
        _outside_values.setdefault(transaction, {})[view.target.shape, key] = values


def _transaction(view: SessionView) -> SessionTransaction | None:
    session = view.target.session
    if session is None or not view.is_snapshot:
        return None
    return session.sync_session.get_transaction()
