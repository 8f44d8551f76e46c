"""Triggers on the tables to watch: install, uninstall, status."""

import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal, Unpack, overload

from sqlalchemy import Connection, MetaData, event, text
from sqlalchemy.exc import DBAPIError

from rowsignal.exceptions import LockTimeoutError, TriggerInstallError
from rowsignal.identifiers import literal, qualify
from rowsignal.postgres import schema
from rowsignal.postgres.binds import AsyncBind, SyncBind, SyncConnection, execute, record, run_on
from rowsignal.postgres.errors import message, sqlstate
from rowsignal.postgres.ownership import check_owner
from rowsignal.triggers.catalog import TableFacts, read_facts
from rowsignal.triggers.health import TableStatus, TriggerState, judge, warning_of
from rowsignal.triggers.settings import Target, TriggerOptions, check_options, targets_of

logger = logging.getLogger("rowsignal.triggers")

Action = Literal["installed", "replaced", "removed", "unchanged"]

REFUSALS = {"RS001", "42P01", "42501"}  # ours, no such table, no right to
BUSY = {"55P03", "40P01"}  # lock_timeout, deadlock
NO_TRANSACTION = "25P01"
TURN_TIMEOUT = 30.0  # seconds for other installations to end
MAX_LOCK_TIMEOUT = 86400.0
SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :value, true)")


@dataclass(frozen=True, slots=True)
class TableAction:
    """The result of an installation for one table.

    `warning` is a sentence about a table that was installed, such as on row-level security.
    """

    schema: str | None
    table: str
    action: Action
    warning: str | None = None


@overload
def install_triggers(
    bind: AsyncBind, what: Any, *, lock_timeout: float = ..., **options: Unpack[TriggerOptions]
) -> Awaitable[list[TableAction]]: ...
@overload
def install_triggers(
    bind: SyncBind, what: Any, *, lock_timeout: float = ..., **options: Unpack[TriggerOptions]
) -> list[TableAction]: ...
def install_triggers(
    bind: AsyncBind | SyncBind,
    what: Any,
    *,
    lock_timeout: float = 3.0,
    **options: Unpack[TriggerOptions],
) -> list[TableAction] | Awaitable[list[TableAction]]:
    """Install the triggers that capture changes of tables; return what was done to each.

    `bind` is an engine, which gets a transaction of its own, or a connection or session, in whose
    transaction it happens; with an async one the call is to be awaited. `what` is a declarative
    base, a metadata, models, tables or names such as "sales.orders". The options are those of
    `TriggerSettings`; they win over those declared with `watched`.

    The schema `rowsignal` is created or upgraded first. Tables whose triggers are up to date are
    not touched, so this may be called at every start, by many processes at once.
    `CREATE TRIGGER` locks a table against writes until the transaction's end (PostgreSQL manual,
    13.3): a table that is not free within `lock_timeout` seconds raises `LockTimeoutError`, so that
    sessions on a busy table do not queue behind it. `TriggerInstallError` says why a table cannot
    carry triggers: it is a view, a partition, a foreign table, or has no primary key.
    """
    targets = targets_of(what, **options)

    def work(connection: SyncConnection) -> list[TableAction]:
        if not isinstance(connection, Connection):
            return _write_installation(connection, targets)
        with guarded(connection, lock_timeout):
            return _install(connection, _translated(connection, targets), lock_timeout)

    return run_on(bind, work)


@overload
def uninstall_triggers(
    bind: AsyncBind, what: Any, *, lock_timeout: float = ...
) -> Awaitable[list[TableAction]]: ...
@overload
def uninstall_triggers(
    bind: SyncBind, what: Any, *, lock_timeout: float = ...
) -> list[TableAction]: ...
def uninstall_triggers(
    bind: AsyncBind | SyncBind, what: Any, *, lock_timeout: float = 3.0
) -> list[TableAction] | Awaitable[list[TableAction]]:
    """Drop the triggers of tables; return what was done to each.

    Arguments and errors are those of `install_triggers`; `what=None` stands for every table that
    carries triggers. The schema `rowsignal` and its log stay.
    """
    targets = [] if what is None else targets_of(what)

    def work(connection: SyncConnection) -> list[TableAction]:
        if not isinstance(connection, Connection):
            return [_run(connection, "uninstall", target, "removed") for target in targets]
        with guarded(connection, lock_timeout):
            check_owner(connection)
            if schema.version(connection):
                with turn(connection, lock_timeout):
                    schema.take_lock(connection)
            names = [target.name for target in _translated(connection, targets)]
            tables = read_facts(connection, names, with_orphans=what is None)
            return [_uninstall(connection, facts) for facts in tables]

    return run_on(bind, work)


@overload
def trigger_status(
    bind: AsyncBind, what: Any = ..., **options: Unpack[TriggerOptions]
) -> Awaitable[list[TableStatus]]: ...
@overload
def trigger_status(
    bind: SyncBind, what: Any = ..., **options: Unpack[TriggerOptions]
) -> list[TableStatus]: ...
def trigger_status(
    bind: AsyncBind | SyncBind, what: Any = None, **options: Unpack[TriggerOptions]
) -> list[TableStatus] | Awaitable[list[TableStatus]]:
    """Compare the triggers of tables with what was declared for them, in one catalogue query.

    Of a base or metadata, tables that carry triggers without belonging to it are `orphaned`;
    without `what`, every table that carries triggers is compared with its own settings, and so is
    one that is given by name and without settings.
    """
    targets = [] if what is None else _judged(what, options)
    is_whole = what is None or isinstance(getattr(what, "metadata", what), MetaData)
    is_whole = is_whole and getattr(what, "__table__", None) is None

    def work(connection: SyncConnection) -> list[TableStatus]:
        if not isinstance(connection, Connection):
            raise TypeError("The status of triggers cannot be asked offline.")
        wanted = _translated(connection, targets)
        names = [target.name for target in wanted]
        tables = read_facts(connection, names, with_orphans=is_whole)
        # The query returns the tables asked for, then others that carry triggers.
        settings_of = [target.settings for target in wanted] + [None] * (len(tables) - len(wanted))
        problems = schema.problems(connection)
        return [
            judge(
                facts,
                settings,
                is_orphan=facts.is_orphan and what is not None,
                schema_problems=problems,
            )
            for facts, settings in zip(tables, settings_of, strict=True)
        ]

    return run_on(bind, work)


def install_script(what: Any, **options: Unpack[TriggerOptions]) -> str:
    """Return the SQL that `install_triggers` would run on an empty database, for `psql -f`.

    >>> print(install_script("orders").splitlines()[-1])
    SELECT rowsignal.install_v2('"orders"', '{}');
    """
    return record(lambda connection: install_triggers(connection, what, **options))


def install_on_create(metadata: MetaData, **options: Unpack[TriggerOptions]) -> None:
    """Let `metadata.create_all` install the triggers, too."""
    check_options(options)

    def after_create(_: MetaData, connection: Connection, **__: object) -> None:
        install_triggers(connection, metadata, **options)

    event.listen(metadata, "after_create", after_create)


def _judged(what: Any, options: TriggerOptions) -> list[Target]:
    """Return the tables to check; a name alone declares no settings."""
    if isinstance(what, list | tuple):
        return [target for item in what for target in _judged(item, options)]
    found = targets_of(what, **options)
    return [Target(found[0].name)] if isinstance(what, str) and not options else found


def _install(
    connection: Connection, targets: Sequence[Target], lock_timeout: float
) -> list[TableAction]:
    names = [target.name for target in targets]
    check_owner(connection)
    # Checked without a lock: at every start of every process there is usually nothing to do.
    if schema.version(connection) == schema.CURRENT and not schema.problems(connection):
        tables = read_facts(connection, names)
        if all(_is_right(facts, target) for facts, target in zip(tables, targets, strict=True)):
            return [TableAction(*target.name, "unchanged") for target in targets]
    with turn(connection, lock_timeout):
        schema.apply(connection)
        # A schema that is current was not locked by `apply`.
        schema.take_lock(connection)
        if schema.problems(connection):
            schema.repair(connection)
    # Read again: another installation may have come first.
    tables = read_facts(connection, names)
    return [
        _install_table(connection, facts, target)
        for facts, target in zip(tables, targets, strict=True)
    ]


def _install_table(connection: Connection, facts: TableFacts, target: Target) -> TableAction:
    if _is_right(facts, target):
        return TableAction(*target.name, "unchanged")
    done = _run(connection, "install", target, "replaced" if facts.triggers else "installed")
    if (warning := warning_of(facts)) is not None:
        logger.warning("%s: %s", qualify(facts.name, facts.schema), warning)
    return replace(done, warning=warning)


def _is_right(facts: TableFacts, target: Target) -> bool:
    status = judge(facts, target.settings, is_orphan=False)
    return status.state is TriggerState.INSTALLED


def _uninstall(connection: Connection, facts: TableFacts) -> TableAction:
    if not facts.triggers:
        return TableAction(facts.schema, facts.name, "unchanged")
    return _run(connection, "uninstall", Target((facts.schema, facts.name)), "removed")


def _write_installation(connection: SyncConnection, targets: Sequence[Target]) -> list[TableAction]:
    schema.apply(connection)
    return [_run(connection, "install", target, "installed") for target in targets]


def _run(
    connection: SyncConnection,
    verb: Literal["install", "uninstall"],
    target: Target,
    action: Action,
) -> TableAction:
    arguments = [literal(qualify(target.name[1], target.name[0]))]
    if target.settings is not None and verb == "install":
        arguments.append(literal(target.settings.to_json()))
    execute(connection, f"SELECT rowsignal.{verb}_v2({', '.join(arguments)})")
    return TableAction(*target.name, action)


def _translated(connection: Connection, targets: Sequence[Target]) -> list[Target]:
    translation = connection.get_execution_options().get("schema_translate_map") or {}
    return [
        Target((translation.get(target.name[0], target.name[0]), target.name[1]), target.settings)
        for target in targets
    ]


@contextmanager
def guarded(connection: Connection, lock_timeout: float) -> Iterator[None]:
    """Limit the block's waits for locks; errors leave the caller's transaction usable."""
    check_lock_timeout(lock_timeout)
    before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    try:
        # A savepoint: after an error the transaction of the caller can go on.
        with connection.begin_nested():
            _set_lock_timeout(connection, lock_timeout)
            yield
            # set_config(..., true) lasts to the end of the transaction, which is the caller's.
            connection.execute(SET_LOCK_TIMEOUT, {"value": before})
    except DBAPIError as error:
        raise _translate(error, lock_timeout) from error


def check_lock_timeout(lock_timeout: float) -> None:
    """Raise `ValueError` unless it is a number above 0; PostgreSQL takes 0 as no limit."""
    if isinstance(lock_timeout, bool) or not 0 < lock_timeout <= MAX_LOCK_TIMEOUT:
        raise ValueError(
            f"lock_timeout={lock_timeout!r}: give seconds above 0, at most {MAX_LOCK_TIMEOUT:.0f};"
            " without a limit all writers would queue behind a busy table."
        )


def _set_lock_timeout(connection: Connection, seconds: float) -> None:
    connection.execute(SET_LOCK_TIMEOUT, {"value": f"{ceil(seconds * 1000)}ms"})


@contextmanager
def turn(connection: Connection, lock_timeout: float) -> Iterator[None]:
    """Wait for other installations before the block; no writer waits meanwhile."""
    # No table is locked yet, so this wait may be longer than that for a table.
    timeout = max(lock_timeout, TURN_TIMEOUT)
    _set_lock_timeout(connection, timeout)
    try:
        with connection.begin_nested():
            yield
    except DBAPIError as error:
        if sqlstate(error) in BUSY:
            raise LockTimeoutError(
                f"Another installation had not ended within {timeout:g} s ({message(error)}):"
                " nothing was changed; try again when it is over."
            ) from error
        raise
    _set_lock_timeout(connection, lock_timeout)


def _translate(error: DBAPIError, lock_timeout: float) -> Exception:
    state, sentence = sqlstate(error), message(error)
    if state in REFUSALS:
        return TriggerInstallError(sentence)
    if state == NO_TRANSACTION:
        return TriggerInstallError(
            "Triggers are installed in a transaction, and this connection is in AUTOCOMMIT: pass"
            " the engine, or a connection with a transaction; in Alembic, not in autocommit_block."
        )
    if state in BUSY:
        return LockTimeoutError(
            f"A table was not free within {lock_timeout:g} s ({sentence}): nothing was changed; try"
            " again when fewer transactions are open, or with a longer lock_timeout."
        )
    return error
