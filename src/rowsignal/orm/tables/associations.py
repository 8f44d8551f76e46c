"""The association table of a many-to-many relationship."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, inspect, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    QueryableAttribute,
    RelationshipProperty,
    configure_mappers,
)

Key = tuple[Any, ...]


class Association:
    """The association table of a relationship, with the columns of both sides.

    A key is a tuple of values: of the owner's columns, or of the related object's, in the order
    of `owner_columns` and `related_columns`.
    """

    def __init__(self, attribute: QueryableAttribute[Any]) -> None:
        # Relationships that are named by text have no table before.
        configure_mappers()
        relationship = getattr(attribute, "property", None)
        if not isinstance(relationship, RelationshipProperty) or not isinstance(
            relationship.secondary, Table
        ):
            raise TypeError(
                f"{attribute} is not a many-to-many relationship: name an attribute made by "
                "relationship(secondary=...) with an association table."
            )
        self.relationship = relationship
        self.table = relationship.secondary
        self.owner_sources, self.owner_columns = _unzip(relationship.synchronize_pairs)
        self.related_sources, self.related_columns = _unzip(
            relationship.secondary_synchronize_pairs or []
        )

    @property
    def columns(self) -> list[Any]:
        """The columns of both sides."""
        return [*self.owner_columns, *self.related_columns]

    def check(self, session: AsyncSession, instance: object, related: Iterable[object]) -> None:
        """Raise `TypeError` or `ValueError` for objects that cannot be associated."""
        _check(session, instance, self.relationship.parent)
        for other in related:
            _check(session, other, self.relationship.mapper)

    async def owner_key(self, session: AsyncSession, instance: object) -> Key:
        """Return the values of the owner's columns in the association table for an instance."""
        return await _values(session, instance, self.owner_sources)

    async def related_key(self, session: AsyncSession, instance: object) -> Key:
        """Return the values of the other columns for a related instance."""
        return await _values(session, instance, self.related_sources)

    def rows(self, owner: Key, keys: Iterable[Key]) -> list[dict[str, Any]]:
        """Return the association table's rows, by the keys of its columns."""
        names = [column.key for column in self.columns]
        return [dict(zip(names, (*owner, *key), strict=True)) for key in keys]

    def owned_row(self, owner: Key) -> ColumnElement[bool]:
        """Return the condition that finds the owner's own row."""
        return _equal(self.owner_sources, owner)

    def owned_by(self, owner: Key) -> ColumnElement[bool]:
        """Return the condition that finds the owner's rows in the association table."""
        return _equal(self.owner_columns, owner)

    def related_to(self, keys: Iterable[Key]) -> ColumnElement[bool]:
        """Return the condition that finds the rows of some related objects."""
        if len(self.related_columns) == 1:
            (column,) = self.related_columns
            return and_(column.in_([key[0] for key in keys]))
        return tuple_(*self.related_columns).in_(list(keys))

    def expire(self, session: AsyncSession, instance: object, keys: Sequence[Key]) -> None:
        """Expire loaded collections of this relationship that are stale, on both sides."""
        if not keys:
            return
        _expire(session, instance, self.relationship.key)
        reverse = self.relationship.back_populates
        if reverse is None:
            return
        touched, names = set(keys), _names(self.relationship.mapper, self.related_sources)
        # Only loaded objects can be stale, so no query is needed.
        for other in session.identity_map.values():
            if isinstance(other, self.relationship.mapper.class_):
                loaded = inspect(other).dict
                if tuple(loaded.get(name) for name in names) in touched:
                    _expire(session, other, reverse)


def _unzip(pairs: Iterable[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [source for source, _ in pairs], [column for _, column in pairs]


def _equal(columns: Sequence[Any], key: Key) -> ColumnElement[bool]:
    return and_(*(column == value for column, value in zip(columns, key, strict=True)))


def _check(session: AsyncSession, instance: object, mapper: Mapper[Any]) -> None:
    state = inspect(instance, raiseerr=False)
    if not isinstance(state, InstanceState) or not state.mapper.isa(mapper):
        raise TypeError(f"{instance!r} is not a {mapper.class_.__name__}.")
    if state.pending and state.session is session.sync_session:
        return
    if state.key is None or state.deleted or state.was_deleted:
        raise ValueError(
            f"{instance!r} has no row to associate: add it to this session first, or commit it."
        )


async def _values(session: AsyncSession, instance: object, columns: Sequence[Any]) -> Key:
    state = inspect(instance)
    names = _names(state.mapper, columns)
    missing = [name for name in names if name not in state.dict]
    known = dict(zip(_names(state.mapper, state.mapper.primary_key), state.identity, strict=True))
    if not known.keys() >= set(missing):
        # An expired attribute would be loaded on access, which asyncio code cannot do
        await session.refresh(instance, missing)
    return tuple(state.dict[name] if name in state.dict else known[name] for name in names)


def _names(mapper: Mapper[Any], columns: Iterable[Any]) -> list[str]:
    return [mapper.get_property_by_column(column).key for column in columns]


def _expire(session: AsyncSession, instance: object, name: str) -> None:
    if instance in session and name in inspect(instance).dict:
        session.expire(instance, [name])
