"""What a type checker sees of waits, streams and triggers."""

from collections.abc import Awaitable, Mapping
from datetime import datetime
from typing import Any, Unpack, assert_type

from fastapi import APIRouter, FastAPI
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Mapped, mapped_column

from rowsignal import (
    Base,
    Change,
    ChangeHandlers,
    ChangeLog,
    ChangeStream,
    Listener,
    Operation,
    PruneReport,
    Reset,
    Retention,
    SchemaStatus,
    TableAction,
    TableStatus,
    TriggerOptions,
    install_script,
    install_triggers,
    prune,
    schema_status,
    trigger_status,
    uninstall_triggers,
    wait_for_row_change,
    watch,
    watched,
)
from rowsignal.sse import Grant, TableGrant, create_sse_router


@watched(log=True, columns=["status"])
class Order(Base):
    """A model whose class survives its decorator."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column()


class Line(Base):
    """Another model."""

    __tablename__ = "lines"

    id: Mapped[int] = mapped_column(primary_key=True)


async def wait(
    session: AsyncSession, sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine
) -> None:
    """Wait with whatever there is, and get the model back."""
    assert_type(await wait_for_row_change(session, Order, 42), Order)
    assert_type(await wait_for_row_change(sessions, Order, {"id": 42}, timeout=None), Order)
    order = await wait_for_row_change(
        engine, Order, (42,), columns=[Order.status, "id"], interval=1, timeout=0.5
    )
    assert_type(order.status, str)
    async with Listener(engine, listen_url="postgresql+asyncpg://primary/app") as listener:
        assert_type(listener.state.reason, str | None)


async def stream(engine: AsyncEngine, position: str | None) -> None:
    """Tell changes from gaps; one model's rows are objects of it."""
    async with watch(engine, Order, operations=["insert"], after=position, rows=True) as changes:
        assert_type(changes, ChangeStream[Order])
        async for change in changes:
            if isinstance(change, Reset):
                assert_type(change.reason, str)
                continue
            assert_type(change, Change[Order])
            assert_type(change.operation, Operation)
            assert_type(change.changed, tuple[str, ...] | None)
            assert_type(change.captured_at, datetime | None)
            assert_type(change.row, Mapping[str, Any] | None)
            assert_type(change.instance, Order | None)
            if change.instance is not None:
                assert_type(change.instance.status, str)
        assert_type(changes.position, str | None)
    async with ChangeLog(engine) as log:
        assert_type(await log.position(), str)
    assert_type(await prune(engine, Retention(max_age=60)), PruneReport)


async def stream_several(engine: AsyncEngine, audit: Table) -> None:
    """Of several tables, or one without a class, a row may be anything."""
    async with watch(engine, Order, Line) as changes, watch(engine, audit) as entries:
        assert_type(changes, ChangeStream[Any])
        assert_type(entries, ChangeStream[Any])
        async for change in changes:
            if not isinstance(change, Reset):
                keep(change)


def keep(change: Change) -> None:
    """Take a change of any table: the class need not be named."""
    assert_type(change, Change[Any])
    assert_type(change.instance, Any | None)


def is_paid(change: Change[Order]) -> bool:
    """Say which changes of orders are wanted."""
    return change.instance is not None and change.instance.status == "paid"


def paid(engine: AsyncEngine) -> ChangeStream[Order]:
    """Narrow by objects."""
    return watch(engine, Order, rows=True, predicate=is_paid)


changes = ChangeHandlers(create_async_engine("postgresql+asyncpg://localhost/app"))


@changes.on(Order)
async def ship(session: AsyncSession, change: Change[Order]) -> None:
    """Handle a change of an order."""
    assert_type(change.instance, Order | None)


async def install(engine: AsyncEngine, session: AsyncSession) -> None:
    """Await what is installed through an async bind."""
    assert_type(await install_triggers(engine, Base, log=True), list[TableAction])
    installing: Awaitable[list[TableAction]] = install_triggers(session, Order)
    assert_type(await installing, list[TableAction])
    assert_type(await uninstall_triggers(engine, [Order, "sales.items"]), list[TableAction])
    assert_type(await trigger_status(engine), list[TableStatus])
    assert_type(await schema_status(engine), SchemaStatus)


async def install_with(engine: AsyncEngine, **options: Unpack[TriggerOptions]) -> None:
    """Pass options on, and name columns either way."""
    await install_triggers(engine, Order, lock_timeout=1, **options)
    await install_triggers(engine, Order, columns=[Order.status], log=True, row_values=True)
    await install_triggers(engine, Order, exclude=["note", Order.__table__.c.id], always=True)
    await trigger_status(engine, Order, log=True, filter_columns=("status",), notify=False)
    assert_type(watched(log=True)(Order), type[Order])


def install_now(engine: Engine, connection: Connection) -> None:
    """Have it at once through any other."""
    assert_type(install_triggers(engine, Base.metadata), list[TableAction])
    assert_type(uninstall_triggers(connection, Order), list[TableAction])
    assert_type(trigger_status(connection, Base), list[TableStatus])
    assert_type(schema_status(engine), SchemaStatus)
    assert_type(install_script(Base, log=True), str)


async def grant_of(token: str) -> Grant:
    """Admit to one table."""
    return Grant(tables={"public.orders": TableGrant(where=("id.gt.7",))}, principal=token)


def serve(app: FastAPI, engine: AsyncEngine) -> None:
    """Add streams to an application."""
    router = create_sse_router(engine, {Order: ["id", "status"]}, authorize=grant_of)
    assert_type(router, APIRouter)
    app.include_router(router)
