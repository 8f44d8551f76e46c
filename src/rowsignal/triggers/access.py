"""Rights of roles: grant, revoke, and the comparison with the rights that are needed."""

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from rowsignal.exceptions import GrantError
from rowsignal.identifiers import literal, qualify, quote
from rowsignal.postgres import schema
from rowsignal.postgres.binds import AsyncBind, SyncBind, SyncConnection, execute, run_on
from rowsignal.postgres.errors import message, sqlstate
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import read_facts
from rowsignal.triggers.settings import Target, targets_of

Need = Literal["wait", "watch", "serve"]
NEEDS: tuple[Need, ...] = ("wait", "watch", "serve")  # each includes those before it

REFUSALS = {"42501", "42704", "42P01", "3F000"}  # no right to, no such role, table, schema


@dataclass(frozen=True, slots=True)
class MissingRight:
    """A right that a role lacks; `need` is the purpose, `fix` the statement that grants it."""

    need: Need
    right: str
    fix: str


@overload
def grant(
    bind: AsyncBind,
    role: str,
    *,
    wait: bool = ...,
    watch: bool = ...,
    serve: bool = ...,
    work: bool = ...,
    tables: Any = ...,
) -> Awaitable[None]: ...
@overload
def grant(
    bind: SyncBind,
    role: str,
    *,
    wait: bool = ...,
    watch: bool = ...,
    serve: bool = ...,
    work: bool = ...,
    tables: Any = ...,
) -> None: ...
def grant(
    bind: AsyncBind | SyncBind,
    role: str,
    *,
    wait: bool = False,
    watch: bool = False,
    serve: bool = False,
    work: bool = False,
    tables: Any = (),
) -> Awaitable[None] | None:
    """Give a role the rights to wait for rows, to watch, to run the service or handlers.

    `wait`: to use schema `rowsignal`. `watch`: to read the change log as well, that is the keys,
    and the values where they are logged, of all logged tables. `serve`: to prune the log as well.
    `work`: to watch, and to keep the positions of `ChangeHandlers`. Each with SELECT on `tables`,
    which are what `install_triggers` takes. Writing to a captured table needs no grant. To be
    awaited for an async bind; the binds are those of `install_triggers`, and the current role must
    own the schema and be allowed to grant on the tables. `GrantError` says which right could not
    be given.
    """
    if not (wait or watch or serve or work):
        raise ValueError("Nothing to grant: pass wait=True, watch=True, serve=True or work=True.")
    need: Need = "serve" if serve else "watch" if watch or work else "wait"
    targets = targets_of(tables)

    def give(connection: SyncConnection) -> None:
        with _explained(connection):
            schema.apply(connection)
            execute(connection, _call("grant_v1", role, need != "wait", need == "serve", work))
            for statement in _table_rights("GRANT", targets, f"TO {quote(role)}"):
                execute(connection, statement)
            if isinstance(connection, Connection):
                _check(connection, role, need, targets)

    return run_on(bind, give)


@overload
def revoke(bind: AsyncBind, role: str, *, tables: Any = ...) -> Awaitable[None]: ...
@overload
def revoke(bind: SyncBind, role: str, *, tables: Any = ...) -> None: ...
def revoke(bind: AsyncBind | SyncBind, role: str, *, tables: Any = ()) -> Awaitable[None] | None:
    """Revoke the rights that `grant` gave to a role: on the log, and SELECT on `tables`.

    The rights of every role (to write to captured tables, to wait for readable rows) stay.
    """
    targets = targets_of(tables)

    def work(connection: SyncConnection) -> None:
        with _explained(connection):
            schema.apply(connection)
            execute(connection, _call("revoke_v1", role))
            for statement in _table_rights("REVOKE", targets, f"FROM {quote(role)}"):
                if "SCHEMA" not in statement:  # other tables of the schema may be in use
                    execute(connection, statement)

    return run_on(bind, work)


def missing_rights(connection: Connection, role: str, tables: Sequence[int]) -> list[MissingRight]:
    """Return the rights that a role lacks to serve tables (oids), in the order of need.

    Raises `GrantError` if there is no such role.
    """
    if connection.execute(text(query("role")), {"role": role}).one_or_none() is None:
        raise GrantError(f"There is no role {role!r}: CREATE ROLE {quote(role)} LOGIN makes it.")
    asked = {"role": role, "tables": list(map(str, tables))}
    rows = connection.execute(text(query("role_lacks")), asked)
    return [MissingRight(row.need, row.what, row.fix) for row in rows]


def _check(connection: Connection, role: str, need: Need, targets: Sequence[Target]) -> None:
    """Raise if a right was not given: GRANT only warns if the role may not grant."""
    facts = read_facts(connection, [target.name for target in targets])
    oids = [table.oid for table in facts if table.oid is not None]
    wanted = NEEDS[: NEEDS.index(need) + 1]
    for lack in missing_rights(connection, role, oids):
        if lack.need in wanted:
            raise GrantError(
                f"Role {role} still lacks {lack.right}: the current role may not give it. Its"
                f" owner can: {lack.fix};"
            )


def _call(function: str, role: str, *flags: bool) -> str:
    arguments = [f"{literal(quote(role))}::regrole", *(str(flag).lower() for flag in flags)]
    return f"SELECT rowsignal.{function}({', '.join(arguments)})"


def _table_rights(verb: str, targets: Sequence[Target], role: str) -> list[str]:
    schemas = dict.fromkeys(target.name[0] for target in targets if target.name[0] is not None)
    tables = [qualify(target.name[1], target.name[0]) for target in targets]
    return [
        *(f"{verb} USAGE ON SCHEMA {quote(name)} {role}" for name in schemas),
        *(f"{verb} SELECT ON TABLE {table} {role}" for table in tables),
    ]


@contextmanager
def _explained(connection: SyncConnection) -> Iterator[None]:
    """Turn refusals of the server into `GrantError`; the caller's transaction can go on."""
    if not isinstance(connection, Connection):
        yield
        return
    try:
        with connection.begin_nested():
            yield
    except DBAPIError as error:
        if sqlstate(error) in REFUSALS:
            raise GrantError(f"PostgreSQL refuses: {message(error)}.") from error
        raise
