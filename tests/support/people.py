"""A table whose second row of the same name fails at COMMIT and not before."""

from sqlalchemy import UniqueConstraint, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    __table_args__ = (UniqueConstraint("name", deferrable=True, initially="deferred"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def names(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(select(Person.name).order_by(Person.id)))
