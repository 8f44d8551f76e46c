"""Follow a logged table, stop, and continue later exactly where it was.

    DATABASE_URL=postgresql+asyncpg://me@localhost/shop python examples/resume.py

What happens in between is not lost: it is in the change log. A real program keeps the position
where it keeps what it made of the changes, in one transaction with it.
"""

import asyncio
import os

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal import Reset, install_triggers, watch


class Base(DeclarativeBase):
    pass


class Parcel(Base):
    __tablename__ = "parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[str]


async def move(engine: AsyncEngine, place: str) -> None:
    """Move all parcels."""
    async with engine.begin() as connection:
        await connection.execute(update(Parcel).values(place=place))


async def follow(engine: AsyncEngine, position: str | None, count: int) -> str | None:
    """Print some changes, and return the position after them."""
    async with watch(engine, Parcel, after=position, rows=True) as changes:
        if position is None:
            await move(engine, "depot")
        async for change in changes:
            if isinstance(change, Reset):
                print(f"start again from the table: {change.reason}")
            elif change.row is not None:
                print(f"parcel {change.row['id']} is at the {change.row['place']}")
                count -= 1
            if count == 0:
                break
        return changes.position


async def main() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(Parcel.__table__.insert(), [{"id": 1, "place": "shop"}])
    await install_triggers(engine, Parcel, log=True)

    position = await follow(engine, None, count=1)
    await move(engine, "door")  # while nobody looks
    await follow(engine, position, count=1)
    await engine.dispose()


asyncio.run(main())
