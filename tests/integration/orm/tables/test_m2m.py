import asyncio
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from rowsignal.exceptions import NotFoundError
from rowsignal.orm.tables.m2m import m2m_add, m2m_remove, m2m_set


class Base(DeclarativeBase):
    pass


post_tags = Table(
    "post tags",
    Base.metadata,
    Column("Post", ForeignKey("posts.pid", ondelete="CASCADE"), key="post", primary_key=True),
    Column("Tag", ForeignKey("tags.tid"), key="tag", primary_key=True),
    Column("note", String, server_default="written by default"),
    schema="blog",
)
friends = Table(
    "friends",
    Base.metadata,
    Column("one", ForeignKey("posts.pid"), primary_key=True),
    Column("other", ForeignKey("posts.pid"), primary_key=True),
)
post_places = Table(
    "post_places",
    Base.metadata,
    Column("post_id", ForeignKey("posts.pid"), primary_key=True),
    Column("country", String, primary_key=True),
    Column("city", String, primary_key=True),
    ForeignKeyConstraint(["country", "city"], ["places.country", "places.city"]),
)


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column("pid", primary_key=True)
    title: Mapped[str] = mapped_column(default="")
    author_id: Mapped[int | None] = mapped_column(ForeignKey("tags.tid"))
    author: Mapped["Tag | None"] = relationship(foreign_keys=author_id)
    tags: Mapped[list["Tag"]] = relationship(secondary=post_tags, back_populates="posts")
    shown_tags: Mapped[list["Tag"]] = relationship(secondary=post_tags, viewonly=True)
    friends: Mapped[list["Post"]] = relationship(
        secondary=friends,
        primaryjoin=lambda: Post.id == friends.c.one,
        secondaryjoin=lambda: Post.id == friends.c.other,
    )
    places: Mapped[list["Place"]] = relationship(secondary=post_places)


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column("tid", primary_key=True)
    posts: Mapped[list[Post]] = relationship(secondary=post_tags, back_populates="tags")


class Place(Base):
    __tablename__ = "places"
    country: Mapped[str] = mapped_column(primary_key=True)
    city: Mapped[str] = mapped_column(primary_key=True)


Maker = async_sessionmaker[AsyncSession]


@pytest.fixture
async def maker(engine: AsyncEngine) -> Maker:
    async with engine.begin() as connection:
        await connection.execute(text("create schema blog"))
        await connection.run_sync(Base.metadata.create_all)
    return async_sessionmaker(engine, expire_on_commit=False)


async def filled(session: AsyncSession, tags: int = 4) -> tuple[Post, list[Tag]]:
    post, all_tags = Post(id=1), [Tag(id=number) for number in range(1, tags + 1)]
    session.add_all([post, *all_tags])
    await session.commit()
    return post, all_tags


async def tagged(session: AsyncSession, post: int = 1) -> list[int]:
    query = select(post_tags.c.tag).where(post_tags.c.post == post).order_by(post_tags.c.tag)
    return list(await session.scalars(query))


def statements(session: AsyncSession) -> list[str]:
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    event.listen(session.sync_session.get_bind(), "before_cursor_execute", note)
    return sent


async def test_related_objects_are_added_removed_and_set(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await m2m_add(session, post, Post.tags, tags[0], tags[1])
        assert await tagged(session) == [1, 2]
        await m2m_remove(session, post, Post.tags, tags[0], tags[3])
        assert await tagged(session) == [2]
        await m2m_set(session, post, Post.tags, tags[2], tags[3])
        assert await tagged(session) == [3, 4]
        await m2m_set(session, post, Post.tags)
        assert await tagged(session) == []


async def test_nothing_to_add_or_remove_sends_nothing(maker: Maker) -> None:
    async with maker() as session:
        post, _ = await filled(session)
        sent = statements(session)
        await m2m_add(session, post, Post.tags)
        await m2m_remove(session, post, Post.tags)
    assert sent == []


async def test_an_association_that_exists_is_an_error_unless_ignored(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await m2m_add(session, post, Post.tags, tags[0])
        await m2m_add(session, post, Post.tags, *tags, ignore_conflicts=True)
        assert await tagged(session) == [1, 2, 3, 4]
        with pytest.raises(IntegrityError):
            await m2m_add(session, post, Post.tags, tags[0])


async def test_an_object_named_twice_counts_once(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await m2m_add(session, post, Post.tags, tags[0], tags[0])
        await m2m_set(session, post, Post.tags, tags[1], tags[1], tags[0])
        assert await tagged(session) == [1, 2]


async def test_a_set_leaves_the_rows_that_stay_untouched(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await session.execute(insert(post_tags).values(post=1, tag=1, note="precious"))
        await m2m_set(session, post, Post.tags, *tags)
        query = select(post_tags.c.note).order_by(post_tags.c.tag)
        assert list(await session.scalars(query)) == ["precious"] + ["written by default"] * 3


async def test_a_set_with_one_of_a_thousand_changed_takes_three_statements(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session, 1001)
        await m2m_add(session, post, Post.tags, *tags[:1000])
        await session.commit()
        sent = statements(session)
        await m2m_set(session, post, Post.tags, *tags[1:])
        assert len(sent) <= 3
        assert await tagged(session) == list(range(2, 1002))


async def test_a_set_that_changes_nothing_writes_nothing(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await m2m_set(session, post, Post.tags, *tags)
        sent = statements(session)
        await m2m_set(session, post, Post.tags, *reversed(tags))
        assert [statement.split()[0] for statement in sent] == ["SELECT", "SELECT"]


async def test_of_two_sets_at_once_the_last_to_commit_decides(maker: Maker) -> None:
    async with maker() as session:
        _, tags = await filled(session)
    async with maker() as first, maker() as second, maker() as watcher:
        posts = [await session.get_one(Post, 1) for session in (first, second)]
        await m2m_set(first, posts[0], Post.tags, tags[0], tags[1])
        waiting = asyncio.create_task(m2m_set(second, posts[1], Post.tags, tags[2], tags[3]))
        query = text("select exists (select from pg_locks where not granted)")
        async with asyncio.timeout(30):
            while not await watcher.scalar(query):
                await watcher.rollback()
        await first.commit()
        await waiting
        await second.commit()
        assert await tagged(watcher) == [3, 4]


async def test_a_set_for_an_owner_that_is_gone_says_so(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        async with maker() as other:
            await other.execute(text("delete from posts"))
            await other.commit()
        with pytest.raises(NotFoundError, match="not in the database any more"):
            await m2m_set(session, post, Post.tags, tags[0])


async def test_pending_objects_are_flushed_first(maker: Maker) -> None:
    async with maker() as session:
        post, tag = Post(), Tag()
        session.add_all([post, tag])
        await m2m_add(session, post, Post.tags, tag)
        assert await tagged(session, post.id) == [tag.id]


async def test_what_was_appended_but_not_flushed_is_not_written_twice(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await session.refresh(post, ["tags"])
        post.tags.append(tags[0])
        await m2m_add(session, post, Post.tags, tags[0], tags[1], ignore_conflicts=True)
        await session.commit()
        assert await tagged(session) == [1, 2]


async def test_objects_without_a_row_are_refused(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        with pytest.raises(ValueError, match="has no row to associate"):
            await m2m_add(session, Post(), Post.tags, tags[0])
        with pytest.raises(ValueError, match="has no row to associate"):
            await m2m_set(session, post, Post.tags, Tag())
        await session.delete(tags[0])
        await session.flush()
        with pytest.raises(ValueError, match="has no row to associate"):
            await m2m_remove(session, post, Post.tags, tags[0])


async def test_an_expired_owner_is_known_by_its_identity(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        session.expire_all()
        await m2m_set(session, post, Post.tags, tags[0])
        assert await tagged(session) == [1]


async def test_detached_objects_will_do(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
    async with maker() as session:
        await m2m_add(session, post, Post.tags, *tags)
        assert await tagged(session) == [1, 2, 3, 4]


async def test_a_collection_that_was_loaded_is_not_stale(maker: Maker) -> None:
    async with maker() as session:
        _, tags = await filled(session)
        eager = selectinload(Post.tags)
        post = (await session.scalars(select(Post).options(eager))).one()
        tag = (await session.scalars(select(Tag).options(selectinload(Tag.posts)))).first()
        assert tag is tags[0]
        await m2m_add(session, post, Post.tags, tags[0])
        assert "tags" not in post.__dict__
        assert "posts" not in tag.__dict__
        await session.refresh(post, ["tags"])
        await session.refresh(tag, ["posts"])
        assert (post.tags, tag.posts) == ([tag], [post])
        await m2m_set(session, post, Post.tags, tags[1])
        await session.refresh(post, ["tags"])
        post.tags.append(tags[0])
        await session.commit()
        assert await tagged(session) == [1, 2]


async def test_a_collection_that_did_not_change_stays_loaded(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await m2m_set(session, post, Post.tags, *tags)
        await session.refresh(post, ["tags"])
        await m2m_set(session, post, Post.tags, *tags)
        assert len(post.tags) == 4


async def test_composite_keys(maker: Maker) -> None:
    async with maker() as session:
        post = Post()
        places = [Place(country="de", city=city) for city in ("Ulm", "Bonn", "Köln")]
        session.add_all([post, *places])
        await m2m_set(session, post, Post.places, *places[:2])
        await m2m_set(session, post, Post.places, *places[1:])
        await m2m_remove(session, post, Post.places, places[1])
        await m2m_add(session, post, Post.places, places[0])
        query = select(post_places.c.city).order_by(post_places.c.city)
        assert list(await session.scalars(query)) == ["Köln", "Ulm"]


async def test_self_referential_and_viewonly_relationships(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        other = Post(id=2)
        session.add(other)
        await m2m_set(session, post, Post.friends, other)
        assert (await session.execute(select(friends))).one() == (1, 2)
        await m2m_add(session, post, Post.shown_tags, tags[0])
        assert await tagged(session) == [1]


async def test_the_other_side_writes_the_same_rows(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        await m2m_set(session, tags[0], Tag.posts, post)
        assert await tagged(session) == [1]


@pytest.mark.parametrize("attribute", [Post.author, Post.title])
async def test_what_is_not_many_to_many_is_refused(maker: Maker, attribute: Any) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        with pytest.raises(TypeError, match="not a many-to-many relationship"):
            await m2m_add(session, post, attribute, tags[0])


async def test_an_object_of_another_class_is_refused(maker: Maker) -> None:
    async with maker() as session:
        post, tags = await filled(session)
        with pytest.raises(TypeError, match="is not a Tag"):
            await m2m_add(session, post, Post.tags, post)
        with pytest.raises(TypeError, match="is not a Post"):
            await m2m_set(session, tags[0], Post.tags, tags[0])
        with pytest.raises(TypeError, match="is not a Tag"):
            await m2m_set(session, post, Post.tags, 7)


async def test_more_rows_than_a_statement_has_parameters(maker: Maker) -> None:
    async with maker() as session:
        session.add(Post(id=1))
        await session.flush()
        numbers = text("insert into tags (tid) select * from generate_series(1, 17000)")
        await session.execute(numbers)
        tags = list(await session.scalars(select(Tag).order_by(Tag.id)))
        post = await session.get_one(Post, 1)
        await m2m_add(session, post, Post.tags, *tags[:16900])
        await m2m_set(session, post, Post.tags, *tags[16500:])
        assert await tagged(session) == list(range(16501, 17001))
        await m2m_remove(session, post, Post.tags, *tags)
        assert await tagged(session) == []


async def test_schemas_are_translated(engine: AsyncEngine, maker: Maker) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("create schema other"))
        await connection.execute(text('create table other."post tags" (like blog."post tags")'))
    translated = engine.execution_options(schema_translate_map={"blog": "other"})
    async with AsyncSession(translated) as session:
        post, tags = Post(), Tag()
        session.add_all([post, tags])
        await m2m_set(session, post, Post.tags, tags)
        count = select(text("count(*)")).select_from(text('other."post tags"'))
        assert await session.scalar(count) == 1


async def test_a_column_that_is_no_primary_key_is_loaded_where_it_is_expired(
    engine: AsyncEngine,
) -> None:
    class Other(DeclarativeBase):
        pass

    links = Table(
        "links",
        Other.metadata,
        Column("code", ForeignKey("owners.code"), primary_key=True),
        Column("item", ForeignKey("items.id"), primary_key=True),
    )

    class Item(Other):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Owner(Other):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(Integer, primary_key=True)
        code: Mapped[str] = mapped_column(unique=True)
        items: Mapped[list[Item]] = relationship(Item, secondary=links)

    async with engine.begin() as connection:
        await connection.run_sync(Other.metadata.create_all)
    async with AsyncSession(engine) as session:
        owner, item = Owner(code="a"), Item()
        session.add_all([owner, item])
        await session.commit()
        await m2m_set(session, owner, Owner.items, item)
        assert (await session.execute(select(links.c.code))).scalar_one() == "a"
