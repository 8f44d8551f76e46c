"""The tables that a gateway can offer: what relays have described."""

import asyncio
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from nats.aio.client import Client

from rowsignal.exceptions import NotFoundError, NotWatchedError, UnavailableError
from rowsignal.identifiers import QualifiedName
from rowsignal.nats.connection import OUTAGES, connected
from rowsignal.relay.descriptions import Description, Descriptions, table_of

PATIENCE = 10.0


async def relayed_tables(
    nats: str | Client, database: str, wanted: Mapping[str, Sequence[str] | None] | None = None
) -> dict[sa.Table, list[str]]:
    """Return tables that relays carry, each with its carried columns, as a router takes them.

    `wanted` maps `schema.name` to columns, None for all that are carried; without, all tables.
    Raises `NotWatchedError` where nothing is relayed, `NotFoundError` for a table that is not.
    """
    return offered_of(await described_tables(nats, database), wanted)


async def described_tables(nats: str | Client, database: str) -> dict[QualifiedName, Description]:
    """Return what relays have stored of tables; raise `NotWatchedError` where that is nothing."""
    try:
        async with asyncio.timeout(PATIENCE), connected(nats, "rowsignal gateway") as client:
            found = await Descriptions(client, database).load()
    except OUTAGES as error:
        raise UnavailableError("NATS does not answer: is the address right?") from error
    if not found:
        raise NotWatchedError(
            f"No relay has described a table of the database {database!r} in NATS: start"
            " `rowsignal relay` first, or check the name."
        )
    return found


def offered_of(
    found: Mapping[QualifiedName, Description],
    wanted: Mapping[str, Sequence[str] | None] | None = None,
) -> dict[sa.Table, list[str]]:
    """Return described tables as a router takes them; raise `NotFoundError` for one that is not."""
    names = {".".join(name): it for name, it in found.items()}
    asked = wanted or dict.fromkeys(names)
    offered: dict[sa.Table, list[str]] = {}
    for name, columns in asked.items():
        full = name if "." in name else f"public.{name}"
        if full not in names:
            raise NotFoundError(f"{full} is not relayed; there are {', '.join(sorted(names))}.")
        carried = names[full]["carried"]
        offered[table_of(names[full])] = carried if columns is None else list(columns)
    return offered
