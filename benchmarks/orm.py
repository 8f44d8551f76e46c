"""A request that reads, changes and commits one row, with each way to get its session.

All applications do the same work on the same engine; requests are ASGI calls without a network,
so that nothing dilutes the ratios. Each round serves one request of every application, in an
order that rotates, and ratios are medians of the quotients within a round: what disturbs the
machine for longer than a round disturbs both sides. What is left differs by some 2 % between
runs; the peers' target of 1.0 therefore leaves 3 %.
"""

import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi_async_sqlalchemy import create_middleware_and_session_proxy as create_fas_pair
from fastapi_toolsets.db import Database
from sqlalchemy import Column, ForeignKey, Table, event
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from benchmarks.report import Report, spread
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.orm.request_sessions.middleware import create_middleware_and_session_proxy
from rowsignal.orm.sessions.dependency import create_db_dependency
from rowsignal.orm.tables.m2m import m2m_set

ROUNDS = 600
WARM_UP = 50
NOISE = 1.03
TAGS = 1000
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"bench")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}


class Base(DeclarativeBase):
    pass


post_tags = Table(
    "post_tags",
    Base.metadata,
    Column("post_id", ForeignKey("posts.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Counter(Base):
    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)


class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    tags: Mapped[list[Tag]] = relationship(secondary=post_tags)


async def increase(session: AsyncSession) -> dict[str, int]:
    """Do the work that every request does."""
    counter = await session.get_one(Counter, 1)
    counter.value += 1
    return {"id": counter.id}


def bare_app(engine: AsyncEngine) -> FastAPI:
    """Return what anybody would write by hand: the yardstick."""
    app = FastAPI()
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @app.get("/")
    async def handle() -> dict[str, int]:
        async with sessions() as session:
            answer = await increase(session)
            await session.commit()
        return answer

    return app


def middleware_app(engine: AsyncEngine, create_pair: Callable[[], tuple[Any, Any]]) -> FastAPI:
    """Return an application with a middleware and its `db`, ours or the peer's."""
    middleware, db = create_pair()
    app = FastAPI()
    app.add_middleware(middleware, custom_engine=engine, commit_on_exit=True)

    @app.get("/")
    async def handle() -> dict[str, int]:
        return await increase(db.session)

    return app


def dependency_app(engine: AsyncEngine) -> FastAPI:
    """Return an application with our session dependency."""
    get_session = create_db_dependency(async_sessionmaker(engine, expire_on_commit=False))
    return with_dependency(FastAPI(), get_session)


def toolsets_app(engine: AsyncEngine) -> FastAPI:
    """Return an application with the peer's dependency, installed as its documentation says."""
    app, database = FastAPI(), Database(engine=engine)
    database.install(app)
    return with_dependency(app, database)


def with_dependency(app: FastAPI, get_session: Any) -> FastAPI:
    @app.get("/")
    async def handle(session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, int]:
        return await increase(session)

    return app


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def request(app: FastAPI) -> float:
    """Serve one request, and return how many seconds it took."""
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    started = time.perf_counter()
    await app(dict(SCOPE), receive, send)
    seconds = time.perf_counter() - started
    if statuses != [200]:
        raise RuntimeError(f"A benchmark's request was answered by {statuses}.")
    return seconds


async def alternate(
    sides: dict[str, Callable[[], Awaitable[float]]], rounds: int
) -> dict[str, list[float]]:
    """Run every side once a round, in an order that rotates."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(await sides[name]())
    return taken


def quotient(taken: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Return the median of what one side took, relative to the other in the same round."""
    pairs = zip(taken[ours], taken[theirs], strict=True)
    return median(mine / other for mine, other in pairs)


async def count_m2m_statements(engine: AsyncEngine) -> int:
    """Return how many statements setting 1000 tags takes when one of them changed."""
    async with async_sessionmaker(engine).begin() as session:
        tags = [Tag(id=number) for number in range(TAGS + 1)]
        session.add_all([*tags, Post(id=1, tags=tags[:TAGS])])
    async with async_sessionmaker(engine)() as session:
        post = await session.get_one(Post, 1)
        wanted = [await session.get_one(Tag, number) for number in range(1, TAGS + 1)]
        statements: list[str] = []
        event.listen(
            engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        await m2m_set(session, post, Post.tags, *wanted)
        await session.commit()
    return len(statements)


async def run() -> dict[str, object]:
    """Measure; the object that `--json` prints."""
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with async_sessionmaker(engine).begin() as session:
            session.add(Counter(id=1, value=0))
        apps = {
            "bare": bare_app(engine),
            "middleware": middleware_app(engine, create_middleware_and_session_proxy),
            "fas": middleware_app(engine, create_fas_pair),
            "dependency": dependency_app(engine),
            "toolsets": toolsets_app(engine),
        }
        sides = {name: lambda app=app: request(app) for name, app in apps.items()}
        await alternate(sides, WARM_UP)
        taken = await alternate(sides, ROUNDS)
        statements = await count_m2m_statements(engine)
        await engine.dispose()
    return report_of(taken, statements)


def report_of(taken: dict[str, list[float]], statements: int) -> dict[str, object]:
    report = Report("orm", {name: spread(seconds) for name, seconds in taken.items()})
    report.ratio("middleware_over_bare", quotient(taken, "middleware", "bare"), at_most=1.10)
    report.ratio("dependency_over_bare", quotient(taken, "dependency", "bare"), at_most=1.10)
    report.ratio("middleware_over_fas", quotient(taken, "middleware", "fas"), at_most=NOISE)
    report.ratio(
        "dependency_over_toolsets", quotient(taken, "dependency", "toolsets"), at_most=NOISE
    )
    report.ratio("m2m_set_statements", statements, at_most=3)
    return report.as_dict()
