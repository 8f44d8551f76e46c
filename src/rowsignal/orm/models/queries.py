"""Queries that find or create one row, as functions and as methods of models."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar, overload

from sqlalchemy import Select, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.orm.sqlstates import EXCLUSION_VIOLATION, UNIQUE_VIOLATION, sqlstate

M = TypeVar("M")

# A concurrent row can be deleted before it is read; three times in a row is not chance
ATTEMPTS = 3
CONFLICTS = frozenset({UNIQUE_VIOLATION, EXCLUSION_VIOLATION, None})


async def get_by_pk(pk: Any, *, session: AsyncSession, model: type[M]) -> M | None:
    """Return the row with this primary key, or None.

    `pk` is a scalar, a tuple in primary-key order, or a dictionary by attribute name. An
    instance that the session holds already is returned without a query.
    """
    return await session.get(model, pk)


async def get_one(session: AsyncSession, model: type[M], **attrs: Any) -> M:
    """Return the one row with these attributes.

    Raises SQLAlchemy's `NoResultFound` and `MultipleResultsFound`, and `ValueError` for an
    unknown attribute.
    """
    found: M = (await session.execute(_matching(model, attrs))).unique().scalar_one()
    return found


async def get_or_create(session: AsyncSession, model: type[M], **attrs: Any) -> tuple[M, bool]:
    """Return the row with these attributes, and whether it was created.

    Of concurrent callers one creates the row and the others find it, provided that a unique
    constraint covers the attributes. An insert that loses the race is rolled back alone: earlier
    flushed changes of the session stay. Nothing is committed.
    """
    query = _matching(model, attrs)
    return await _find_or_create(session, query, model, attrs)


async def update_or_create(
    session: AsyncSession,
    model: type[M],
    defaults: Mapping[str, Any] | None = None,
    create_defaults: Mapping[str, Any] | None = None,
    **filter_attrs: Any,
) -> tuple[M, bool]:
    """Set `defaults` on the row with these attributes, or create it; return whether it was created.

    An existing row is locked until the transaction ends and read again, so that concurrent updates
    do not overwrite each other. `create_defaults`, even if empty, replaces `defaults` for a new
    row. Concurrent calls behave as in `get_or_create`.
    """
    defaults = dict(defaults or {})
    created_with = {
        **filter_attrs,
        **(defaults if create_defaults is None else create_defaults),
    }
    _check_attributes(model, {**defaults, **created_with})
    # populate_existing would throw away what is not flushed yet
    await session.flush()
    query = (
        _matching(model, filter_attrs)
        .with_for_update(of=model)
        .execution_options(populate_existing=True)
    )
    instance, created = await _find_or_create(session, query, model, created_with)
    if not created:
        for name, value in defaults.items():
            setattr(instance, name, value)
    return instance, created


class QueryMixin:
    """Gives a declarative base the queries of this module as class methods."""

    @overload
    @classmethod
    async def get_by_pk(cls, session: AsyncSession, pk: Any) -> Self | None: ...

    @overload
    @classmethod
    async def get_by_pk(cls, pk: Any, *, session: AsyncSession) -> Self | None: ...

    @classmethod
    async def get_by_pk(cls, *arguments: Any, **named: Any) -> Self | None:
        """Return the row with this primary key, or None: see `get_by_pk`.

        Both `User.get_by_pk(session, 42)` and `User.get_by_pk(42, session=session)` work.
        """
        session, pk = _session_and_pk(*arguments, **named)
        return await get_by_pk(pk, session=session, model=cls)

    @classmethod
    async def get_one(cls, session: AsyncSession, **attrs: Any) -> Self:
        """Return the one row with these attributes: see `get_one`."""
        return await get_one(session, cls, **attrs)

    @classmethod
    async def get_or_create(cls, session: AsyncSession, **attrs: Any) -> tuple[Self, bool]:
        """Return the row with these attributes, created if needed: see `get_or_create`."""
        return await get_or_create(session, cls, **attrs)

    @classmethod
    async def update_or_create(
        cls,
        session: AsyncSession,
        defaults: Mapping[str, Any] | None = None,
        create_defaults: Mapping[str, Any] | None = None,
        **filter_attrs: Any,
    ) -> tuple[Self, bool]:
        """Update the row with these attributes, or create it: see `update_or_create`."""
        return await update_or_create(session, cls, defaults, create_defaults, **filter_attrs)


def add_queries(base: type[Any]) -> None:
    """Add the queries to a declarative base, except names that it already has."""
    for name in ("get_by_pk", "get_one", "get_or_create", "update_or_create"):
        if not hasattr(base, name):
            setattr(base, name, vars(QueryMixin)[name])


def _session_and_pk(*arguments: Any, **named: Any) -> tuple[AsyncSession, Any]:
    names = ("session", "pk") if len(arguments) == 2 or "pk" in named else ("pk",)
    given = {**dict(zip(names, arguments, strict=False)), **named}
    if given.keys() != {"session", "pk"} or len(given) != len(arguments) + len(named):
        raise TypeError(
            "get_by_pk needs a session and a key: `User.get_by_pk(session, 42)` or "
            "`User.get_by_pk(42, session=session)`."
        )
    if isinstance(given["pk"], AsyncSession):
        return given["pk"], given["session"]
    return given["session"], given["pk"]


async def _find_or_create(
    session: AsyncSession, query: Select[Any], model: type[M], attrs: Mapping[str, Any]
) -> tuple[M, bool]:
    for attempt in range(1, ATTEMPTS + 1):
        found: M | None = (await session.execute(query)).unique().scalar_one_or_none()
        if found is not None:
            return found, False
        try:
            return await _create(session, model, attrs), True
        except IntegrityError as error:
            if attempt == ATTEMPTS or not _is_conflict(error):
                raise
    raise AssertionError("unreachable")  # pragma: no cover -- the last attempt raises


async def _create(session: AsyncSession, model: type[M], attrs: Mapping[str, Any]) -> M:
    """Insert within a savepoint, so that a failure undoes only this row."""
    async with session.begin_nested():
        instance = model(**attrs)
        session.add(instance)
        await session.flush()
    return instance


def _is_conflict(error: IntegrityError) -> bool:
    """Tell whether a unique conflict caused an error; without SQLSTATE assume that it did."""
    return sqlstate(error) in CONFLICTS


def _matching(model: type[M], attrs: Mapping[str, Any]) -> Select[Any]:
    _check_attributes(model, attrs)
    return select(model).filter_by(**attrs)


def _check_attributes(model: type[Any], attrs: Mapping[str, Any]) -> None:
    mapper = inspect(model)
    for name in attrs:
        is_property = isinstance(getattr(model, name, None), property)
        if name not in mapper.all_orm_descriptors and not is_property:
            known = ", ".join(mapper.attrs.keys())
            raise ValueError(f"{model.__name__} has no attribute {name!r}; it has {known}.")
