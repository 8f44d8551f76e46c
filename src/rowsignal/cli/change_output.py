"""Output of changes: JSON for programs, lines for pipes, a table for a terminal."""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rowsignal.changes import Change, Operation, Reset
from rowsignal.cli.output import write_json, write_raw
from rowsignal.cli.terminal import json_line, printable

Item = Change | Reset

STYLES = {
    "insert": "green",
    "update": "cyan",
    "delete": "red",
    "truncate": "bold red",
    "reset": "bold yellow",
}
KEPT = 200
REMEMBERED = 10_000
MARGIN = 7  # lines of the terminal that headings and figures take
SHORTEST = 3
NARROW = 80  # characters: below, a change takes several lines


@dataclass(frozen=True, slots=True)
class Shown:
    """A change with the row before it, if the command has seen that row."""

    item: Item
    old: Mapping[str, Any] | None = None


class Memory:
    """The last rows seen, to show old and new values together."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._rows: OrderedDict[tuple[str, str, str], Mapping[str, Any]] = OrderedDict()
        self._limit = limit

    def take(self, item: Item) -> Shown:
        """Return an item with the row before it, and remember the one after it."""
        if isinstance(item, Reset) or item.operation is Operation.TRUNCATE:
            self._rows.clear()
            return Shown(item)
        if item.key is None:
            return Shown(item)
        place = (item.schema, item.table, repr(dict(item.key)))
        old = self._rows.pop(place, None)
        if item.row is not None:
            self._rows[place] = item.row
            if len(self._rows) > self._limit:
                self._rows.popitem(last=False)
        return Shown(item, old)


class ChangeOutput(Protocol):
    """An output for changes."""

    def add(self, shown: Shown) -> None:
        """Write a change or a gap."""


class JsonLines:
    """Writes a JSON object for each change, and for each gap."""

    def add(self, shown: Shown) -> None:
        """Write a change or a gap as one line."""
        item = shown.item
        if isinstance(item, Reset):
            reset = {"operation": "reset", "reason": item.reason, "position": item.position}
            write_json(reset)
            return
        document = item.to_dict()
        if shown.old is not None:
            document["old"] = replace(item, row=shown.old).to_dict()["row"]
        # rows hold whatever Python has for a column
        write_raw(json_line(document, default=plain) + "\n")


class Lines:
    """Writes a line for each change, with tabs between its parts."""

    def add(self, shown: Shown) -> None:
        """Write a change or a gap as one line."""
        write_raw("\t".join(_cells(shown)) + "\n")


class LiveTable:
    """Draws a table of the last changes, with counts by operation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._items: deque[tuple[str, ...]] = deque(maxlen=KEPT)
        self._counts: Counter[str] = Counter()
        self._live = Live(
            console=console, get_renderable=self._picture, refresh_per_second=8, transient=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def add(self, shown: Shown) -> None:
        """Add a change or a gap to the next drawing."""
        cells = _cells(shown)
        self._items.append(cells)
        self._counts[cells[1]] += 1

    def _picture(self) -> RenderableType:
        lines = 3 if self._console.width < NARROW else 1
        height = max((self._console.height - MARGIN) // lines, SHORTEST)
        table = picture(list(self._items)[-height:], self._console.width)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self._counts.items()))
        return Group(table, Text(counts or "nothing yet"), Text("Ctrl-C ends", style="dim"))


def picture(rows: list[tuple[str, ...]], width: int) -> Table:
    """Return rows as a table; on narrow terminals values are shortened first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    if width < NARROW:
        _fill_narrow(table, rows)
    else:
        _fill_wide(table, rows, width)
    return table


def _fill_wide(table: Table, rows: list[tuple[str, ...]], width: int) -> None:
    table.add_column("at", no_wrap=True, width=12)
    table.add_column("what", no_wrap=True, width=8)
    for heading, place, share in (("table", 2, 0.3), ("key", 3, 0.2)):
        longest = max((len(row[place]) for row in rows), default=0)
        fitting = min(max(longest, len(heading)), int(width * share))
        table.add_column(heading, no_wrap=True, overflow="ellipsis", width=fitting)
    table.add_column("values", no_wrap=True, overflow="ellipsis", ratio=1)
    for at, operation, *rest in rows:
        table.add_row(Text(at, style="dim"), _named(operation), *map(Text, rest))


def _fill_narrow(table: Table, rows: list[tuple[str, ...]]) -> None:
    table.add_column("at", no_wrap=True, width=8)
    table.add_column("what", no_wrap=True, width=8)
    table.add_column("row", no_wrap=True, overflow="ellipsis", ratio=1)
    for at, operation, *rest in rows:
        lines = Text("\n".join(part for part in rest if part))
        table.add_row(Text(at[:8], style="dim"), _named(operation), lines)


def _named(operation: str) -> Text:
    return Text(operation, style=STYLES.get(operation, ""))


def _cells(shown: Shown) -> tuple[str, ...]:
    item = shown.item
    if isinstance(item, Reset):
        return _time(None), "reset", "", "", printable(item.reason)
    name = f"{item.schema}.{item.table}"
    parts = (name, _pairs(item.key or {}), _values(item, shown.old))
    return (_time(item.captured_at), str(item.operation), *map(printable, parts))


def _values(item: Change, old: Mapping[str, Any] | None) -> str:
    """Return the known values of a row; for an update, old and new values."""
    if item.row is None:
        return _pairs(old) if old is not None else ", ".join(item.changed or ())
    if item.operation is not Operation.UPDATE:
        return _pairs(item.row)
    names = [name for name in item.changed or item.row if name in item.row]
    before = old or {}
    return " ".join(
        f"{name}={_arrow(before[name])}{_text(item.row[name])}"
        if name in before
        else f"{name}={_text(item.row[name])}"
        for name in names
        if item.changed or before.get(name, ...) != item.row[name]
    )


def _arrow(value: object) -> str:
    return f"{_text(value)}→"


def _time(at: datetime | None) -> str:
    local = at.astimezone() if at is not None else datetime.now().astimezone()
    return local.strftime("%H:%M:%S.%f")[:-3]


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    return "null" if value is None else str(plain(value))


def plain(value: object) -> object:
    """Return a Python value in JSON's form, or else as PostgreSQL writes it."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return rf"\x{value.hex()}"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, int | float | str | dict | list) else str(value)
