"""get_one, get_by_pk, get_or_create, update_or_create: alone and in a crowd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import ForeignKey, MetaData, UniqueConstraint, func, select
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.util import await_only

from rowsignal.orm import AsyncDatabaseManager
from rowsignal.orm.models import queries
from rowsignal.orm.models.base import NAMING_CONVENTION, Base
from rowsignal.orm.models.queries import QueryMixin

CROWD = 20
Sessions = async_sessionmaker[AsyncSession]


class Shelf(Base):
    __tablename__ = "shelves"

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    label: Mapped[str | None] = mapped_column(unique=True)
    room: Mapped[str | None]
    books: Mapped[list["Book"]] = relationship(back_populates="shelf", lazy="joined")


class Book(Base):
    __tablename__ = "books"
    __table_args__ = (UniqueConstraint("shelf_id", "title"),)

    metadata = Shelf.metadata
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"))
    title: Mapped[str]
    pages: Mapped[int] = mapped_column("page_count", default=0)
    shelf: Mapped[Shelf] = relationship(back_populates="books")


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[Sessions]:
    engine = create_async_engine(database_url, pool_size=CROWD)
    async with engine.begin() as connection:
        await connection.run_sync(Shelf.metadata.create_all)
    yield async_sessionmaker(engine, expire_on_commit=False)
    await engine.dispose()


@pytest.fixture
async def session(sessions: Sessions) -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


async def count(session: AsyncSession, model: type[Any]) -> int:
    return await session.scalar(select(func.count()).select_from(model)) or 0


async def test_get_by_pk_takes_the_session_first_and_needs_no_manager(session):
    shelf = Shelf(name="poetry")
    session.add(shelf)
    await session.flush()
    assert await Shelf.get_by_pk(session, shelf.id) is shelf
    assert await queries.get_by_pk(shelf.id, session=session, model=Shelf) is shelf
    assert await Shelf.get_by_pk(session, 4711) is None


async def test_get_by_pk_takes_its_arguments_in_either_order(session):
    shelf = Shelf(name="poetry")
    session.add(shelf)
    await session.flush()
    assert await Shelf.get_by_pk(shelf.id, session=session) is shelf
    assert await Shelf.get_by_pk(pk=shelf.id, session=session) is shelf
    assert await Shelf.get_by_pk(session, pk=shelf.id) is shelf
    assert await Shelf.get_by_pk(shelf.id, session) is shelf


@pytest.mark.parametrize(
    ("arguments", "named"), [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1,), {"pk": 2, "session": 3})]
)
async def test_get_by_pk_says_what_it_needs(arguments, named):
    with pytest.raises(TypeError, match="session and a key"):
        await Shelf.get_by_pk(*arguments, **named)


async def test_manager_gives_its_base_the_queries_that_it_lacks(session, tmp_path):
    class Own(DeclarativeBase):
        metadata = MetaData()

    class Plain(Own):
        __tablename__ = "shelves"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

        @classmethod
        def get_one(cls) -> str:
            return "its own"

    AsyncDatabaseManager("postgresql://unused", tmp_path, base_model=Own)
    shelf, created = await Plain.get_or_create(session, name="poetry")
    assert created
    assert await Plain.get_by_pk(shelf.id, session=session) is shelf
    assert await Plain.update_or_create(session, name="poetry") == (shelf, False)
    assert Plain.get_one() == "its own"


async def test_get_one_returns_the_row_even_where_its_collection_is_loaded_by_a_join(session):
    session.add(Shelf(name="poetry", books=[Book(title="a"), Book(title="b")]))
    await session.commit()
    session.expunge_all()
    shelf = await Shelf.get_one(session, name="poetry")
    assert {book.title for book in shelf.books} == {"a", "b"}


async def test_get_one_says_none_or_several(session):
    with pytest.raises(NoResultFound):
        await Shelf.get_one(session, name="poetry")
    session.add_all([Shelf(name="a", room="x"), Shelf(name="b", room="x")])
    with pytest.raises(MultipleResultsFound):
        await Shelf.get_one(session, room="x")


async def test_get_or_create_creates_once_and_then_finds(session):
    created, was_created = await Shelf.get_or_create(session, name="poetry")
    found, was_created_again = await Shelf.get_or_create(session, name="poetry")
    assert (was_created, was_created_again) == (True, False)
    assert created is found
    assert created.id is not None


async def test_attributes_may_be_relationships_and_renamed_columns(session):
    shelf, _ = await Shelf.get_or_create(session, name="poetry")
    book, created = await Book.get_or_create(session, shelf=shelf, title="a", pages=3)
    again, created_again = await Book.get_or_create(session, shelf=shelf, title="a", pages=3)
    assert (created, created_again) == (True, False)
    assert again is book


@pytest.mark.parametrize("query", [Shelf.get_one, Shelf.get_or_create, Shelf.update_or_create])
async def test_an_unknown_attribute_is_refused_with_the_known_ones(session, query):
    with pytest.raises(ValueError, match=r"Shelf has no attribute 'nmae'.*name"):
        await query(session, nmae="poetry")


@pytest.mark.parametrize("keyword", ["defaults", "create_defaults"])
async def test_an_unknown_default_is_refused(session, keyword):
    with pytest.raises(ValueError, match="Shelf has no attribute 'rom'"):
        await Shelf.update_or_create(session, name="poetry", **{keyword: {"rom": "x"}})


async def test_twenty_at_once_create_one_and_keep_their_earlier_work(sessions):
    everybody_is_ready = asyncio.Barrier(CROWD)

    async def visitor(number: int) -> bool:
        async with sessions.begin() as session:
            session.add(Shelf(name=f"own {number}"))
            await session.flush()
            assert await count(session, Shelf) >= 1
            await everybody_is_ready.wait()
            shelf, created = await Shelf.get_or_create(session, name="shared")
            assert shelf.id is not None
            return created

    outcomes = await asyncio.gather(*map(visitor, range(CROWD)))
    assert sorted(outcomes) == [False] * (CROWD - 1) + [True]
    async with sessions() as session:
        names = set(await session.scalars(select(Shelf.name)))
    assert names == {"shared", *(f"own {number}" for number in range(CROWD))}


async def test_twenty_updates_at_once_create_one_and_lose_none(sessions):
    everybody_is_ready = asyncio.Barrier(CROWD)

    async def visitor(number: int) -> bool:
        async with sessions.begin() as session:
            session.add(Shelf(name=f"own {number}"))
            await session.flush()
            await everybody_is_ready.wait()
            _, created = await Shelf.update_or_create(
                session, name="shared", defaults={"room": f"room {number}"}
            )
            return created

    outcomes = await asyncio.gather(*map(visitor, range(CROWD)))
    assert sorted(outcomes) == [False] * (CROWD - 1) + [True]
    async with sessions() as session:
        assert await count(session, Shelf) == CROWD + 1
        assert (await Shelf.get_one(session, name="shared")).room.startswith("room ")


@asynccontextmanager
async def rival(session: AsyncSession, sessions: Sessions, **attrs: Any) -> AsyncIterator[None]:
    """Let another session commit a row just before `session` inserts its own."""
    begin_nested = session.sync_session.begin_nested
    model = Book if "title" in attrs else Shelf

    async def win() -> None:
        async with sessions.begin() as winner:
            winner.add(model(**attrs))

    def win_first(*args: Any, **kwargs: Any) -> Any:
        session.sync_session.begin_nested = begin_nested
        await_only(win())
        return begin_nested(*args, **kwargs)

    session.sync_session.begin_nested = win_first
    yield
    assert session.sync_session.begin_nested is begin_nested, "nothing was inserted"


async def test_a_lost_race_leaves_loaded_objects_and_pending_work_usable(sessions, session):
    mine = Shelf(name="mine", room="x")
    session.add(mine)
    await session.flush()
    mine.room = "y"
    async with rival(session, sessions, name="shared"):
        shared, created = await Shelf.get_or_create(session, name="shared")
    assert not created
    assert (mine.name, mine.room, shared.name) == ("mine", "y", "shared")
    await session.commit()
    async with sessions() as other:
        assert (await Shelf.get_one(other, name="mine")).room == "y"


async def test_a_lost_race_leaves_no_ghost_in_a_related_collection(sessions, session):
    shelf = Shelf(name="poetry", books=[Book(title="other")])
    session.add(shelf)
    await session.commit()
    async with rival(session, sessions, shelf_id=shelf.id, title="a"):
        book, created = await Book.get_or_create(session, shelf=shelf, title="a")
    assert (created, shelf.name, book.title) == (False, "poetry", "a")
    await session.commit()
    async with sessions() as other:
        assert await count(other, Book) == 2


async def test_a_conflict_with_another_row_is_the_callers_error_and_costs_nothing_else(session):
    session.add(Shelf(name="taken", label="L1"))
    await session.flush()
    with pytest.raises(IntegrityError):
        await Shelf.get_or_create(session, name="new", label="L1")
    assert await count(session, Shelf) == 1
    await session.commit()


async def test_a_broken_foreign_key_is_not_taken_for_a_race(session):
    with pytest.raises(IntegrityError, match="foreign key"):
        await Book.get_or_create(session, shelf_id=4711, title="a")


async def test_update_or_create_sets_defaults_on_what_it_finds(session):
    session.add(Shelf(name="poetry", room="x"))
    await session.commit()
    shelf, created = await Shelf.update_or_create(session, name="poetry", defaults={"room": "y"})
    assert (created, shelf.room) == (False, "y")


async def test_create_defaults_replace_defaults_even_when_empty(session):
    empty, _ = await Shelf.update_or_create(
        session, name="a", defaults={"room": "x"}, create_defaults={}
    )
    other, _ = await Shelf.update_or_create(
        session, name="b", defaults={"room": "x"}, create_defaults={"room": "z"}
    )
    plain, _ = await Shelf.update_or_create(session, name="c", defaults={"room": "x"})
    assert (empty.room, other.room, plain.room) == (None, "z", "x")


async def test_update_or_create_locks_the_row_it_found(sessions):
    async with sessions.begin() as session:
        session.add(Shelf(name="poetry"))
    async with sessions() as first, sessions() as second:
        await Shelf.update_or_create(first, name="poetry", defaults={"room": "x"})
        locked = select(Shelf.id).where(Shelf.name == "poetry").with_for_update(skip_locked=True)
        assert (await second.scalars(locked)).all() == []
        await first.commit()
        assert len((await second.scalars(locked)).all()) == 1


async def test_update_or_create_writes_over_what_changed_since_the_row_was_loaded(sessions):
    async with sessions() as session, sessions() as rival:
        session.add(Shelf(name="poetry", room="x"))
        await session.commit()
        (await Shelf.get_one(rival, name="poetry")).room = "rival's"
        await rival.commit()
        # the session still believes the room to be x
        await Shelf.update_or_create(session, name="poetry", defaults={"room": "x"})
        await session.commit()
        assert await rival.scalar(select(Shelf.room)) == "x"


async def test_update_or_create_keeps_what_was_not_flushed_yet(session):
    shelf = Shelf(name="poetry", room="x")
    session.add(shelf)
    await session.commit()
    shelf.label = "L1"
    with session.no_autoflush:
        await Shelf.update_or_create(session, name="poetry", defaults={"room": "y"})
    assert (shelf.label, shelf.room) == ("L1", "y")


async def test_the_mixin_serves_a_base_of_ones_own(engine: AsyncEngine):
    class OwnBase(QueryMixin, DeclarativeBase):
        pass

    class Thing(OwnBase):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)

    async with engine.begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
    async with async_sessionmaker(engine)() as session:
        thing, created = await Thing.get_or_create(session, id=1)
        assert created
        assert await Thing.get_by_pk(session, 1) is thing


async def test_base_names_constraints_and_awaits_attributes(session):
    names = {constraint.name for constraint in Book.__table__.constraints}
    assert names == {"pk_books", "uq_books_shelf_id", "fk_books_shelf_id_shelves"}
    session.add(Shelf(name="poetry", books=[Book(title="a")]))
    await session.commit()
    session.expunge_all()
    book = await Book.get_one(session, title="a")
    assert (await book.awaitable_attrs.shelf).name == "poetry"
