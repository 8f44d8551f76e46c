"""Settings of roles and the width of tables make no difference to reading."""

import asyncio
from datetime import date, timedelta

from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from rowsignal.listener import Listener
from rowsignal.streams import watch
from rowsignal.triggers import install_triggers
from support.change_log import connect

SETTINGS = {
    "standard_conforming_strings": "off",
    "datestyle": "German",
    "intervalstyle": "iso_8601",
    "search_path": "nowhere",
    "idle_session_timeout": "200ms",
}
COLUMNS = 1_600


async def test_rows_are_read_alike_under_any_settings_of_the_role(engine: AsyncEngine) -> None:
    owner = await connect(engine)
    await owner.execute(
        r"""create table public."odd \ % : name" (
            id integer primary key, "a'\b" text, span daterange, wait interval
        )"""
    )
    async with engine.connect() as connection:
        table = await connection.run_sync(
            lambda sync: Table(r"odd \ % : name", MetaData(), schema="public", autoload_with=sync)
        )
    await install_triggers(engine, [table], log=True)

    class Base(DeclarativeBase):
        pass

    class Odd(Base):
        __table__ = table

    odd = create_async_engine(engine.url, connect_args={"server_settings": SETTINGS})
    async with Listener(odd), watch(odd, Odd, rows=True) as changes:
        for number in range(2):  # the second after the connection would have timed out
            await owner.execute(
                rf"""insert into "odd \ % : name" values
                ({number}, 'x\y', '[2026-11-30,2026-12-01)', '1 day')"""
            )
            async with asyncio.timeout(30):
                change = await anext(changes)
            assert change.row == {
                "id": number,
                "a'\\b": "x\\y",
                "span": Range(date(2026, 11, 30), date(2026, 12, 1)),
                "wait": timedelta(days=1),
            }
            await asyncio.sleep(0.4)
    await odd.dispose()
    await owner.close()


async def test_a_table_of_as_many_columns_as_there_may_be(engine: AsyncEngine) -> None:
    metadata = MetaData()
    wide = Table(
        "wide",
        metadata,
        *(Column(f"c{n}", Integer, primary_key=not n) for n in range(COLUMNS)),
    )

    class Base(DeclarativeBase):
        pass

    class Wide(Base):
        __table__ = wide

    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await install_triggers(engine, [wide])
    owner = await connect(engine)
    async with Listener(engine), watch(engine, Wide, rows=True) as changes:
        await owner.execute("insert into wide (c0, c1599) values (1, 2)")
        async with asyncio.timeout(60):
            change = await anext(changes)
    assert change.row is not None
    assert len(change.row) == COLUMNS
    assert (change.row["c0"], change.row["c1599"]) == (1, 2)
    await owner.close()
