"""`rowsignal watch`: changes in the terminal as they are committed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.changes import Change, Operation
from rowsignal.cli.change_output import ChangeOutput, JsonLines, Lines, LiveTable, Memory, Shown
from rowsignal.cli.connections import connected
from rowsignal.cli.errors import reason_of
from rowsignal.cli.narrowing import Narrowing
from rowsignal.cli.options import Json, Models, MoreTables, Tables, Url, with_options
from rowsignal.cli.output import console, errors
from rowsignal.cli.reflection import tables_of
from rowsignal.cli.table_arguments import find_subjects
from rowsignal.listener import OUTAGES, Listener
from rowsignal.streams import watch as watch_changes

Operations = Annotated[
    list[Operation] | None,
    typer.Option("--operation", help="Only these operations; may be repeated.", show_default=False),
]
After = Annotated[
    str | None,
    typer.Option(
        metavar="POSITION", help="Resume logged tables after this position.", show_default=False
    ),
]
Snapshot = Annotated[
    bool, typer.Option("--snapshot", help="Show the current rows first, as inserts.")
]
Rows = Annotated[bool, typer.Option("--rows", help="Show the row's values, too.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Only the row with this key, a JSON array for several columns; may be repeated.",
        show_default=False,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="Only rows like status.eq.paid; all must hold; may be repeated.",
        show_default=False,
    ),
]
ChangedColumns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Only updates that changed this column; may be repeated.",
        show_default=False,
    ),
]
Count = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="End after that many changes.", show_default=False),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """The options of `rowsignal watch`, in the order of its help."""

    tables: Tables = None
    table: MoreTables = None
    models: Models = None
    url: Url = None
    operation: Operations = None
    after: After = None
    snapshot: Snapshot = False
    rows: Rows = False
    pk: Keys = None
    where: Where = None
    column: ChangedColumns = None
    count: Count = None
    json: Json = False

    @property
    def narrowing(self) -> Narrowing:
        """Return what is about the rows of one table."""
        return Narrowing(self.pk or (), self.where or (), self.column or ())

    def of_stream(self) -> dict[str, Any]:
        """Return what the stream takes, whatever its tables."""
        names = {"operations": self.operation, "after": self.after}
        return names | {"snapshot": self.snapshot, "rows": self.rows}


@with_options(WatchOptions)
def watch(options: WatchOptions) -> None:
    """Show committed changes until Ctrl-C; without tables, of all tables with triggers.

    The output is a table in a terminal, lines elsewhere, and with --json one JSON object per line.
    A gap is shown as a reset. With --rows an update also shows earlier values, if they were seen.
    """
    subjects = find_subjects(options.models, options.tables, options.table)
    try:
        with _output(as_json=options.json) as output:
            asyncio.run(_follow(options, subjects, output))
    except KeyboardInterrupt:  # the usual way out
        return


async def _follow(options: WatchOptions, subjects: Any, output: ChangeOutput) -> None:
    seen = 0
    async with connected(options.url) as engine, aclosing(_wanted(options, subjects, engine)) as it:
        async for shown in it:
            output.add(shown)
            seen += isinstance(shown.item, Change)
            if seen == options.count:
                return


async def _wanted(
    options: WatchOptions, subjects: Any, engine: AsyncEngine
) -> AsyncGenerator[Shown, None]:
    """Yield the changes that meet the conditions, and gaps."""
    memory, tables = Memory(), await tables_of(engine, subjects)
    of_stream = options.of_stream() | options.narrowing.options(tables)
    conditions = options.narrowing.conditions(tables)
    async with _listening(engine), watch_changes(engine, *tables, **of_stream) as changes:
        async for item in changes:
            shown = memory.take(item)
            if conditions.want(shown):
                yield shown


@asynccontextmanager
async def _listening(engine: AsyncEngine) -> AsyncIterator[None]:
    """Connect the listener before the stream, which would otherwise begin with a gap."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(Listener(engine))
        except OUTAGES as error:
            errors().print(
                f"Notifications do not arrive ({reason_of(error)}): only logged tables can be"
                " watched. `rowsignal doctor` shows more.",
                soft_wrap=True,
            )
        yield


def _output(*, as_json: bool) -> AbstractContextManager[ChangeOutput]:
    out = console()
    if as_json:
        return nullcontext(JsonLines())
    return LiveTable(out) if out.is_terminal else nullcontext(Lines())
