"""`rowsignal install`, `uninstall` and `status`: triggers on tables."""

import asyncio
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.text import Text

from rowsignal.cli.connections import connected
from rowsignal.cli.errors import CommandError
from rowsignal.cli.kept_settings import install_keeping
from rowsignal.cli.options import Json, LockTimeout, Models, MoreTables, Tables, Url, with_options
from rowsignal.cli.output import progress, write, write_json, write_raw, write_table
from rowsignal.cli.table_arguments import find_subjects
from rowsignal.postgres.schema import SchemaStatus, schema_status
from rowsignal.triggers import (
    TableAction,
    TableStatus,
    TriggerOptions,
    TriggerState,
    install_script,
    trigger_status,
    uninstall_triggers,
)

STYLES = {"installed": "green", "orphaned": "yellow", "outdated": "yellow", "drifted": "yellow"}

Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME", help="Capture changes of this column; default: all."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="NAME", help="Do not capture changes of this column."),
]
FilterColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--filter-column", metavar="NAME", help="Log old and new values of this column, too."
    ),
]

Log = Annotated[bool, typer.Option("--log", help="Keep changes in the change log.")]
Hints = Annotated[
    bool,
    typer.Option("--hints", help="Keep no log; readers of a logged table lose their positions."),
]
RowValues = Annotated[bool, typer.Option("--row-values", help="Log whole rows, old and new.")]
Always = Annotated[bool, typer.Option("--always", help="Notify even if no listener is armed.")]
NoNotify = Annotated[bool, typer.Option("--no-notify", help="Never notify: for two-phase commits.")]


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the SQL for psql; connect to nothing.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """The options of `rowsignal install`, in the order of its help."""

    tables: Tables = None
    table: MoreTables = None
    models: Models = None
    url: Url = None
    log: Log = False
    hints: Hints = False
    column: Columns = None
    exclude: Exclude = None
    filter_column: FilterColumns = None
    row_values: RowValues = False
    always: Always = False
    no_notify: NoNotify = False
    lock_timeout: LockTimeout = 3.0
    dry_run: DryRun = False
    json: Json = False

    def of_triggers(self) -> TriggerOptions:
        """Return only the given options: others must not override declared or present settings."""
        if self.log and self.hints:
            raise CommandError("--log and --hints contradict each other: give one of them.")
        said: TriggerOptions = {}
        if self.log or self.hints:
            said["log"] = self.log
        if self.column:
            said["columns"] = self.column
        if self.exclude:
            said["exclude"] = self.exclude
        if self.filter_column:
            said["filter_columns"] = self.filter_column
        if self.row_values:
            said["row_values"] = True
        if self.always:
            said["always"] = True
        if self.no_notify:
            said["notify"] = False
        return said


@with_options(InstallOptions)
def install(options: InstallOptions) -> None:
    """Install the triggers that capture changes of tables.

    Tables whose triggers are up to date are left alone, so it may run at every deployment. A table
    keeps its settings except those given here; --log and --hints replace all of them. Settings
    given here win over those that models declare.
    """
    given = options.of_triggers()
    subjects = find_subjects(options.models, options.tables, options.table, is_needed=True)
    if options.dry_run:
        write_raw(install_script(subjects, **given))
        return

    async def work() -> list[TableAction]:
        async with connected(options.url) as engine:
            with progress("installing"):
                async with engine.begin() as connection:
                    return await connection.run_sync(
                        install_keeping, subjects, given, lock_timeout=options.lock_timeout
                    )

    _report_actions(asyncio.run(work()), as_json=options.json)


def uninstall(
    tables: Tables = None,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    everything: Annotated[bool, typer.Option("--all", help="All tables with triggers.")] = False,
    lock_timeout: LockTimeout = 3.0,
    json: Json = False,
) -> None:
    """Drop the triggers of tables. The schema rowsignal and its log stay."""
    subjects = find_subjects(models, tables, table)
    if (subjects is None) != everything:
        raise CommandError("Name the tables to take triggers from, or say --all; not both.")

    async def work() -> list[TableAction]:
        async with connected(url) as engine:
            with progress("uninstalling"):
                return await uninstall_triggers(engine, subjects, lock_timeout=lock_timeout)

    _report_actions(asyncio.run(work()), as_json=json)


def status(
    tables: Tables = None,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Compare triggers with their declaration; without tables, show all tables with triggers.

    Exits with 1 if any of them needs attention.
    """
    subjects = find_subjects(models, tables, table)

    async def work() -> tuple[SchemaStatus, list[TableStatus]]:
        async with connected(url) as engine:
            return await schema_status(engine), await trigger_status(engine, subjects)

    schema, found = asyncio.run(work())
    if json:
        write_json({"schema": asdict(schema), "tables": [asdict(one) for one in found]})
    else:
        _show_status(schema, found)
    if any(one.state is not TriggerState.INSTALLED for one in found):
        raise typer.Exit(1)


def _report_actions(actions: list[TableAction], *, as_json: bool) -> None:
    if as_json:
        write_json({"tables": [asdict(action) for action in actions]})
        return
    write_table(
        ("table", "triggers"), [(_name(done.schema, done.table), done.action) for done in actions]
    )
    for done in actions:
        if done.warning:
            write(f"{_name(done.schema, done.table)}: {done.warning}")
    counts = Counter(done.action for done in actions)
    write(", ".join(f"{count} {action}" for action, count in counts.items()) or "no tables")


def _show_status(schema: SchemaStatus, found: list[TableStatus]) -> None:
    if not schema.version:
        write("This database has no schema rowsignal yet: `rowsignal install` makes it.")
    elif not schema.is_current:
        write(f"Schema rowsignal is at version {schema.version}, this library has {schema.wanted}.")
    if not found:
        write("No table carries triggers: `rowsignal install TABLE` gives it some.")
        return
    rows = [
        (
            _name(one.schema, one.table),
            one.kind or "none",
            Text(str(one.state), style=STYLES.get(one.state, "red")),
            one.problem or one.warning or "",
        )
        for one in found
    ]
    write_table(("table", "capture", "triggers", "problem"), rows)


def _name(schema: str | None, table: str) -> str:
    return f"{schema}.{table}" if schema else table
