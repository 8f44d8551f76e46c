"""Install triggers at every start of an application, and see what they look like.

    DATABASE_URL=postgresql+asyncpg://me@localhost/shop python examples/install_triggers.py

Safe to run from many processes at once; tables that are in order are not touched.
"""

import asyncio
import os

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal import install_triggers, trigger_status, watched


class Base(DeclarativeBase):
    pass


@watched()  # hints: who waits for a row is woken, nothing is stored
class Ticket(Base):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]


@watched(log=True, columns=["balance"])  # the log: streams that can be resumed
class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]
    last_seen: Mapped[str | None]  # changes of this one are not told


class Note(Base):  # not declared: carries no triggers
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)


async def main() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    for done in await install_triggers(engine, Base):
        print(f"{done.table}: {done.action}")
    for table in await trigger_status(engine, Base):
        print(f"{table.table}: {table.state}, {table.kind}")
    await engine.dispose()


asyncio.run(main())
