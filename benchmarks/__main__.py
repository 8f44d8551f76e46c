"""Run one benchmark: python -m benchmarks NAME [--json]."""

import argparse
import asyncio
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import is_met

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "pgbench", "processes", "publish", "report"}


def names() -> list[str]:
    """Return the benchmarks there are."""
    modules = {path.stem for path in HERE.glob("*.py")} - NOT_BENCHMARKS
    return sorted(name for name in modules if "def run(" in (HERE / f"{name}.py").read_text())


def show(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    table = Table(title=report["name"])
    for heading in ("what", "value", "target", ""):
        table.add_column(heading)
    for name, value in report["figures"].items():
        table.add_row(name, str(value), "", "", style="dim")
    for name, value in report["ratios"].items():
        target = report["targets"].get(name, "")
        verdict = "" if not target else "met" if is_met(value, target) else "MISSED"
        table.add_row(name, f"{value:g}", str(target), verdict)
    Console().print(table)


def main() -> int:
    """Run the benchmark that the command line names; exit with 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    run = importlib.import_module(f"benchmarks.{arguments.name}").run
    report = asyncio.run(run()) if inspect.iscoroutinefunction(run) else run()
    if arguments.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(report)
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
