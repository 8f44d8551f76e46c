"""Screens of the demonstration with relays and gateways: a live table, else plain lines."""

import time

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rowsignal.demo.drawing import Lines, Picture
from rowsignal.demo.scale.report import ScaleReport
from rowsignal.demo.scale.story import ScaleView
from rowsignal.demo.scale.verdict import Verdict

STYLES = {"up": "green", "starting": "yellow", "down": "bold red"}
KEYS = "kill: r relay  g gateway  n NATS  p PostgreSQL   q ends"
BLANK = ""


class PlainScaleScreen(Lines):
    """Prints one line for each step."""

    def refresh(self, view: ScaleView) -> None:
        """Do nothing: the lines are printed already."""


class LiveScaleScreen(Picture):
    """Draws the parts, the readers and the counts."""

    def refresh(self, view: ScaleView) -> None:
        """Draw the tables."""
        self.draw(_picture(view))


def scale_summary(report: ScaleReport) -> Text:
    """Return the report in a few lines."""
    it = report.verdict
    kills = ", ".join(f"{kind} {count}" for kind, count in report.kills.items() if count) or "none"
    verdict = ("nothing was lost, doubled or out of order", "bold green")
    if not report.is_good:
        verdict = (_faults(it), "bold red")
    return Text.assemble(
        f"{report.written} changes were written in {report.seconds:.0f} s; killed: {kills}\n",
        f"{report.readers} readers made {report.hops} hops and received {it.received} changes;"
        f" {it.covered} more came with the rows after {report.resets} resets\n",
        f"lost {it.lost}, doubled {it.doubled}, out of order {it.disordered}, rows that differ"
        f" {it.differing}: ",
        verdict,
    )


def _faults(verdict: Verdict) -> str:
    if not verdict.received:
        return "nothing was received"
    return f"{verdict.faults} changes or rows are not as they were written"


def _picture(view: ScaleView) -> RenderableType:
    return Group(Text(), _parts(view), _readers(view), _counts(view))


def _parts(view: ScaleView) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, min_width=64)
    for name, width in (("part", 12), ("state", 9), ("killed", 6), (BLANK, 28)):
        table.add_column(name, width=width, justify="right" if name == "killed" else "left")
    for part in view.system.parts:
        state = Text(part.state, style=STYLES[part.state])
        table.add_row(part.name, state, str(part.kills or BLANK), Text(part.note, style="dim"))
    return table


def _readers(view: ScaleView) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, min_width=64)
    for name in ("reader", "at", "hops", "received", "resets"):
        table.add_column(name, justify="left" if name == "at" else "right")
    for it in view.followers:
        counts = (str(it.hops), str(len(it.seen)), str(it.resets or BLANK))
        table.add_row(str(it.number + 1), it.gateway.name, *counts)
    return table


def _counts(view: ScaleView) -> RenderableType:
    it, grid = view.verdict, Table.grid(padding=(0, 3))
    good = "bold red" if it.faults else "bold green"
    grid.add_row(f"{view.written} written", f"{it.received} received", f"{it.waiting} on the way")
    grid.add_row(
        Text(f"{it.lost} lost", style=good),
        Text(f"{it.doubled} doubled", style=good),
        Text(f"{it.disordered} out of order", style=good),
    )
    return Group(grid, Text(f"{time.strftime('%H:%M:%S')}   {KEYS}", style="dim"))
