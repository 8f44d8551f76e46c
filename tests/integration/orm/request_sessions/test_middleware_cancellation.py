"""A cancellation at every single await of a request or block."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rowsignal.orm.request_sessions.middleware import create_middleware_and_session_proxy
from rowsignal.orm.request_sessions.proxy import SessionProxy
from support.session_apps import create_tables, entries, is_free

INSERT = text("insert into entry values (:id)")


class Canceller:
    """Counts awaits from 1, and cancels one task at the given one of them, or some in a row."""

    def __init__(self, at: int, times: int) -> None:
        self.at = range(at, at + times)
        self.awaits = 0
        self.victim = asyncio.current_task()

    async def run(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Return whether the work went through; False when it was cancelled."""
        self.victim = asyncio.current_task()
        try:
            await Counted(work, self)
        except asyncio.CancelledError:
            return False
        return True

    def make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """Stand in for the loop's task factory, so that awaits of new tasks count as well."""

        async def run() -> Any:
            return await Counted(work, self)

        task = asyncio.Task(run(), loop=loop, **options)
        task.add_done_callback(lambda _: work.close())  # where it was cancelled before it began
        return task

    def count(self) -> None:
        self.awaits += 1
        if self.awaits in self.at:
            assert self.victim is not None
            self.victim.cancel()


class Counted:
    """Runs a coroutine as `await` does, and counts where it suspends."""

    def __init__(self, work: Coroutine[Any, Any, Any], canceller: Canceller) -> None:
        self.work = work
        self.canceller = canceller

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.work.__await__()
        value, error = None, None
        while True:
            try:
                future = steps.throw(error) if error is not None else steps.send(value)
            except StopIteration as end:
                return end.value
            self.canceller.count()
            value, error = None, None
            try:
                value = yield future
            except BaseException as thrown:  # noqa: BLE001 # handed on to the work
                error = thrown


async def cancel_everywhere(
    work: Callable[[int], Coroutine[Any, Any, Any]], times: int = 1, *, in_children: bool = False
) -> AsyncIterator[Any]:
    """Run work(1), work(2) ... cancelling each one await later, until one goes through."""
    loop = asyncio.get_running_loop()
    for at in range(1, 200):
        canceller = Canceller(at, times)
        main = asyncio.create_task(canceller.run(work(at)))
        if in_children:
            loop.set_task_factory(canceller.make_task)
        went_through = await main
        loop.set_task_factory(None)
        yield at, went_through
        if canceller.awaits < at:
            assert went_through
            assert at > 5, "there was hardly anything to cancel"
            return
    pytest.fail("it never went through")


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=2)
    await create_tables(engine)
    yield engine
    await engine.dispose()


async def nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_requests_give_back_their_connection(
    pooled: AsyncEngine, engine: AsyncEngine, times: int
) -> None:
    middleware_class, db = create_middleware_and_session_proxy()
    sent: dict[int, int] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number in (scope["number"] * 2, scope["number"] * 2 + 1):
            await db.session.execute(INSERT, {"id": number})
            await asyncio.sleep(0)  # one await that is not the database's
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    middleware = middleware_class(
        app,
        custom_engine=pooled,
        commit_on_exit=True,
        session_args={"class_": AsyncSession},
    )

    async def request(number: int) -> None:
        async def send(message: Any) -> None:
            sent[number] = sent.get(number, 0) + (message["type"] == "http.response.start")

        scope = {"type": "http", "path": "/", "number": number}
        await middleware(scope, nothing, send)

    async for number, _ in cancel_everywhere(request, times):
        assert is_free(pooled)
        rows = [row for row in await entries(engine) if row // 2 == number]
        assert rows in ([], [number * 2, number * 2 + 1]), "half a request was committed"
        if sent.get(number):
            assert rows, "a 2xx left, and its rows are missing"


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("options", [{}, {"pool_timeout": 5}])
async def test_cancelled_blocks_give_back_their_connection(
    pooled: AsyncEngine, engine: AsyncEngine, options: dict[str, Any], times: int
) -> None:
    db = SessionProxy()
    db.init(custom_engine=pooled, session_args={"class_": AsyncSession})

    async def block(number: int) -> None:
        async with db(commit_on_exit=True, **options):
            for row in (number * 2, number * 2 + 1):
                await db.session.execute(INSERT, {"id": row})
                await asyncio.sleep(0)

    async for number, went_through in cancel_everywhere(block, times):
        assert is_free(pooled)
        rows = [row for row in await entries(engine) if row // 2 == number]
        assert rows in ([], [number * 2, number * 2 + 1])
        assert rows or not went_through


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_rollbacks_give_back_their_connection(
    pooled: AsyncEngine, engine: AsyncEngine, times: int
) -> None:
    db = SessionProxy()
    db.init(custom_engine=pooled, session_args={"class_": AsyncSession})

    async def block(number: int) -> None:
        with suppress(LookupError):
            async with db(commit_on_exit=True):
                for row in (number * 2, number * 2 + 1):
                    await db.session.execute(INSERT, {"id": row})
                    await asyncio.sleep(0)
                raise LookupError

    async for _ in cancel_everywhere(block, times):
        assert is_free(pooled)
        assert await entries(engine) == []


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_multi_sessions_end_every_child(
    database_url: str, engine: AsyncEngine, times: int
) -> None:
    pooled = create_async_engine(database_url, pool_size=3, max_overflow=0, pool_timeout=2)
    await create_tables(engine)
    db = SessionProxy()
    db.init(custom_engine=pooled, session_args={"class_": AsyncSession})

    async def insert(row: int) -> None:
        await db.session.execute(INSERT, {"id": row})
        await asyncio.sleep(0)

    async def block(number: int) -> None:
        async with db(multi_sessions=True, max_concurrent=2, commit_on_exit=True):
            await insert(number * 3)
            await db.gather(*(insert(number * 3 + index) for index in (1, 2)))

    others = asyncio.all_tasks()
    async for number, went_through in cancel_everywhere(block, times, in_children=True):
        assert is_free(pooled)
        assert asyncio.all_tasks() == others
        rows = [row for row in await entries(engine) if row // 3 == number]
        assert len(rows) == 3 or not went_through
    await pooled.dispose()
