"""`rowsignal db init`: the files of a migration environment."""

from pathlib import Path
from typing import Annotated

import typer

from rowsignal.cli.options import Json
from rowsignal.cli.output import write, write_json
from rowsignal.orm import create_migration_environment


def init(
    directory: Annotated[Path, typer.Argument(help="Folder to create.")] = Path("migrations"),
    *,
    metadata: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="Metadata to compare with: shop.models:Base.metadata"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write an Alembic environment for async engines; never overwrites a file."""
    written = create_migration_environment(directory, metadata=metadata)
    if json:
        write_json({"files": [str(path) for path in written]})
        return
    for path in written:
        write(str(path))
