"""A wait concerns its row alone: what one row, key, table or function does harms no other wait."""

import asyncio
import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Enum
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.dispatcher import Dispatcher
from rowsignal.dispatcher.table_survey import SurveyedTable, TableSurvey
from rowsignal.exceptions import NotFoundError, UnreadableRowError, WaitTimeoutError
from rowsignal.hooks import Hooks
from rowsignal.listener import Listener
from rowsignal.payload import CHANNEL
from rowsignal.triggers import install_triggers
from rowsignal.triggers.settings import TableName
from rowsignal.waiting import wait_for_row_change
from support.hint_listener import connected
from support.waits import NOTIFIED_ONLY, READ_OFTEN, begin_wait, close_listener, until_mode

MANY = 100


class Base(DeclarativeBase):
    pass


class Mood(enum.Enum):
    GOOD = "GOOD"
    BAD = "BAD"


class Diary(Base):
    """Holds whatever a row may hold that this process cannot read."""

    __tablename__ = "diaries"

    id: Mapped[int] = mapped_column(primary_key=True)
    pages: Mapped[int] = mapped_column(default=0)
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, name="mood"))
    compact: Mapped[Any] = mapped_column(JSONB, nullable=True)
    plain: Mapped[Any] = mapped_column(JSON, nullable=True)
    day: Mapped[date | None]


class Cup(Base):
    __tablename__ = "cups"

    id: Mapped[int] = mapped_column(primary_key=True)
    sips: Mapped[int] = mapped_column(default=0)


class Recorder(Hooks):
    """Remembers what had to begin again."""

    def __init__(self) -> None:
        self.restarts: list[tuple[str, str]] = []

    def task_restarted(self, *, task: str, reason: str) -> None:
        self.restarts.append((task, reason))


@pytest.fixture
async def writer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base)
    async with connected(engine) as writer:
        await writer.execute("insert into diaries select n, 0 from generate_series(1, 101) as n")
        await writer.execute("insert into cups values (1, 0), (2, 0)")
        Dispatcher.of(engine, NOTIFIED_ONLY)
        yield writer
    await close_listener(engine)


UNREADABLE = {
    "an enum label of a newer release": "mood = 'SPLENDID'",
    "5,000 digits": "compact = ('1' || repeat('0', 5000))::jsonb",
    "5,000 deep": "compact = (repeat('[', 5000) || repeat(']', 5000))::jsonb",
    "5,000 deep, as json": "plain = (repeat('[', 5000) || repeat(']', 5000))::json",
    "year 20000": "day = '20000-01-01'",
    "before Christ": "day = '0044-03-15 BC'",
}


@pytest.mark.parametrize("assignment", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_row_that_cannot_be_read_ends_its_own_wait_alone(
    engine: AsyncEngine, writer: asyncpg.Connection, assignment: str
) -> None:
    if "mood" in assignment:
        await writer.execute("alter type mood add value 'SPLENDID'")
    async with Listener(engine, hooks=(recorder := Recorder())):
        Dispatcher.of(engine, NOTIFIED_ONLY)
        waits = [begin_wait(engine, Diary, key) for key in range(1, MANY + 2)]
        elsewhere = begin_wait(engine, Cup, 1)
        await until_mode(engine, "armed", table="diaries")
        await until_mode(engine, "armed", table="cups")
        unreadable = waits.pop()
        await writer.execute(f"update diaries set {assignment} where id = {MANY + 1}")
        with pytest.raises(UnreadableRowError, match=f"Diary {MANY + 1} cannot be read") as caught:
            await unreadable
        cause = caught.value.__cause__
        # Python 3.13 decodes JSON of any depth, and then cannot copy it.
        is_read = isinstance(cause, RecursionError) and "decoding" not in str(cause)
        assert cause is not None
        assert not any(wait.done() for wait in waits)
        await writer.execute(f"update diaries set pages = 1 where id <= {MANY}")
        assert {diary.pages for diary in await asyncio.gather(*waits)} == {1}
        await writer.execute("update cups set sips = 1")
        assert (await elsewhere).sips == 1
        restarts = [] if is_read else ["reads of diaries"]
        assert [task for task, _ in recorder.restarts] == restarts


async def test_a_row_that_cannot_be_read_at_first_leaves_new_waits_alone(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute("update diaries set day = '20000-01-01' where id = 7")
    waits = [begin_wait(engine, Diary, key) for key in range(1, MANY)]
    with pytest.raises(UnreadableRowError):
        await waits.pop(6)
    await until_mode(engine, "armed", table="diaries")
    await writer.execute("update diaries set pages = 1 where id <> 7")
    assert {diary.pages for diary in await asyncio.gather(*waits)} == {1}


@pytest.mark.parametrize(
    ("key", "kind", "complaint"),
    [
        (2**31, ValueError, "Diary.id cannot be an int outside of -2147483648 to 2147483647"),
        (-(2**31) - 1, ValueError, "an int outside of"),
        (10**30, ValueError, "an int outside of"),
        ("7", TypeError, "Diary.id takes an int, not str"),
        (7.0, TypeError, "not float"),
        (True, TypeError, "not bool"),
        ({"id": "7"}, TypeError, "not str"),
    ],
)
async def test_a_key_that_its_column_cannot_hold_is_refused_at_the_call(
    engine: AsyncEngine, key: Any, kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        await wait_for_row_change(engine, Diary, key)
    assert list(Dispatcher.of(engine).tables) == [], "nothing was begun"


async def test_a_locked_table_leaves_waits_of_others_their_usual_time(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    waits = [begin_wait(engine, Diary, key) for key in range(1, 11)]
    await until_mode(engine, "armed", table="diaries")
    async with connected(engine) as owner, connected(engine) as reader:
        async with owner.transaction():
            await owner.execute("lock table diaries in access exclusive mode")
            forged = '{"t":"%s","s":"public","n":"diaries","o":"update"}'
            (token,) = Dispatcher.of(engine).tables[None, "diaries"].watch.tokens
            await reader.execute("select pg_notify($1, $2)", CHANNEL, forged % token)
            await until_waiting_for_lock(reader)
            for sips in range(1, 31):  # each within the time that one lock timeout takes
                elsewhere = begin_wait(engine, Cup, 1)
                await until_mode(engine, "armed", table="cups")
                await writer.execute("update cups set sips = $1", sips)
                async with asyncio.timeout(5):
                    assert (await elsewhere).sips == sips
            with pytest.raises(WaitTimeoutError, match="could not be read"):
                await wait_for_row_change(engine, Diary, 20, timeout=0.3)
            assert not any(wait.done() for wait in waits)
            watch = Dispatcher.of(engine).tables[None, "diaries"].watch
            assert watch.mode == "armed", "a lock is no reason to stop listening"
            await owner.execute("update diaries set pages = 1")
        assert {diary.pages for diary in await asyncio.gather(*waits)} == {1}


async def until_waiting_for_lock(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(30):
        while not await connection.fetchval(
            "select exists (select from pg_locks where not granted and locktype = 'relation')"
        ):
            await asyncio.sleep(0.005)


async def test_a_migration_that_waits_for_its_lock_delays_no_wait_of_another_table(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    slow = begin_wait(engine, Diary, 1, interval=0.02)
    elsewhere = begin_wait(engine, Cup, 1)
    await until_mode(engine, "armed", table="diaries")
    await until_mode(engine, "armed", table="cups")
    async with connected(engine) as reader, connected(engine) as owner:
        async with reader.transaction():
            await reader.execute("select from diaries")
            migration = asyncio.create_task(owner.execute("alter table diaries add extra int"))
            await until_waiting_for_lock(writer)
            await writer.execute("update cups set sips = 1 where id = 1")
            async with asyncio.timeout(5):
                assert (await elsewhere).sips == 1
        await migration
    await writer.execute("update diaries set pages = 1")
    assert (await slow).pages == 1


async def test_the_last_read_does_not_wait_for_a_lock(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    wait = begin_wait(engine, Diary, 1, timeout=1.0)
    await until_mode(engine, "armed", table="diaries")
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with writer.transaction():
        await writer.execute("lock table diaries in access exclusive mode")
        with pytest.raises(WaitTimeoutError, match="did not change"):
            await wait
        assert loop.time() - began < 1.0 + 0.9, "the last read gives up"


async def test_a_comparison_that_fails_ends_its_own_wait(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    def broken(_: Diary) -> bool:
        raise KeyError("oh")

    fine = begin_wait(engine, Diary, 1)
    await until_mode(engine, "armed", table="diaries")
    with pytest.raises(KeyError, match="oh"):
        await wait_for_row_change(engine, Diary, 1, until=broken)
    await writer.execute("update diaries set pages = 1")
    assert (await fine).pages == 1


async def test_watching_a_table_goes_on_after_an_unexpected_failure(
    engine: AsyncEngine,
    writer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ask, failures = (
        TableSurvey.current,
        iter([ZeroDivisionError("x"), ZeroDivisionError("x")]),
    )

    async def fail_twice(self: TableSurvey, name: TableName) -> SurveyedTable:
        if name == (None, "diaries") and (failure := next(failures, None)):
            raise failure
        return await ask(self, name)

    monkeypatch.setattr(TableSurvey, "current", fail_twice)
    async with Listener(engine, hooks=(recorder := Recorder())):
        Dispatcher.of(engine, READ_OFTEN)
        wait = begin_wait(engine, Diary, 1, interval=0.05)
        elsewhere = begin_wait(engine, Cup, 1)
        await until_mode(engine, "armed", table="cups")
        await until_mode(engine, "armed", table="diaries")
        await writer.execute("update diaries set pages = 1; update cups set sips = 1")
        assert ((await wait).pages, (await elsewhere).sips) == (1, 1)
    assert recorder.restarts == [("diaries", "ZeroDivisionError: x")] * 2
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1, "once, though it failed twice"


async def test_a_survey_that_fails_for_all_tables_is_made_for_each(
    engine: AsyncEngine, writer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is dropped while the catalogue is read must not disarm the others."""
    ask, failed = TableSurvey._take, asyncio.Semaphore(0)

    async def fail_together(
        self: TableSurvey, asked: Sequence[TableName]
    ) -> Mapping[TableName, SurveyedTable]:
        if len(asked) > 1:
            failed.release()
            raise ZeroDivisionError("x")
        return await ask(self, asked)

    monkeypatch.setattr(TableSurvey, "_take", fail_together)
    async with Listener(engine, hooks=(recorder := Recorder())):
        Dispatcher.of(engine, READ_OFTEN)
        tasks = [begin_wait(engine, Diary, 1), begin_wait(engine, Cup, 1)]
        watches = [await until_mode(engine, "armed", table=it) for it in ("diaries", "cups")]
        async with asyncio.timeout(30):
            for _ in range(6):
                await failed.acquire()
        assert [watch.mode for watch in watches] == ["armed", "armed"]
        await writer.execute("update diaries set pages = 1; update cups set sips = 1")
        await asyncio.gather(*tasks)
    assert recorder.restarts == []


async def test_a_hook_that_raises_harms_nothing(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    class Broken(Hooks):
        def connected(self, *, epoch: int) -> None:
            raise RuntimeError("no")

        rows_read = delivered = notified = mode_changed = connected  # type: ignore[assignment] -- broken

    async with Listener(engine, hooks=Broken()) as listener:
        Dispatcher.of(engine, NOTIFIED_ONLY)
        wait = begin_wait(engine, Cup, 1)
        await until_mode(engine, "armed", table="cups")
        assert listener.state.mode == "listening"
        await writer.execute("update cups set sips = 1")
        assert (await wait).sips == 1


async def test_a_cancelled_wait_is_not_read_again(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute("delete from cups where id = 2")
    stays = begin_wait(engine, Cup, 1)
    with pytest.raises(NotFoundError):
        await begin_wait(engine, Cup, 2)
    await until_mode(engine, "armed", table="cups")
    await writer.execute("insert into cups values (2, 0); update cups set sips = 1 where id = 1")
    assert (await stays).sips == 1
