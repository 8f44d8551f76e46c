"""The WAL's changes are those of the log: the same operations, keys, values and columns."""

from itertools import repeat
from typing import Any

import pytest
from nats.aio.client import Client

from rowsignal.change_log import Batch, ChangeLog
from rowsignal.relay.messages import decode
from rowsignal.streams.loader import RowChange
from rowsignal.triggers import install_triggers
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.wal import WalShop

TYPES = {
    "boolean": ["true", "false"],
    "smallint": ["-32768"],
    "integer": ["42"],
    "bigint": ["9223372036854775807"],
    "oid": ["7"],
    "real": ["0.1", "'NaN'", "'-Infinity'", "1e20"],
    "double precision": ["0.1", "'Infinity'", "1e-300", "-0.0"],
    "numeric": ["1.00", "'NaN'", "12345678901234567890.123456789", "5", "1e30"],
    "money": ["'12.50'"],
    "text": ["''", "'a\"b\\c {x,y} NULL'", "'größe\n'"],
    "varchar(9)": ["'v'"],
    "char(5)": ["'c'"],
    '"char"': ["'x'"],
    "name": ["'n'"],
    "bytea": [r"'\x00ff'"],
    "json": ['\'{"a": [1, 2.50, null], "a": 2}\'', "'null'", "'\"s\"'"],
    "jsonb": ['\'{"b": {"c": [1.0]}}\'', "'null'", "'7'"],
    "date": ["'2026-11-30'", "'infinity'", "'0044-03-15 BC'"],
    "timestamp": ["'2026-11-30 09:30:00.5'", "'-infinity'", "'0044-03-15 10:00 BC'"],
    "timestamptz": ["'2026-11-30 09:30:00.123456+02'", "'infinity'", "'0044-03-15 10:00+00 BC'"],
    "time": ["'09:30:00.25'"],
    "timetz": ["'09:30:00+02'"],
    "interval": ["'1 year 2 mons 3 days 04:05:06.7'", "'-1 day'"],
    "uuid": ["'12345678-1234-5678-1234-567812345678'"],
    "inet": ["'10.0.0.1/8'"],
    "bit varying": ["'101'"],
    "point": ["'(1,2)'"],
    "box": ["'(1,2),(3,4)'"],
    "int4range": ["'[1,5)'"],
    "tsvector": ["'a b'"],
    "integer[]": ["'{1,2,NULL}'", "'{}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'"],
    "text[]": ["array['a', 'b\"\\c', 'NULL', '', '{x,y}', null, ' s']"],
    "numeric[]": ["'{1.0,NaN}'"],
    "boolean[]": ["'{t,f}'"],
    "timestamptz[]": ["'{2026-11-30 09:30:00+00}'"],
    "jsonb[]": ["array['{\"a\": 1}'::jsonb, 'null'::jsonb]"],
    "box[]": ["'{(1,2),(3,4);(5,6),(7,8)}'"],
    "int2vector": ["'1 2 3'"],
    "oidvector": ["'1 2'"],
    "mood": ["'glad'"],
    "mood[]": ["'{glad,sad}'"],
    "positive": ["5"],
    "small_positive": ["5"],
    "numbers": ["'{1,2}'"],
    "pair": ["row(1, 'x')::pair"],
    "pair[]": ["array[row(1, 'x')::pair]"],
}
WITHOUT_ORDER = frozenset({"json", "point", "box", "box[]", "int2vector"})
MADE = """
create type mood as enum ('glad', 'sad');
create domain positive as integer check (value > 0);
create domain small_positive as positive check (value < 10);
create domain numbers as integer[];
create type pair as (a integer, b text);
"""
# SQLAlchemy's, of types that gateways get to know as texts.
pytestmark = pytest.mark.filterwarnings("ignore:Did not recognize type")


async def _as_logged(log: ChangeLog, after: str) -> list[RowChange]:
    batch = await log.read(after)
    assert isinstance(batch, Batch)
    return [
        RowChange(change, change.row, old)
        for change, old in zip(batch.changes, batch.before or repeat(None), strict=False)
    ]


async def _as_relayed(stream: StreamReader, client: Client, count: int) -> list[RowChange]:
    found = []
    for it in await stream.changes(count):
        raw = await client.jetstream().get_msg(stream.stream, it.sequence)
        item = decode(raw.data or b"", raw.headers or {}, "p")
        assert isinstance(item, RowChange)
        found.append(item)
    return found


def _told(it: RowChange) -> tuple[Any, ...]:
    change = it.change
    return change.operation, change.key, change.changed, it.row, it.old, change.transaction_id


async def _compared(
    shop: WalShop, nats: NatsServer, client: Client, tables: list[str], *statements: str
) -> list[RowChange]:
    """Run statements; fail unless the WAL tells of them what the log tells."""
    await install_triggers(shop.engine, tables, log=True, row_values=True)
    for table in tables:
        await shop.sql.execute(f"alter table {table} replica identity full")
    await shop.capture(*tables)
    stream = StreamReader(client, shop.engine.url.database or "")
    async with (
        ChangeLog(shop.engine) as log,
        relaying(shop.engine, nats.url, capture="wal", tables=tables),
    ):
        await stream.next()
        after = await log.position()
        for statement in statements:
            await shop.sql.execute(statement)
        logged = await _as_logged(log, after)
        relayed = await _as_relayed(stream, client, len(logged))
    for mine, theirs in zip(map(_told, relayed), map(_told, logged), strict=True):
        assert mine == theirs
    return relayed


async def test_values_of_every_type_are_those_of_the_log(
    wal_shop: WalShop, nats: NatsServer, client: Client
) -> None:
    await wal_shop.sql.execute(MADE)
    columns = [f"c{place} {type_}" for place, type_ in enumerate(TYPES)]
    await wal_shop.sql.execute(f"create table kinds (id integer primary key, {', '.join(columns)})")
    statements = [
        f"insert into kinds (id, c{place}) values ({100 * place + number}, {value})"
        for place, values in enumerate(TYPES.values())
        for number, value in enumerate(values)
    ]
    await _compared(wal_shop, nats, client, ["public.kinds"], *statements)


async def test_keys_of_every_type_are_those_of_the_log(
    wal_shop: WalShop, nats: NatsServer, client: Client
) -> None:
    await wal_shop.sql.execute(MADE)
    types = [it for it in TYPES if it not in WITHOUT_ORDER]
    statements = []
    for place, type_ in enumerate(types):
        await wal_shop.sql.execute(f"create table keyed{place} (k {type_} primary key, v integer)")
        for value in TYPES[type_]:
            statements.append(f"insert into keyed{place} values ({value}, 1)")
            statements.append(f"update keyed{place} set v = 2")
            statements.append(f"delete from keyed{place}")
    tables = [f"public.keyed{place}" for place in range(len(types))]
    await _compared(wal_shop, nats, client, tables, *statements)


async def test_changes_are_those_of_the_log(
    wal_shop: WalShop, nats: NatsServer, client: Client
) -> None:
    await wal_shop.sql.execute(
        "create table thing (a integer, b text, v text, n numeric, primary key (b, a))"
    )
    found = await _compared(
        wal_shop,
        nats,
        client,
        ["public.thing"],
        "insert into thing values (1, 'x', 'v', 1.0), (2, 'y', null, 2)",
        "update thing set v = 'w', n = null where a = 1",
        "update thing set v = v",
        "update thing set n = 2.0 where a = 2",
        "update thing set a = 7 where a = 1",
        "delete from thing where a = 7",
        "truncate thing",
    )
    assert [it.change.operation for it in found].count("truncate") == 1


async def test_the_order_of_columns_and_dropped_ones_do_not_matter(
    wal_shop: WalShop, nats: NatsServer, client: Client
) -> None:
    await wal_shop.sql.execute('create table odd ("a ""b" text, gone integer, id integer)')
    await wal_shop.sql.execute("alter table odd drop gone, add primary key (id)")
    await _compared(
        wal_shop,
        nats,
        client,
        ["public.odd"],
        "insert into odd values ('x', 1)",
        'update odd set "a ""b" = \'y\'',
        "delete from odd",
    )
