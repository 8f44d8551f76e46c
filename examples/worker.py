"""A worker that waits for a decision somebody else makes, with a deadline.

    DATABASE_URL=postgresql+asyncpg://me@localhost/shop python examples/worker.py

The wait holds no connection of the pool, and wakes about a millisecond after the commit.
"""

import asyncio
import os

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal import WaitTimeoutError, install_triggers, wait_for_row_change


class Base(DeclarativeBase):
    pass


class Transfer(Base):
    __tablename__ = "transfers"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    decision: Mapped[str] = mapped_column(default="pending")


async def execute(session: AsyncSession, transfer: Transfer) -> None:
    """Execute a transfer as soon as it is approved; give up after some seconds."""
    try:
        transfer = await wait_for_row_change(
            session, Transfer, transfer.id, columns=[Transfer.decision], timeout=5
        )
    except WaitTimeoutError:
        print(f"transfer {transfer.id}: nobody decided")
    else:
        print(f"transfer {transfer.id}: {transfer.decision}")


async def decide(sessions: async_sessionmaker[AsyncSession], number: int, decision: str) -> None:
    """Stand in for a person at another desk."""
    await asyncio.sleep(0.2)
    async with sessions.begin() as session:
        transfer = await session.get_one(Transfer, number, with_for_update=True)
        transfer.decision = decision


async def main() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions() as session:
        transfer = Transfer(amount=100)
        session.add(transfer)
        await session.commit()
        await asyncio.gather(execute(session, transfer), decide(sessions, transfer.id, "approved"))
    await engine.dispose()


asyncio.run(main())
