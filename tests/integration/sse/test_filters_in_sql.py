"""A filter picks the same rows in PostgreSQL, for snapshots, and in Python, for changes."""

import random
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import sqlalchemy as sa

from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.filters import all_hold, parse_where
from rowsignal.sse.access.views import TableView
from rowsignal.sse.delivery.rows import all_rows, pin_settings

metadata = sa.MetaData()
values = sa.Table(
    "all kinds",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("big", sa.BigInteger),
    sa.Column("exact", sa.Numeric),
    sa.Column("double", sa.Double),
    sa.Column("real", sa.REAL),
    sa.Column("text", sa.Text),
    sa.Column("flag", sa.Boolean),
    sa.Column("uuid", sa.Uuid),
    sa.Column("day", sa.Date),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("plain", sa.DateTime),
    sa.Column("clock", sa.Time),
    sa.Column("zoned", sa.Time(timezone=True)),
    sa.Column("kind", sa.Enum("small", "LARGE", name="size")),
)
SAMPLES = {
    "big": [0, -1, 2**53 + 1, 2**63 - 1, None],
    "exact": [
        Decimal("1.0"),
        Decimal("1.00"),
        Decimal("-7.5"),
        Decimal("NaN"),
        Decimal(10) ** 30,
        None,
    ],
    "double": [0.1, -0.0, float("nan"), float("inf"), 1e300, None],
    "real": [0.1, 1.5, float("nan"), None],
    "text": ["", "a", "B", "ä", "a,b", 'say "hi"', "null", "\\", "ß", None],
    "flag": [True, False, None],
    "uuid": [UUID(int=0), UUID(int=2**127 + 5), UUID(int=77), None],
    "day": [date(1, 1, 2), date(2026, 11, 21), date(9998, 12, 31), None],
    "at": [datetime(2026, 11, 21, 12, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC), None],
    "plain": [datetime.fromisoformat("2026-11-21T12:00:00.000001"), None],
    "clock": [time(0), time(23, 59, 59, 999999), None],
    "zoned": [
        time(12, tzinfo=UTC),
        time(13, tzinfo=timezone(timedelta(hours=1))),
        time(23, 30, tzinfo=timezone(-timedelta(hours=11, minutes=30))),
        None,
    ],
    "kind": ["small", "LARGE", None],
}
UNORDERED = {"flag", "kind"}
ROUNDS = 300


def row_of(number, chance):
    return {"id": number, **{name: chance.choice(found) for name, found in SAMPLES.items()}}


def text_of(value):
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date | time) else str(value)


def condition_of(chance):
    name = chance.choice(sorted(SAMPLES))
    verbs = ["eq", "neq", "in", "is"] + ([] if name in UNORDERED else ["lt", "lte", "gt", "gte"])
    verb = chance.choice(verbs)
    if verb == "is":
        return f"{name}.is.null"
    found = [text_of(value) for value in SAMPLES[name] if value is not None]
    if verb == "in":
        quoted = [
            item.replace("\\", r"\\").replace('"', r"\"") for item in chance.choices(found, k=2)
        ]
        return f'{name}.in.("{quoted[0]}","{quoted[1]}")'
    return f"{name}.{verb}.{chance.choice(found)}"


async def test_a_filter_means_the_same_in_both_places(engine):
    chance = random.Random(20261121)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(values.insert(), [row_of(number, chance) for number in range(80)])
        for number, moment in [(1000, "infinity"), (1001, "-infinity"), (1002, "0044-03-15 BC")]:
            columns = '"all kinds" (id, day, at, plain)'
            odd = f"insert into {columns} values ({number}, '{moment}', '{moment}', '{moment}')"
            await connection.exec_driver_sql(odd)
    (exposure,) = exposures_of([values]).values()
    async with engine.connect() as connection:
        await pin_settings(connection, is_local=True)
        everything = await rows_of(connection, exposure, ())
        assert len(everything) == 83
        hits = 0
        for _ in range(ROUNDS):
            texts = [condition_of(chance) for _ in range(chance.choice([1, 1, 2]))]
            conditions = parse_where(texts, values, values.c.keys())
            in_sql = {row["id"] for row in await rows_of(connection, exposure, conditions)}
            in_python = {row["id"] for row in everything if all_hold(conditions, row)}
            assert in_python == in_sql, texts
            hits += bool(in_sql)
        assert hits > ROUNDS / 3


async def rows_of(connection, exposure, conditions):
    view = TableView(name=exposure.name, asked=conditions)
    return [row async for page in all_rows(connection, exposure, view) for row in page]
