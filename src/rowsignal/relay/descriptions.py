"""Descriptions of the tables in NATS, so that gateways need not ask PostgreSQL.

Descriptions are in one key-value bucket, under the tokens of database, schema and table.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.errors import BucketNotFoundError, NotFoundError
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.identifiers import QualifiedName
from rowsignal.listener.hints import RelayedCapture
from rowsignal.nats.subjects import TABLES_BUCKET as BUCKET
from rowsignal.nats.subjects import description_key

DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
KEPT = ("timezone", "precision")  # of a type, beside its name: filters depend on them

Description = Mapping[str, Any]


async def describe_tables(
    engine: AsyncEngine,
    tables: Mapping[QualifiedName, Sequence[str]],
    *,
    capture: RelayedCapture = "log",
) -> dict[QualifiedName, Description]:
    """Return descriptions of tables with the columns that are carried.

    `capture` is how the relay learns of changes: waits rely on the table's triggers, or do not.
    """

    def reflect(connection: sa.Connection) -> dict[QualifiedName, Description]:
        metadata = sa.MetaData()
        return {
            (schema, name): describe(
                sa.Table(
                    name, metadata, schema=schema, autoload_with=connection, resolve_fks=False
                ),
                columns,
            )
            | {"capture": capture}
            for (schema, name), columns in tables.items()
        }

    async with engine.connect() as connection:
        return await connection.run_sync(reflect)


def describe(table: sa.Table, columns: Sequence[str]) -> dict[str, Any]:
    """Return what a gateway needs of a table: its carried columns with their types, and its key."""
    key = [column.name for column in table.primary_key]
    return {
        "schema": table.schema or "public",
        "name": table.name,
        "key": key,
        "columns": [
            {"name": column.name, **_type(column.type)}
            for column in table.columns
            if column.name in columns or column.name in key
        ],
        "carried": list(columns),
    }


def table_of(description: Description) -> sa.Table:
    """Return a table that was described.

    >>> table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True))
    >>> table_of(describe(table, ["id"])).c["id"].type
    BIGINT()
    """
    key = description["key"]
    columns = [
        sa.Column(it["name"], _made(it), primary_key=it["name"] in key)
        for it in description["columns"]
    ]
    return sa.Table(description["name"], sa.MetaData(), *columns, schema=description["schema"])


def _type(type_: sa.types.TypeEngine[Any]) -> dict[str, Any]:
    while isinstance(type_, postgresql.DOMAIN):
        type_ = type_.data_type
    if isinstance(type_, sa.ARRAY):
        return {"type": "ARRAY", "of": _type(type_.item_type)}
    if isinstance(type_, sa.Enum):
        return {"type": "ENUM", "labels": list(type_.enums)}
    kept = {it: getattr(type_, it, None) for it in KEPT}
    return {"type": _name(type_), **{it: value for it, value in kept.items() if value}}


def _name(type_: sa.types.TypeEngine[Any]) -> str:
    """Return the name of SQLAlchemy's type; nothing for a type that it does not know."""
    try:
        written = type_.compile(DIALECT)
    except CompileError:
        return ""
    plain, *_ = re.split(r"\(| WITH", written, maxsplit=1)
    name = plain.strip().replace(" ", "_")
    return name if isinstance(getattr(postgresql, name, None), type) else ""


def _made(facts: Mapping[str, Any]) -> sa.types.TypeEngine[Any]:
    if facts["type"] == "ARRAY":
        return postgresql.ARRAY(_made(facts["of"]))
    if facts["type"] == "ENUM":
        return sa.Enum(*facts["labels"])
    if not facts["type"]:
        return sa.types.NullType()
    kind = getattr(postgresql, facts["type"])
    made: sa.types.TypeEngine[Any] = kind(**{it: facts[it] for it in KEPT if it in facts})
    return made


class Descriptions:
    """The bucket of descriptions, for one database."""

    def __init__(self, client: Client, database: str) -> None:
        self._js = client.jetstream()
        self._database = database

    async def store(self, descriptions: Iterable[Description], replicas: int) -> None:
        """Store what tables are now, and no others; the bucket is made where there is none.

        A table that is no longer carried must go: waits for its rows would rely on messages.
        """
        try:
            bucket = await self._js.key_value(BUCKET)
        except BucketNotFoundError:
            config = KeyValueConfig(bucket=BUCKET, replicas=replicas)
            bucket = await self._js.create_key_value(config)
        wanted = {self._key(it): it for it in descriptions}
        for key, it in wanted.items():
            await bucket.put(key, json.dumps(it).encode())
        for key in map(self._key, (await self.load()).values()):
            if key not in wanted:
                await bucket.delete(key)

    async def version(self) -> int:
        """Return a number that grows with each description that is stored; 0 for none."""
        try:
            info = await self._js.stream_info(f"KV_{BUCKET}")
        except NotFoundError:
            return 0
        return info.state.last_seq

    async def load(self) -> dict[QualifiedName, Description]:
        """Return the descriptions that relays have stored; nothing where there was no relay.

        Not by nats-py's `KeyValue`, which takes the mirror of a bucket for none.
        """
        try:
            found = [await self._read(subject) for subject in await self._subjects()]
        except NotFoundError:
            return {}
        return {(it["schema"], it["name"]): it for it in found if it is not None}

    async def _subjects(self) -> list[str]:
        """Return the subjects of this database's descriptions.

        The stream is asked, since `KeyValue.keys` of nats-py misses a key that is just being
        stored anew: its consumer finds the old message gone and does not wait for the next.
        """
        wanted = f"$KV.{BUCKET}.{description_key(self._database)}.>"
        info = await self._js.stream_info(f"KV_{BUCKET}", subjects_filter=wanted)
        return sorted(info.state.subjects or {})

    async def _read(self, subject: str) -> Description | None:
        """Return a description; None if it was deleted, so that the table is carried no longer."""
        last = await self._js.get_last_msg(f"KV_{BUCKET}", subject)
        if not last.data:
            return None
        description: Description = json.loads(last.data)
        return description

    def _key(self, description: Description) -> str:
        return description_key(self._database, (description["schema"], description["name"]))
