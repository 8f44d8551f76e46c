"""Writes to many-to-many relationships without loading them."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy import Delete, Executable, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import QueryableAttribute

from rowsignal.exceptions import NotFoundError
from rowsignal.orm.tables.associations import Association, Key

# The protocol counts parameters in 16 bits; asyncpg stops at 32,767
MAX_PARAMETERS = 32_000


async def m2m_add(
    session: AsyncSession,
    instance: object,
    rel_attr: QueryableAttribute[Any],
    *related: object,
    ignore_conflicts: bool = False,
) -> None:
    """Associate `related` with `instance`, by rows in the association table alone.

        await m2m_add(session, post, Post.tags, python, sql)

    Pending objects are flushed first; a related object named twice counts once. An object that is
    associated already raises SQLAlchemy's `IntegrityError` if a unique constraint forbids it; with
    `ignore_conflicts` it is skipped. Loaded collections are expired: load them again with
    `await session.refresh(post, ["tags"])`.

    Raises `TypeError` if the relationship is not many-to-many or an object is not of its class, and
    `ValueError` for an object that is not in the database. Commits nothing.
    """
    association = Association(rel_attr)
    owner, keys = await _keys(session, association, instance, related)
    if not keys:
        return
    statement = insert(association.table)
    if ignore_conflicts:
        statement = statement.on_conflict_do_nothing()
    await session.execute(statement, association.rows(owner, keys))
    association.expire(session, instance, keys)


async def m2m_remove(
    session: AsyncSession,
    instance: object,
    rel_attr: QueryableAttribute[Any],
    *related: object,
) -> None:
    """Dissociate `related` from `instance`, by rows in the association table alone.

    Objects that are not associated are skipped. Otherwise as `m2m_add`.
    """
    association = Association(rel_attr)
    owner, keys = await _keys(session, association, instance, related)
    size = MAX_PARAMETERS // (len(association.related_columns) + 1)
    for batch in _batches(keys, size):
        await session.execute(_deletion(association, owner, batch))
    association.expire(session, instance, keys)


async def m2m_set(
    session: AsyncSession,
    instance: object,
    rel_attr: QueryableAttribute[Any],
    *related: object,
) -> None:
    """Associate exactly `related` with `instance`.

    Only the difference is written: rows that stay keep their further columns. Concurrent calls for
    one owner run one after another: the owner's row is locked FOR NO KEY UPDATE until the
    transaction ends, so the last commit wins (in READ COMMITTED, PostgreSQL's default; a REPEATABLE
    READ transaction does not see changes after its first statement). It needs at most three
    statements, unless thousands of rows change.

    Raises `NotFoundError` if the owner's row is gone. Otherwise as `m2m_add`.
    """
    association = Association(rel_attr)
    owner, keys = await _keys(session, association, instance, related)
    await _lock(session, association, instance, owner)
    present = await _present(session, association, owner)
    gone, new = list(present.difference(keys)), [key for key in keys if key not in present]
    size = MAX_PARAMETERS // (2 * (len(association.columns) + 1))
    for leaving, coming in zip_longest(_batches(gone, size), _batches(new, size), fillvalue=()):
        await session.execute(_replacement(association, owner, leaving, coming))
    association.expire(session, instance, [*gone, *new])


async def _keys(
    session: AsyncSession,
    association: Association,
    instance: object,
    related: Sequence[object],
) -> tuple[Key, list[Key]]:
    association.check(session, instance, related)
    # A pending append to the same collection would otherwise be written a second time
    await session.flush()
    owner = await association.owner_key(session, instance)
    keys = [await association.related_key(session, other) for other in related]
    # Each once, in their order: a unique constraint would refuse the second.
    return owner, list(dict.fromkeys(keys))


async def _lock(
    session: AsyncSession, association: Association, instance: object, owner: Key
) -> None:
    query = select(*association.owner_sources).where(association.owned_row(owner))
    # NO KEY UPDATE: rows that reference the owner can be inserted meanwhile.
    if (await session.execute(query.with_for_update(key_share=True))).first() is None:
        raise NotFoundError(f"The row of {instance!r} is not in the database any more.")


async def _present(session: AsyncSession, association: Association, owner: Key) -> set[Key]:
    query = select(*association.related_columns).where(association.owned_by(owner))
    return {tuple(row) for row in await session.execute(query)}


def _replacement(
    association: Association, owner: Key, gone: Sequence[Key], new: Sequence[Key]
) -> Executable:
    if not new:
        return _deletion(association, owner, gone)
    insertion = insert(association.table).values(association.rows(owner, new))
    if not gone:
        return insertion
    # One statement, and so one round trip, for both.
    return insertion.add_cte(_deletion(association, owner, gone).cte("gone"))


def _deletion(association: Association, owner: Key, gone: Iterable[Key]) -> Delete:
    return delete(association.table).where(
        association.owned_by(owner), association.related_to(gone)
    )


def _batches(keys: Sequence[Key], size: int) -> list[Sequence[Key]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]
