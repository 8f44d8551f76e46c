from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.exceptions import LockTimeoutError
from rowsignal.orm.tables.truncate import cleanup_tables


class Base(DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "countries"
    id: Mapped[int] = mapped_column(primary_key=True)


class City(Base):
    __tablename__ = "Cities"
    id: Mapped[int] = mapped_column(primary_key=True)
    country_id: Mapped[int | None] = mapped_column(ForeignKey("countries.id"))


class Widget(Base):
    __table__ = Table(
        "widgets", Base.metadata, Column("id", Integer, primary_key=True), schema="tenant"
    )


Maker = async_sessionmaker[AsyncSession]


@pytest.fixture
async def maker(engine: AsyncEngine) -> Maker:
    async with engine.begin() as connection:
        await connection.execute(text("create schema tenant"))
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("create table public.widgets (id int)"))
        await connection.execute(text("insert into public.widgets values (1)"))
        for model in (Country, City, Widget):
            await connection.run_sync(lambda c, m=model: c.execute(m.__table__.insert()))
    return async_sessionmaker(engine)


async def counts(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        return {
            str(table): await connection.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.tables.values()
        }


async def test_all_tables_of_a_base_are_emptied_and_no_other(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as session:
        await cleanup_tables(session=session, base=Base)
    assert await counts(engine) == {"countries": 0, "Cities": 0, "tenant.widgets": 0}
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from public.widgets")) == 1


async def test_sequences_start_again(maker: Maker) -> None:
    async with maker() as session:
        await cleanup_tables(session, Base)
        country = Country()
        session.add(country)
        await session.flush()
        assert country.id == 1


@pytest.mark.parametrize("excluded", [Country, Country.__table__, "countries"])
async def test_an_excluded_table_is_left_alone(
    engine: AsyncEngine, maker: Maker, excluded: Any
) -> None:
    async with maker() as session:
        await cleanup_tables(session, Base, exclude=[excluded])
    assert await counts(engine) == {"countries": 1, "Cities": 0, "tenant.widgets": 0}


async def test_an_exclusion_that_cascade_would_not_respect_is_refused(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as session:
        with pytest.raises(ValueError, match="Cities cannot be left out"):
            await cleanup_tables(session, Base, exclude=[City])
    assert set((await counts(engine)).values()) == {1}


async def test_an_unknown_exclusion_is_refused_with_the_known_ones(maker: Maker) -> None:
    async with maker() as session:
        with pytest.raises(ValueError, match=r"tenant\.widgets"):
            await cleanup_tables(session, Base, exclude=["widgets"])


async def test_what_was_not_committed_is_not_committed_by_cleaning(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as session:
        session.add(Country())
        await session.flush()
        await cleanup_tables(session, Base, exclude=[Country])
    assert (await counts(engine))["countries"] == 1


async def test_the_session_forgets_rows_that_are_gone(maker: Maker) -> None:
    async with maker() as session:
        country = await session.get_one(Country, 1)
        await cleanup_tables(session, Base)
        assert country not in session
        assert await session.get(Country, 1) is None


async def test_a_reader_in_the_way_is_an_error_and_not_a_wait_for_ever(maker: Maker) -> None:
    async with maker() as reader, maker() as session:
        await reader.execute(select(Country))
        with pytest.raises(LockTimeoutError, match=r"countries, tenant\.widgets .* 0\.05 s"):
            await cleanup_tables(session, Base, timeout=0.05)


async def test_without_tables_nothing_happens(maker: Maker) -> None:
    class Empty(DeclarativeBase):
        pass

    async with maker() as session:
        session.add(Country())
        await cleanup_tables(session, Empty)
        await cleanup_tables(session, MetaData())
        assert len(session.new) == 1


async def test_schemas_are_translated(engine: AsyncEngine, maker: Maker) -> None:
    metadata = MetaData()
    Table("widgets", metadata, Column("id", Integer))
    translated = engine.execution_options(schema_translate_map={None: "tenant"})
    async with AsyncSession(translated) as session:
        await cleanup_tables(session, metadata)
    assert (await counts(engine))["tenant.widgets"] == 0
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from public.widgets")) == 1
