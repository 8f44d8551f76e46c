"""Output: tables for people, JSON for programs, progress for a terminal."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rowsignal.cli.terminal import json_line, printable

Cell = str | Text


def console() -> Console:
    """Return the console of standard output."""
    return Console(highlight=False)


def errors() -> Console:
    """Return the console of standard error."""
    return Console(stderr=True, highlight=False)


def write_json(document: Any) -> None:
    """Write one line of JSON to standard output."""
    write_raw(json_line(document) + "\n")


def write_raw(text: str) -> None:
    """Write text to standard output unchanged; rich would turn tabs into spaces."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write a table; without a terminal, lines with tabs between the cells."""
    out = console()
    if not out.is_terminal:
        for row in rows:
            write_raw("\t".join(printable(str(cell)) for cell in row) + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    out.print(table)


def write(line: Cell = "") -> None:
    """Write a line without markup."""
    console().print(_cell(line), markup=False, soft_wrap=True)


def _cell(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(printable(cell))
    return cell if cell.plain.isprintable() else Text(printable(cell.plain), style=cell.style)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show progress on standard error, if it is a terminal."""
    out = errors()
    if not out.is_terminal:
        yield
        return
    with out.status(f"{what} ..."):
        yield
