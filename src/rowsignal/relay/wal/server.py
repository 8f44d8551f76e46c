"""The server's requirements for logical replication, checked before a relay starts."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.exceptions import MissingRightError, NotWatchedError, UnavailableError
from rowsignal.identifiers import quote
from rowsignal.relay.wal.catalog import ask, slot_name

FAILOVER_SLOTS = 170000  # the version of PostgreSQL from which standbys keep copies of slots


async def server_facts(connection: AsyncConnection) -> Mapping[str, Any]:
    """Return what decides whether the WAL can be read."""
    (row,) = await ask(connection, "wal_server")
    return row


def check_server(server: Mapping[str, Any]) -> None:
    """Raise an error that names the way out where the WAL cannot be read."""
    if server["is_standby"]:
        raise UnavailableError("This server is a standby: a relay reads the WAL of the primary.")
    if server["wal_level"] != "logical":
        raise NotWatchedError(
            f"wal_level is {server['wal_level']}, so changes cannot be read from the WAL: ALTER"
            " SYSTEM SET wal_level = 'logical', then restart PostgreSQL."
        )
    if not server["may_replicate"]:
        raise MissingRightError(
            f"The role {server['role']} may not read the WAL:"
            f" ALTER ROLE {quote(server['role'])} REPLICATION."
        )


async def create_slot(connection: AsyncConnection, server: Mapping[str, Any]) -> None:
    """Make the slot of a database; this waits for transactions that have begun before."""
    has_copies = server["version"] >= FAILOVER_SLOTS
    statement = "wal_slot_create_failover" if has_copies else "wal_slot_create"
    await ask(connection, statement, slot_name(server["database"]))
