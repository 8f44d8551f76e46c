"""Install, uninstall and show what capture from the WAL needs: a publication and a slot."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.exceptions import NotFoundError, NotWatchedError
from rowsignal.identifiers import QualifiedName, qualify
from rowsignal.postgres.binds import execute
from rowsignal.postgres.errors import sqlstate
from rowsignal.relay.wal.catalog import (
    PUBLICATION,
    WalTable,
    ask,
    published_tables,
    slot_name,
    wal_tables,
)
from rowsignal.relay.wal.server import check_server, create_slot, server_facts
from rowsignal.triggers.settings import targets_of

GENERATED_COLUMNS = 180000  # the version from which they can be published
# Each partition by itself: through its root PostgreSQL would not tell that one was truncated.
OPTIONS = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false"
GENERATED = ", publish_generated_columns = stored"
RELEASE_TIMEOUT, RELEASE_PAUSE = 10.0, 0.05
IN_USE = "55006"


@dataclass(frozen=True, slots=True)
class WalTableStatus:
    """A table of the publication; `problem` says why changes of it are lost.

    `has_old_values`: the replica identity is full, so that changes carry the values before, and
    updates the names of the columns that have changed.
    """

    schema: str
    table: str
    has_old_values: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class WalCaptureStatus:
    """The slot and the tables; `wal_status` is None where there is no slot.

    `lag_bytes` is the WAL that the server keeps for the slot, `is_active` whether a relay reads it.
    """

    slot: str
    wal_status: str | None
    is_active: bool
    lag_bytes: int | None
    tables: tuple[WalTableStatus, ...]


async def install_wal_capture(engine: AsyncEngine, tables: Any) -> WalCaptureStatus:
    """Publish the changes of tables, models or names, and make the slot that a relay reads.

    Other tables stay published. A table has a primary key, and a replica identity that tells which
    row was updated or deleted: the default one, or FULL. Raises `NotWatchedError` with the way out
    where that is missing, the server's `wal_level` is not `logical`, or no slot is free, and
    `MissingRightError` for a role that may not replicate. The slot keeps WAL from now on, whether
    a relay reads it or not.
    """
    names = _names_of(tables)
    async with _autocommit(engine) as connection:
        server = await server_facts(connection)
        check_server(server)
        slot = await ask(connection, "wal_slot", slot_name(server["database"]))
        if not slot and server["slots"] >= server["max_slots"]:
            raise NotWatchedError(
                f"All {server['max_slots']} replication slots are in use: raise"
                " max_replication_slots and restart PostgreSQL, or drop one that nothing reads."
            )
        await _publish(connection, await _fit(connection, names), server["version"])
        if not slot:
            await create_slot(connection, server)
        return await _status(connection)


async def uninstall_wal_capture(engine: AsyncEngine, tables: Any = None) -> None:
    """Publish changes of some tables no longer; without tables, drop the publication and the slot.

    Raises `NotWatchedError` while a relay reads the slot.
    """
    async with _autocommit(engine) as connection:
        if tables is not None:
            gone = ", ".join(qualify(name, schema) for schema, name in _names_of(tables))
            await _run(connection, f"ALTER PUBLICATION {PUBLICATION} DROP TABLE {gone}")
            return
        server = await server_facts(connection)
        await _drop_slot(connection, slot_name(server["database"]))
        await _run(connection, f"DROP PUBLICATION IF EXISTS {PUBLICATION}")


async def wal_capture_status(engine: AsyncEngine) -> WalCaptureStatus:
    """Return the state of the slot and of the published tables."""
    async with _autocommit(engine) as connection:
        return await _status(connection)


def _names_of(tables: Any) -> list[QualifiedName]:
    return [(schema or "public", name) for schema, name in (it.name for it in targets_of(tables))]


def _autocommit(engine: AsyncEngine) -> AsyncConnection:
    return engine.execution_options(isolation_level="AUTOCOMMIT").connect()


async def _fit(connection: AsyncConnection, names: Iterable[QualifiedName]) -> list[WalTable]:
    """Return the tables; raise where changes of one could not be read."""
    found = list((await wal_tables(connection, names)).values())
    for table in found:
        if table.oid is None:
            raise NotFoundError(str(table.obstacle))
        if table.obstacle is not None:
            raise NotWatchedError(table.obstacle)
    return found


async def _publish(connection: AsyncConnection, tables: Sequence[WalTable], version: int) -> None:
    found = await ask(connection, "wal_publication", PUBLICATION)
    options = OPTIONS + (GENERATED if version >= GENERATED_COLUMNS else "")
    if not found:
        names = ", ".join(_named(it) for it in tables)
        await _run(
            connection, f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {names} WITH ({options})"
        )
        return
    if not found[0]["is_whole"]:
        await _run(connection, f"ALTER PUBLICATION {PUBLICATION} SET ({options})")
        tables = list((await wal_tables(connection, [it.name for it in tables])).values())
    wanted = [_named(it) for it in tables if not it.is_published]
    if wanted and not found[0]["is_for_all"]:
        await _run(connection, f"ALTER PUBLICATION {PUBLICATION} ADD TABLE {', '.join(wanted)}")


async def _run(connection: AsyncConnection, statement: str) -> None:
    await connection.run_sync(execute, statement)


def _named(table: WalTable) -> str:
    schema, name = table.name
    return qualify(name, schema)


async def _drop_slot(connection: AsyncConnection, name: str) -> None:
    """Drop the slot; a relay that has just ended lets go of it in a moment."""
    loop = asyncio.get_running_loop()
    until = loop.time() + RELEASE_TIMEOUT
    while not await _has_dropped(connection, name):
        if loop.time() > until:
            raise NotWatchedError(
                f"A relay reads the slot {name}: end it first, then uninstall again."
            )
        await asyncio.sleep(RELEASE_PAUSE)


async def _has_dropped(connection: AsyncConnection, name: str) -> bool:
    try:
        await ask(connection, "wal_slot_drop", name)
    except DBAPIError as error:
        if sqlstate(error) != IN_USE:
            raise
        return False
    return True


async def _status(connection: AsyncConnection) -> WalCaptureStatus:
    server = await server_facts(connection)
    name = slot_name(server["database"])
    slots = await ask(connection, "wal_slot", name)
    tables = await wal_tables(connection, await published_tables(connection))
    return WalCaptureStatus(
        slot=name,
        wal_status=slots[0]["wal_status"] if slots else None,
        is_active=bool(slots and slots[0]["is_active"]),
        lag_bytes=slots[0]["lag"] if slots else None,
        tables=tuple(
            WalTableStatus(it.name[0], it.name[1], it.is_full, it.fault) for it in tables.values()
        ),
    )
