"""What a handler gets, and that its effect and its position are one."""

import asyncio
import enum
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from rowsignal.changes import Change, Operation
from rowsignal.exceptions import TriggerInstallError
from rowsignal.handlers import (
    ChangeHandlers,
    Retry,
    consumer_lag,
    dead_letters,
    drop_dead_letters,
    reset_consumer,
    retry_dead_letters,
    skip_failing,
)
from rowsignal.triggers import install_triggers
from support.handlers import (
    AT_ONCE,
    Base,
    Effect,
    Task,
    effects,
    record,
    recording,
    until_handled,
    until_lag,
    write,
)

pytestmark = pytest.mark.usefixtures("tables")


async def test_each_change_is_handled_once_across_restarts_of_the_worker(
    engine: AsyncEngine,
) -> None:
    await write(engine, 1, 2)
    async with recording(engine):
        await until_handled(engine, 2)
    await write(engine, 3)
    async with recording(engine):
        await until_handled(engine, 3)
        await write(engine, 4)
        await until_handled(engine, 4)
    assert await effects(engine) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    (lag,) = await consumer_lag(engine)
    assert (lag.handled, lag.lag_changes, lag.holder) == (4, 0, None)


async def test_a_new_consumer_begins_now(engine: AsyncEngine) -> None:
    await write(engine, 1)
    async with recording(engine, start="now"):
        await write(engine, 2)
        await until_handled(engine, 1)
    assert await effects(engine) == [(2, 0)]


async def test_operations_and_columns_narrow_what_is_handled(engine: AsyncEngine) -> None:
    async with recording(engine, operations={"update"}, columns=[Task.step]):
        await write(engine, 1)
        async with engine.begin() as connection:
            await connection.execute(sa.update(Task).values(note="x"))
        async with engine.begin() as connection:
            await connection.execute(sa.update(Task).values(step=7))
        await until_handled(engine, 1)
    assert await effects(engine) == [(1, 7)]


async def test_a_batch_is_one_call_and_one_transaction(engine: AsyncEngine) -> None:
    sizes: list[int] = []

    async def handler(session: AsyncSession, changes: list[Change]) -> None:
        sizes.append(len(changes))
        for change in changes:
            await record(session, change)

    await write(engine, *range(25))
    async with recording(engine, handler=handler, batch=10):
        await until_handled(engine, 25)
    assert sizes == [10, 10, 5]


async def test_what_the_handler_commits_is_committed_with_its_position(
    engine: AsyncEngine,
) -> None:
    """A commit inside the handler does not take the effect apart from the position."""
    has_failed = asyncio.Event()

    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.commit()
        if not has_failed.is_set():
            has_failed.set()
            raise ValueError("after the commit")

    await write(engine, 1)
    async with recording(engine, handler=handler):
        await until_handled(engine, 1)
    assert await effects(engine) == [(1, 0)]


async def test_a_handler_that_rolls_back_has_failed(engine: AsyncEngine) -> None:
    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        await session.rollback()

    await write(engine, 1)
    async with recording(engine, handler=handler):
        lag = await until_lag(engine, lambda lag: lag.dead_letters == 1)
    assert await effects(engine) == []
    assert lag.lag_changes == 0


async def test_an_error_that_the_handler_hides_is_an_error(engine: AsyncEngine) -> None:
    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        with pytest.raises(sa.exc.DBAPIError):
            await session.execute(sa.text("select 1/0"))

    await write(engine, 1)
    async with recording(engine, handler=handler):
        await until_lag(engine, lambda lag: lag.dead_letters == 1)
    assert await effects(engine) == []


async def test_a_constraint_that_is_checked_at_the_commit_fails_the_change(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            sa.text("alter table effects add unique (task_id) deferrable initially deferred")
        )

    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        if change.key == {"id": 2}:
            await record(session, change)

    await write(engine, 1, 2, 3)
    async with recording(engine, handler=handler):
        await until_handled(engine, 2)
        await until_lag(engine, lambda lag: lag.dead_letters == 1)
    assert await effects(engine) == [(1, 0), (3, 0)]
    (letter,) = await dead_letters(engine)
    assert "UniqueViolation" in letter.error or "IntegrityError" in letter.error


async def test_a_change_that_fails_too_often_is_a_dead_letter_and_can_be_retried(
    engine: AsyncEngine,
) -> None:
    is_mended = asyncio.Event()

    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        if change.key == {"id": 2} and not is_mended.is_set():
            raise RuntimeError("no such address")

    await write(engine, 1, 2, 3)
    async with recording(engine, handler=handler, lease=0.6):
        await until_handled(engine, 2)
        (letter,) = await dead_letters(engine, "recorder")
        assert (letter.attempts, letter.error) == (3, "RuntimeError: no such address")
        assert letter.change.key == {"id": 2}
        assert letter.change.row == {"id": 2, "step": 0, "note": ""}
        assert letter.change.operation is Operation.INSERT
        assert await retry_dead_letters(engine, "recorder") == 1
        async with asyncio.timeout(30):
            while (await dead_letters(engine))[0].attempts < 4:
                await asyncio.sleep(0.02)
        is_mended.set()
        assert await retry_dead_letters(engine, "recorder", [letter.id]) == 1
        await until_handled(engine, 3)
        assert await dead_letters(engine) == []
    assert await effects(engine) == [(1, 0), (3, 0), (2, 0)]


async def test_a_batch_that_fails_is_tried_change_by_change(engine: AsyncEngine) -> None:
    async def handler(session: AsyncSession, changes: list[Change]) -> None:
        for change in changes:
            await record(session, change)
        await session.flush()
        if any(change.key == {"id": 7} for change in changes):
            raise RuntimeError("seven")

    await write(engine, *range(12))
    async with recording(engine, handler=handler, batch=20):
        await until_handled(engine, 11)
        await until_lag(engine, lambda lag: lag.dead_letters == 1)
    assert await effects(engine) == [(n, 0) for n in range(12) if n != 7]


async def test_handlers_do_not_stop_each_other(engine: AsyncEngine) -> None:
    changes = ChangeHandlers(engine)
    never = Retry(delay=3600.0, max_delay=3600.0)

    @changes.on(Task, start="beginning", retry=never)
    async def failing(session: AsyncSession, change: Change) -> None:
        raise RuntimeError("always")

    @changes.on(Task, start="beginning")
    async def working(session: AsyncSession, change: Change) -> None:
        await record(session, change)

    await write(engine, *range(5))
    async with changes:
        await until_handled(engine, 5)
        lag = await until_lag(engine, lambda lag: lag.attempts == 1)
        assert (lag.consumer, lag.error, lag.lag_changes) == ("failing", "RuntimeError: always", 5)


async def test_attempts_are_counted_across_restarts(engine: AsyncEngine) -> None:
    never = Retry(attempts=3, delay=3600.0, max_delay=3600.0)

    async def handler(session: AsyncSession, change: Change) -> None:
        raise RuntimeError("always")

    await write(engine, 1)
    for count in (1, 2):
        async with recording(engine, handler=handler, retry=never):
            await until_lag(engine, lambda lag, count=count: lag.attempts == count)
    async with recording(engine, handler=handler, retry=never):
        await until_lag(engine, lambda lag: lag.dead_letters == 1)


async def test_a_handler_that_takes_too_long_has_failed(engine: AsyncEngine) -> None:
    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        await asyncio.Event().wait()

    await write(engine, 1)
    impatient = Retry(attempts=2, delay=0.0, timeout=0.1)
    async with recording(engine, handler=handler, retry=impatient):
        await until_lag(engine, lambda lag: lag.dead_letters == 1)
    (letter,) = await dead_letters(engine)
    assert letter.error.startswith("TimeoutError")
    assert await effects(engine) == []


async def test_a_failing_change_can_be_skipped_and_its_letter_dropped(
    engine: AsyncEngine,
) -> None:
    async def handler(session: AsyncSession, change: Change) -> None:
        if change.key == {"id": 1}:
            raise RuntimeError("one")
        await record(session, change)

    await write(engine, 1, 2)
    never = Retry(delay=3600.0, max_delay=3600.0)
    async with recording(engine, handler=handler, retry=never, lease=0.6):
        await until_lag(engine, lambda lag: lag.attempts == 1)
        assert await skip_failing(engine, "recorder") == 1
        await until_handled(engine, 1)
    assert await effects(engine) == [(2, 0)]
    (letter,) = await dead_letters(engine)
    assert (letter.change.key, letter.error) == ({"id": 1}, "RuntimeError: one")
    assert await drop_dead_letters(engine, "recorder") == 1
    assert await dead_letters(engine) == []


async def test_a_consumer_is_reset_while_it_is_at_work(engine: AsyncEngine) -> None:
    await write(engine, 1, 2)
    async with recording(engine, lease=0.6):
        await until_handled(engine, 2)
        await reset_consumer(engine, "recorder", "start")
        await until_handled(engine, 4)
    await write(engine, 3)
    await reset_consumer(engine, "recorder", "now")
    await write(engine, 4)
    async with recording(engine):
        await until_handled(engine, 5)
    assert [task for task, _ in await effects(engine)] == [1, 2, 1, 2, 4]


class Kind(enum.Enum):
    NEW = "new"
    OLD = "old"


class Sample(Base):
    """A row of many types, whose names in the database are others."""

    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    price: Mapped[Decimal] = mapped_column("the price", sa.Numeric(10, 2))
    weight: Mapped[float]
    kind: Mapped[Kind]
    token: Mapped[UUID]
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    day: Mapped[date]
    image: Mapped[bytes]
    tags: Mapped[list[str]] = mapped_column(ARRAY(sa.Text))
    grid: Mapped[list[list[int]]] = mapped_column(ARRAY(sa.Integer, dimensions=2))
    details: Mapped[dict[str, object]] = mapped_column(JSONB)
    nothing: Mapped[str | None]


async def test_rows_have_the_values_that_the_orm_would_load(engine: AsyncEngine) -> None:
    seen: list[Any] = []
    changes = ChangeHandlers(engine)

    @changes.on(Sample)
    async def handler(session: AsyncSession, change: Change) -> None:
        loaded = await session.get(Sample, change.row["id"] if change.row else 0)
        assert loaded is not None
        columns = [attribute.key for attribute in sa.inspect(Sample).column_attrs]
        values = {name: getattr(loaded, name) for name in columns}
        seen.append((change.row, values))

    await install_triggers(engine, Sample, log=True, row_values=True)
    sample = Sample(
        id=2**40,
        price=Decimal("9.90"),
        weight=0.1,
        kind=Kind.OLD,
        token=uuid4(),
        at=datetime(2026, 11, 30, 12, 30, 15, 123456, UTC),
        day=date(2026, 11, 30),
        image=b"\x00\xff",
        tags=["a,b", '"c"', "\\"],
        grid=[[1, 2], [3, 4]],
        details={"a": [1, 1.5, None, {"b": "\u00e4"}]},
    )
    async with changes, AsyncSession(engine) as session:
        session.add(sample)
        await session.commit()
        async with asyncio.timeout(30):
            while not seen:
                await asyncio.sleep(0.02)
    ((row, values),) = seen
    assert row == values
    assert all(isinstance(values[name], type(value)) for name, value in row.items())


async def test_a_table_without_a_log_is_refused_with_the_way_out(engine: AsyncEngine) -> None:
    await install_triggers(engine, Effect)
    changes = ChangeHandlers(engine)
    changes.on(Effect, name="x")(record)
    with pytest.raises(TriggerInstallError, match=r"no change log.*log=True"):
        async with changes:
            pass


async def test_partitions_are_multiplied_without_losing_their_place(engine: AsyncEngine) -> None:
    async with recording(engine, partitions=2):
        await write(engine, *range(20))
        await until_handled(engine, 20)
    await write(engine, *range(20, 40))
    async with recording(engine, partitions=6):
        await until_handled(engine, 40)
    assert sorted(await effects(engine)) == [(n, 0) for n in range(40)]
    with pytest.raises(ValueError, match="has 6 partitions in the database"):
        async with recording(engine, partitions=4):
            pass


async def test_changes_of_a_row_stay_in_order_over_partitions(engine: AsyncEngine) -> None:
    await write(engine, *range(10))
    async with recording(engine, partitions=4, retry=AT_ONCE):
        for step in range(1, 11):
            async with engine.begin() as connection:
                await connection.execute(sa.update(Task).values(step=step))
        await until_handled(engine, 110)
    for task in range(10):
        assert [step for key, step in await effects(engine) if key == task] == list(range(11))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partitions": 0}, "partitions is 1 to"),
        ({"batch": 0}, "batch is a number of changes"),
        ({"name": "x" * 101}, "is no name of a consumer"),
        ({"start": "yesterday"}, 'start is "now" or "beginning"'),
        ({"operations": ["upsert"]}, "upsert"),
    ],
)
async def test_bad_input_is_refused_at_once(
    engine: AsyncEngine, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ChangeHandlers(engine).on(Task, **options)(record)


async def test_names_are_given_once(engine: AsyncEngine) -> None:
    changes = ChangeHandlers(engine)
    changes.on(Task, name="x")(record)
    with pytest.raises(ValueError, match=r"consumer 'x' already.*name="):
        changes.on(Task, name="x")(record)
    with pytest.raises(ValueError, match="No handler is registered"):
        async with ChangeHandlers(engine):
            pass
