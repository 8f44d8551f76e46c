"""The application of all commands, and the handling of their errors."""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from rowsignal.cli.bench import bench
from rowsignal.cli.config import config
from rowsignal.cli.consumers import consumers
from rowsignal.cli.demo import demo
from rowsignal.cli.doctor import doctor
from rowsignal.cli.errors import explain
from rowsignal.cli.gateway import gateway
from rowsignal.cli.grant import grant, revoke
from rowsignal.cli.migrations import init
from rowsignal.cli.output import write
from rowsignal.cli.prune import prune
from rowsignal.cli.relay import app as relay
from rowsignal.cli.serve import serve
from rowsignal.cli.terminal import printable
from rowsignal.cli.triggers import install, status, uninstall
from rowsignal.cli.watch import watch
from rowsignal.cli.work import work

HELP = """Wait for PostgreSQL row changes, and see why they would not come.

Exit codes: 0 all is well; 1 something was found or has failed; 2 the command was not understood,
or the database cannot be reached.
"""

app = typer.Typer(
    name="rowsignal",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: it fits every terminal, and flags show no type
)
COMMANDS = (
    install,
    uninstall,
    status,
    grant,
    revoke,
    doctor,
    watch,
    work,
    serve,
    gateway,
    prune,
    demo,
    bench,
    config,
)
for command in COMMANDS:
    app.command()(command)

migrations = typer.Typer(help="Migrations.", no_args_is_help=True)
migrations.command("init")(init)
app.add_typer(migrations, name="db")
app.add_typer(consumers, name="consumers")
app.add_typer(relay, name="relay")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        write(f"rowsignal {version('rowsignal')}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    traceback: bool = typer.Option(
        False, "--traceback", help="Show where in the program an error comes from."
    ),
) -> None:
    """Define the options that all commands share."""
    _wanted["traceback"] = traceback


_wanted = {"traceback": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence on standard error."""
    _wanted["traceback"] = False
    try:
        app(args=arguments, prog_name="rowsignal")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if _wanted["traceback"]:
            raise
        sentence, code = explain(error)
        sys.stderr.write(f"rowsignal: {printable(sentence)}\n")
        return code
    return 0
