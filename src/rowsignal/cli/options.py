"""Options that several commands share."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

Options = TypeVar("Options")

URL_VARIABLES = ["ROWSIGNAL_DATABASE_URL", "DATABASE_URL"]

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar=URL_VARIABLES,
        show_default=False,
        metavar="URL",
        help="The database: postgresql://user@host/name.",
    ),
]
NATS = typer.Option(
    "--nats",
    envvar="ROWSIGNAL_NATS_URL",
    show_default=False,
    metavar="URL",
    help="NATS: nats://host:4222, several with commas between them.",
)
Nats = Annotated[str, NATS]
Tables = Annotated[
    list[str] | None,
    typer.Argument(metavar="TABLE", show_default=False, help="Tables, as schema.name."),
]
MoreTables = Annotated[
    list[str] | None,
    typer.Option(
        "--table", "-t", metavar="TABLE", show_default=False, help="A table; may be repeated."
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        "-m",
        metavar="MODULE:NAME",
        show_default=False,
        help="A declarative base, a model or a metadata: shop.models:Base; may be repeated.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Write JSON to standard output.", show_default=False)
]
LockTimeout = Annotated[
    float,
    typer.Option("--lock-timeout", metavar="SECONDS", help="Longest wait for the lock of a table."),
]


def with_options(
    kind: type[Options],
) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a command of a function that takes its options as one dataclass.

    To typer, which reads signatures, the command has the dataclass's fields for parameters.
    """

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            command(kind(**given))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        vars(run)["__signature__"] = inspect.signature(kind)
        return run

    return decorate
