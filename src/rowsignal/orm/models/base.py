"""A declarative base for models: async attributes, constraint names, queries."""

from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, declarative_base

from rowsignal.orm.models.queries import QueryMixin, add_queries

# Names that a migration can rely on; changing one here would make every migration rename
NAMING_CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def get_base(
    *, cls: type[Any] = AsyncAttrs, metadata: MetaData | None = None, **options: Any
) -> Any:
    """Create another declarative base, with the naming convention and the queries of `Base`.

    `cls` is the parent class of the base; `options` go to SQLAlchemy's `declarative_base`.
    """
    metadata = MetaData() if metadata is None else metadata
    metadata.naming_convention = NAMING_CONVENTION
    base = declarative_base(cls=cls, metadata=metadata, **options)
    add_queries(base)
    return base


class Base(QueryMixin, AsyncAttrs, DeclarativeBase):
    """Base of models: `awaitable_attrs`, named constraints, `get_one` and similar queries.

    It is optional: `QueryMixin` and `NAMING_CONVENTION` work with any base.
    """

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
