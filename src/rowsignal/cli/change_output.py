"""How changes look: JSON for programs, lines for pipes, a table for a terminal."""

import json
from collections import Counter, deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rowsignal.changes import Change, Reset
from rowsignal.cli.output import write_json, write_raw

Item = Change | Reset

STYLES = {
    "insert": "green",
    "update": "cyan",
    "delete": "red",
    "truncate": "bold red",
    "reset": "bold yellow",
}
KEPT = 200
MARGIN = 7  # lines of the terminal that headings and figures take
SHORTEST = 3


class Sightings(Protocol):
    """Where changes are shown."""

    def add(self, item: Item) -> None:
        """Show one."""


class JsonLines:
    """A JSON object for each change, and for each gap."""

    def add(self, item: Item) -> None:
        """Write one line."""
        if isinstance(item, Reset):
            reset = {"operation": "reset", "reason": item.reason, "position": item.position}
            write_json(reset)
        else:
            # rows hold whatever Python has for a column
            text = json.dumps(item.to_dict(), ensure_ascii=False, default=_plain)
            write_raw(text + "\n")


class Lines:
    """A line for each change, with tabs between its parts."""

    def add(self, item: Item) -> None:
        """Write one line."""
        write_raw("\t".join(_cells(item)) + "\n")


class LiveTable:
    """The last changes, drawn again and again, and how many there were of each kind."""

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

    def add(self, item: Item) -> None:
        """Take one in, for the next drawing."""
        cells = _cells(item)
        self._items.append(cells)
        self._counts[cells[1]] += 1

    def _picture(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("at", "what", "table", "key", "changed"):
            table.add_column(heading, overflow="ellipsis", no_wrap=True)
        rows = max(self._console.height - MARGIN, SHORTEST)
        for at, operation, *rest in list(self._items)[-rows:]:
            style = STYLES.get(operation, "")
            table.add_row(Text(at, style="dim"), Text(operation, style=style), *map(Text, rest))
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self._counts.items()))
        return Group(table, Text(counts or "nothing yet"), Text("Ctrl-C ends", style="dim"))


def _cells(item: Item) -> tuple[str, ...]:
    if isinstance(item, Reset):
        return _time(None), "reset", "", "", item.reason
    name, changed = f"{item.schema}.{item.table}", ", ".join(item.changed or ())
    values = changed if item.row is None else _pairs(item.row)
    return _time(item.captured_at), str(item.operation), name, _pairs(item.key or {}), values


def _time(at: datetime | None) -> str:
    local = at.astimezone() if at is not None else datetime.now().astimezone()
    return local.strftime("%H:%M:%S.%f")[:-3]


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _plain(value: object) -> str:
    return rf"\x{value.hex()}" if isinstance(value, bytes) else str(value)
