"""`rowsignal watch`: changes in the terminal as they are committed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.changes import Change, Operation
from rowsignal.cli.change_output import ChangeOutput, JsonLines, Lines, LiveTable, Memory
from rowsignal.cli.connections import connected
from rowsignal.cli.errors import reason_of
from rowsignal.cli.narrowing import Narrowing
from rowsignal.cli.options import Json, Models, MoreTables, Tables, Url
from rowsignal.cli.output import console, errors
from rowsignal.cli.reflection import models_of
from rowsignal.cli.table_arguments import find_subjects
from rowsignal.listener import OUTAGES, Listener
from rowsignal.streams import watch as watch_changes


def watch(
    tables: Tables = None,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    operation: Annotated[
        list[Operation] | None,
        typer.Option(
            "--operation", help="Only these operations; may be repeated.", show_default=False
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION", help="Resume logged tables after this position.", show_default=False
        ),
    ] = None,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Show the current rows first, as inserts.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Show the row's values, too.")] = False,
    pk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Only the row with this key, a JSON array for several columns; may be repeated.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows like status.eq.paid; all must hold; may be repeated.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only updates that changed this column; may be repeated.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="End after that many changes.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show committed changes until Ctrl-C; without tables, of all tables with triggers.

    The output is a table in a terminal, lines elsewhere, and with --json one JSON object per line.
    A gap is shown as a reset. With --rows an update also shows earlier values, if they were seen.
    """
    subjects = find_subjects(models, tables, table)
    narrow = Narrowing(pk or (), where or (), column or ())
    options = {"operations": operation, "after": after, "snapshot": snapshot, "rows": rows}
    try:
        with _output(as_json=json) as output:
            asyncio.run(_follow(url, subjects, narrow, options, output, count=count))
    except KeyboardInterrupt:  # the usual way out
        return


async def _follow(
    url: str | None,
    subjects: Any,
    narrow: Narrowing,
    options: dict[str, Any],
    output: ChangeOutput,
    *,
    count: int | None,
) -> None:
    seen, memory = 0, Memory()
    async with connected(url) as engine:
        found = await models_of(engine, subjects)
        options |= narrow.options(found)
        wanted = narrow.conditions(found)
        async with _listening(engine), watch_changes(engine, *found, **options) as changes:
            async for item in changes:
                shown = memory.take(item)
                if not wanted.want(shown):
                    continue
                output.add(shown)
                seen += isinstance(item, Change)
                if seen == count:
                    return


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
