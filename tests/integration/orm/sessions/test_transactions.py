# ruff: noqa: PT012 -- the block under test is what raises
from contextlib import suppress

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from rowsignal.exceptions import AbortedTransactionError
from rowsignal.orm.sessions.transactions import get_transaction, transaction


@pytest.fixture
async def maker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    async with engine.begin() as connection:
        await connection.execute(text("create table notes (id int)"))
    return async_sessionmaker(engine)


async def note(session: AsyncSession, number: int) -> None:
    await session.execute(text("insert into notes values (:number)"), {"number": number})


async def notes(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("select id from notes order by id")))


async def test_without_a_transaction_the_block_is_one(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session:
        async with get_transaction(session) as same:
            assert same is session
            await note(session, 1)
        assert not session.in_transaction()
    assert await notes(engine) == [1]


async def test_an_exception_undoes_the_block(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session:
        with pytest.raises(ZeroDivisionError):
            async with get_transaction(session=session):
                await note(session, 1)
                raise ZeroDivisionError
    assert await notes(engine) == []


async def test_nested_it_undoes_the_inner_block_alone(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session, get_transaction(session):
        await note(session, 1)
        with suppress(ZeroDivisionError):
            async with get_transaction(session):
                await note(session, 2)
                raise ZeroDivisionError
        await note(session, 3)
    assert await notes(engine) == [1, 3]


async def test_a_statement_that_failed_in_a_nested_block_leaves_the_rest_intact(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session, get_transaction(session):
        await note(session, 1)
        with suppress(DBAPIError):
            async with get_transaction(session):
                await session.execute(text("select 1 / 0"))
    assert await notes(engine) == [1]


async def test_after_a_read_the_block_is_a_savepoint_that_the_caller_commits(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session:
        await session.execute(select(1))
        async with get_transaction(session):
            await note(session, 1)
        assert await notes(engine) == []
        await session.commit()
    assert await notes(engine) == [1]


async def test_a_swallowed_error_does_not_pass_for_a_commit(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session:
        with pytest.raises(AbortedTransactionError, match="get_transaction"):
            async with get_transaction(session):
                await note(session, 1)
                with suppress(DBAPIError):
                    await session.execute(text("select 1 / 0"))
    assert await notes(engine) == []


async def test_error_of_another_session_does_not_stop_a_commit(
    engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]
) -> None:
    async with maker() as session, get_transaction(session):
        await note(session, 1)
        async with maker() as other:
            with suppress(DBAPIError):
                await other.execute(text("select 1 / 0"))
    assert await notes(engine) == [1]


def test_transaction_is_the_same_thing() -> None:
    assert transaction is get_transaction
